"""Servers of these tests' own: mongod with its fail points switched on, so that it answers with errors on demand."""

from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import pytest
from pydantic import SecretStr
from pymongo import AsyncMongoClient

from backtest_persist import Settings, embedded

Failing = Callable[..., AbstractAsyncContextManager[None]]


@pytest.fixture(scope="session")
async def servers() -> AsyncIterator[Settings]:
    """One mongod with fail points and one redis-server."""
    async with embedded(mongod_options=("--setParameter", "enableTestCommands=1")) as settings:
        yield settings


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """Settings whose clients have an application name of the test's own, by which a fail point tells them apart."""
    uri = settings.mongo_connection_string.get_secret_value()
    name = settings.redis_key_prefix.rstrip(":")
    return settings.model_copy(
        update={"mongo_connection_string": SecretStr(f"{uri}&appName={name}&heartbeatFrequencyMS=500")}
    )


@pytest.fixture
def failing(settings: Settings) -> Failing:
    """Make mongod fail the next such command of the clients of this test, as the data of the fail point says.

    It is an error when there was none.
    """
    uri = settings.mongo_connection_string.get_secret_value()

    @asynccontextmanager
    async def fail(*commands: str, times: int = 1, **data: Any) -> AsyncGenerator[None]:
        name = settings.redis_key_prefix.rstrip(":")
        async with AsyncMongoClient[dict[str, Any]](uri, appName="tests") as client:
            fail_point = {"failCommands": list(commands), "appName": name, **data}
            command: dict[str, Any] = {"configureFailPoint": "failCommand"}
            await client.admin.command({**command, "mode": {"times": times}, "data": fail_point})
            try:
                yield
            finally:
                fired = (await client.admin.command({**command, "mode": "off"}))["count"]
            assert fired, f"no {' or '.join(commands)} has failed"

    return fail
