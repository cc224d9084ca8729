"""Units of work of tests: values in several domains that are written together, so that a torn unit is seen."""

from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

from backtest_persist import Container, Registry
from backtest_persist.testing.subjects import EARLY

__all__ = ("discarded", "read_unit", "write_unit")


@asynccontextmanager
async def discarded(block: AbstractAsyncContextManager[Any]) -> AsyncGenerator[None]:
    """Leave a block by an error, which gets out of it."""
    try:
        async with block:
            yield
            raise ZeroDivisionError
    except ZeroDivisionError:
        return
    raise AssertionError("the error did not get out of the block")


async def write_unit(persist: Registry, n: Any, key: str = "k") -> None:
    """Write one value into three domains, in the unit of work of the caller."""
    await (await persist.signal(key, "t", "e")).write_signal_data({"n": n})
    await (await persist.state(key, "b")).write_state_data({"n": n}, EARLY)
    await (await persist.storage(True)).write_storage_data([{"id": key, "n": n}])


async def read_unit(container: Container, key: str = "k") -> Any:
    """Return the value that `write_unit` has written, None for none; a torn unit is an AssertionError."""
    rows = [
        await container.signal_db_service.find_by_context(key, "t", "e"),
        await container.state_db_service.find_by_context(key, "b"),
        await container.storage_db_service.find_by_context(True, key),
    ]
    values = [None if row is None or row.payload is None else row.payload["n"] for row in rows]
    assert all(value == values[0] for value in values), f"a part of a unit is stored: {values}"
    return values[0]
