"""The commands that reach MongoDB, as the driver reports them."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from inspect import isawaitable
from typing import Any

from motor.motor_asyncio import AsyncIOMotorClient
from pymongo import AsyncMongoClient
from pymongo.monitoring import CommandListener, CommandStartedEvent

from backtest_persist import Container, Settings

__all__ = ("Commands", "close_client", "monitored_client", "monitored_container")


class Commands(CommandListener):
    """Records the names of the commands that are sent to MongoDB, the fields of their filters, and write concerns."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.filters: list[list[str]] = []
        self.write_concerns: list[tuple[str, Any]] = []

    def started(self, event: CommandStartedEvent) -> None:
        self.names.append(event.command_name)
        self.write_concerns.append((event.command_name, event.command.get("writeConcern")))
        self.filters.append([*(event.command.get("filter") or event.command.get("query") or {})])

    def succeeded(self, event: Any) -> None: ...
    def failed(self, event: Any) -> None: ...


def monitored_client(settings: Settings, driver: str, commands: Commands) -> Any:
    """Open a client of the driver under test, to be injected, whose commands are recorded."""
    uri = settings.mongo_connection_string.get_secret_value()
    if driver == "motor":
        return AsyncIOMotorClient[dict[str, Any]](uri, event_listeners=[commands])
    return AsyncMongoClient[dict[str, Any]](uri, event_listeners=[commands])


async def close_client(client: Any) -> None:
    """Close a client of either driver; Motor's `close` is not a coroutine."""
    closing = client.close()
    if isawaitable(closing):
        await closing


@asynccontextmanager
async def monitored_container(settings: Settings, driver: str) -> AsyncGenerator[tuple[Container, Commands]]:
    """Build a container whose MongoDB commands are recorded, and close it and its client after the block."""
    commands = Commands()
    client = monitored_client(settings, driver, commands)
    container = Container(settings, mongo_client=client)
    try:
        yield container, commands
    finally:
        await container.close()
        await close_client(client)
