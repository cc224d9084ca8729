"""Every operation ends within CC_MONGO_TIMEOUT_MS, whoever opened the client and whatever mongod does."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest

from backtest_persist import Container, Settings, StoreUnavailableError, WriteOutcomeUnknownError
from tests.commands import Commands, listened_client
from tests.faults import servers
from tests.faults.conftest import Failing
from tests.faults.stopwatch import GRACE, pauses, timed


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """A deadline that a test can wait for."""
    return settings.model_copy(update={"mongo_timeout_ms": 1000})


@asynccontextmanager
async def stopped(container: Container) -> AsyncGenerator[None]:
    """A mongod that keeps its connections and answers nothing."""
    pid = (await container.mongo_service.database.command("serverStatus"))["pid"]
    async with servers.stopped(pid):
        yield


async def outcome(operation: Awaitable[Any]) -> tuple[type[Any], float]:
    """How an operation ends, and after how many seconds."""
    result, seconds = await timed(operation)
    return cast("type[Any]", type(result)), seconds


async def test_an_injected_client_has_the_deadline(settings: Settings, driver: str) -> None:
    """A client without timeoutMS does not wait for longer than the settings say."""
    client = listened_client(settings, driver, Commands())
    container = Container(settings, mongo_client=client)
    db = container.signal_db_service
    await db.upsert("s", "t", "e", {"n": 1})
    async with stopped(container):
        ends = await asyncio.gather(
            outcome(db.find_by_context("s", "t", "e")),
            outcome(db.upsert("s", "t", "e", {"n": 2})),
            outcome(db.find_all()),
            outcome(db.count()),
            outcome(container.log_db_service.create_many([{"id": "a"}])),
            outcome(container.risk_db_service.wait_for_init()),
            outcome(container.candle_db_service.find_gaps("b", "1m", "e", 0, 60_000)),
        )
        assert [kind for kind, _ in ends] == [StoreUnavailableError, WriteOutcomeUnknownError] + [
            StoreUnavailableError
        ] * 5
        assert [seconds for _, seconds in ends if seconds > 1 + GRACE] == [], ends
    assert await db.find_by_context("s", "t", "e") is not None
    await container.close()
    closing = client.close()
    if closing is not None:
        await closing


async def test_an_operation_does_not_wait_for_a_long_index_build(container: Container, failing: Failing) -> None:
    """Operations end within the deadline while indexes are built; `wait_for_init` waits for them."""
    db = container.signal_db_service
    async with failing("createIndexes", blockConnection=True, blockTimeMS=2500):
        building = asyncio.create_task(db.wait_for_init())
        await asyncio.sleep(0.2)
        ends = await asyncio.gather(outcome(db.find_by_context("s", "t", "e")), outcome(db.upsert("s", "t", "e", {})))
        assert [kind for kind, _ in ends] == [StoreUnavailableError] * 2
        assert max(seconds for _, seconds in ends) < 1 + GRACE
        await building
    assert await db.find_by_context("s", "t", "e") is None


async def test_an_operation_that_builds_indexes_has_its_deadline(container: Container, failing: Failing) -> None:
    """The first operation creates missing indexes, but within its own deadline."""
    async with failing("createIndexes", blockConnection=True, blockTimeMS=2500):
        kind, seconds = await outcome(container.signal_db_service.find_by_context("s", "t", "e"))
    assert (kind, seconds < 1 + GRACE) == (StoreUnavailableError, True)


async def test_closing_does_not_wait_for_a_stopped_mongod(settings: Settings) -> None:
    """The end of the sessions is told to the server within one deadline, and the event loop goes on meanwhile."""
    container = Container(settings)
    await container.signal_db_service.upsert("s", "t", "e", {"n": 1})
    async with stopped(container):
        closing = asyncio.create_task(timed(container.close()))
        longest = (await pauses(closing))[-1]
        _, seconds = await closing
    assert (seconds < 1 + GRACE, longest < 0.25) == (True, True), (seconds, longest)
