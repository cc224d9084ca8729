"""Servers that require a password and TLS."""

from collections.abc import AsyncIterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from backtest_persist import Settings
from tests.support.locked_servers import LockedServers, locked_servers


@pytest.fixture(scope="session")
async def locked() -> AsyncIterator[LockedServers]:
    """One mongod and one redis-server that are locked."""
    with TemporaryDirectory() as directory:
        async with locked_servers(Path(directory)) as locked:
            yield locked


@pytest.fixture(scope="session")
def servers(locked: LockedServers) -> Settings:
    """The settings of the administrator of the locked servers, for the fixtures `settings` and `container`."""
    return locked.settings
