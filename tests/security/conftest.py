"""Servers of these tests' own, which let nobody in without a password and nothing without TLS."""

import logging
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from backtest_persist import Settings
from tests.support.locked_servers import Locked, locked_servers


@pytest.fixture(scope="session")
async def locked() -> AsyncIterator[Locked]:
    """One mongod and one redis-server that are locked."""
    with TemporaryDirectory() as directory:
        async with locked_servers(Path(directory)) as locked:
            yield locked


@pytest.fixture(scope="session")
def servers(locked: Locked) -> Settings:
    """The settings of the administrator of the locked servers, for the fixtures `settings` and `container`."""
    return locked.settings


@pytest.fixture
def warned(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """The names of our warnings so far."""
    caplog.set_level(logging.WARNING, "backtest_persist")
    return lambda: [vars(record)["event"] for record in caplog.records if record.name == "backtest_persist"]
