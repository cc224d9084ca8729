"""Containers with other settings than those of the test."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

from pydantic import SecretStr

from backtest_persist import Container, Settings

__all__ = ("open_container", "with_uri")


@asynccontextmanager
async def open_container(settings: Settings, **changes: Any) -> AsyncGenerator[Container]:
    """Yield a container with changed settings without connecting it, and close it after the block.

    A container that is entered asks the servers at once, and fails there when they refuse it.
    """
    container = Container(settings.model_copy(update=changes))
    try:
        yield container
    finally:
        await container.close()


def with_uri(settings: Settings, uri: str) -> Settings:
    """Return the settings with another connection string of MongoDB."""
    return settings.model_copy(update={"mongo_connection_string": SecretStr(uri)})
