"""Counting the commands that reach the servers."""

from typing import Any

from motor.motor_asyncio import AsyncIOMotorClient
from pymongo import AsyncMongoClient
from pymongo.monitoring import CommandListener, CommandStartedEvent

from backtest_persist import Settings

__all__ = ("Commands", "listened_client")


class Commands(CommandListener):
    """Remembers the names of the commands that reach MongoDB, and the fields of their filters."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.filters: list[list[str]] = []

    def started(self, event: CommandStartedEvent) -> None:
        self.names.append(event.command_name)
        self.filters.append([*(event.command.get("filter") or event.command.get("query") or {})])

    def succeeded(self, event: Any) -> None: ...
    def failed(self, event: Any) -> None: ...


def listened_client(settings: Settings, driver: str, commands: Commands) -> Any:
    """A client of the driver under test, to be injected, whose commands are remembered."""
    uri = settings.mongo_connection_string.get_secret_value()
    if driver == "motor":
        return AsyncIOMotorClient[dict[str, Any]](uri, event_listeners=[commands])
    return AsyncMongoClient[dict[str, Any]](uri, event_listeners=[commands])
