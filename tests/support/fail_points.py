"""Fail points: a mongod started with ``enableTestCommands`` fails commands on demand."""

from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

from pymongo import AsyncMongoClient

from backtest_persist import Settings

__all__ = ("TEST_COMMANDS", "Failing", "failing_commands")

TEST_COMMANDS = ("--setParameter", "enableTestCommands=1")
"""Options of a mongod whose fail points can be configured."""

Failing = Callable[..., AbstractAsyncContextManager[None]]
"""Makes mongod fail commands for the length of a block; see `failing_commands`."""


def failing_commands(settings: Settings) -> Failing:
    """Return a context manager that makes mongod fail the next commands of the clients with these settings.

    It takes the names of the commands and the data of the fail point. With `after`, that many commands pass and all
    later ones fail; otherwise the next `times` fail. A block in which no command failed is an AssertionError.
    """
    uri = settings.mongo_connection_string.get_secret_value()
    app_name = settings.redis_key_prefix.rstrip(":")

    @asynccontextmanager
    async def failing(*commands: str, times: int = 1, after: int = 0, **data: Any) -> AsyncGenerator[None]:
        async with AsyncMongoClient[dict[str, Any]](uri, appName="tests") as client:
            fail_point = {"failCommands": list(commands), "appName": app_name, **data}
            command: dict[str, Any] = {"configureFailPoint": "failCommand"}
            mode = {"skip": after} if after else {"times": times}
            before = (await client.admin.command({**command, "mode": mode, "data": fail_point}))["count"]
            try:
                yield
            finally:
                count = (await client.admin.command({**command, "mode": "off"}))["count"]  # since the server started
            assert count > before, f"no {' or '.join(commands)} has failed"

    return failing
