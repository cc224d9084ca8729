"""Lists that are left, by a cancellation or by a break: the caller waits for nothing, and no cursor stays open."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from typing import Any

import pytest

from backtest_persist import Container
from tests.support.servers import suspended_mongo, wait_until
from tests.support.stopwatch import Stopwatch

ENTRIES = 3000
LEAVING = 0.2
"""Seconds that leaving may take on a busy machine."""


@pytest.fixture
async def filled(container: Container) -> Container:
    """A container with a list of several batches."""
    await container.storage_db_service.upsert_many(True, [{"id": f"x{n}", "text": "z" * 50} for n in range(ENTRIES)])
    return container


async def open_cursors(container: Container) -> int:
    status = await container.mongo_service.database.command("serverStatus")
    return status["metrics"]["cursor"]["open"]["total"]


@asynccontextmanager
async def suspended_mongo_after_the_first_row(container: Container) -> AsyncGenerator[Any]:
    """Begin a list, and suspend its server; yields what is left of the list."""
    rows = container.storage_db_service.iterate({"backtest": True})
    await anext(rows)
    async with suspended_mongo(container):
        yield rows


async def test_a_list_over_a_server_that_is_silent_ends_when_its_caller_does(filled: Container) -> None:
    """By a timeout of the caller, a cancellation or a break; the cursor is closed behind it once the server is back."""
    db = filled.storage_db_service
    before = await open_cursors(filled)

    async def read(rows: Any) -> None:
        async for _ in rows:
            pass

    async def by_timeout(rows: Any) -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(read(rows), 0.3)

    async def by_cancellation(rows: Any) -> None:
        reading = asyncio.create_task(read(rows))
        await asyncio.sleep(0.3)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading

    async def by_break(rows: Any) -> None:
        async for _ in rows:
            break

    leave: Callable[[Any], Awaitable[None]]
    for leave in (by_timeout, by_cancellation, by_break):
        async with suspended_mongo_after_the_first_row(filled) as rows:
            with Stopwatch() as watch:
                await leave(rows)
                await rows.aclose()
            assert watch.seconds < 0.3 + LEAVING
        await wait_until(lambda: is_closed(filled, before))
    assert len(await db.find_all()) == ENTRIES


async def is_closed(container: Container, before: int) -> bool:
    return await open_cursors(container) <= before


async def test_closing_waits_for_cursors_that_are_closed_behind_their_callers(filled: Container) -> None:
    """Afterwards no task is left."""
    tasks = asyncio.all_tasks()
    rows: Any = filled.storage_db_service.iterate()
    async with aclosing(rows):
        async for _ in rows:
            break
    assert asyncio.all_tasks() - tasks
    await filled.close()
    assert asyncio.all_tasks() <= tasks
