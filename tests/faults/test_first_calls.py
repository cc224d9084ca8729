"""First calls while MongoDB is away: they share one attempt to prepare the collection, and one deadline."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from backtest_persist import (
    BacktestPersistError,
    Container,
    IndexConflictError,
    Registry,
    Settings,
    StoreUnavailableError,
)
from tests.support.commands import monitored_container
from tests.support.proxy import DEADLINE, mongo_proxy, with_short_deadline
from tests.support.servers import suspended_mongo, wait_until
from tests.support.stopwatch import GRACE, HANG, timed

CALLERS = 8
KINDS: dict[str, Callable[[Container, Registry, int], Awaitable[Any]]] = {
    "one adapter": lambda container, persist, n: persist.signal("s", "t", "e"),
    "many adapters": lambda container, persist, n: persist.signal(f"s{n}", "t", "e"),
    "wait_for_init": lambda container, persist, n: container.signal_db_service.wait_for_init(),
    "container": lambda container, persist, n: container.wait_for_init(),
    "operations": lambda container, persist, n: container.signal_db_service.upsert(f"s{n}", "t", "e", {}),
}


@pytest.mark.parametrize("kind", KINDS)
async def test_first_calls_end_after_one_deadline(settings: Settings, kind: str) -> None:
    """Eight at once against a server that is silent: none waits for the attempts of the others; later all succeed."""
    async with mongo_proxy(settings) as (proxy, through):
        container = Container(with_short_deadline(through))
        persist = Registry(container)

        async def call() -> list[tuple[Any, float]]:
            return await asyncio.gather(*(timed(KINDS[kind](container, persist, n)) for n in range(CALLERS)))

        proxy.passing.clear()
        try:
            for _ in range(2):
                ends = await call()
                for error, seconds in ends:
                    assert isinstance(error, StoreUnavailableError)
                    assert seconds < DEADLINE + GRACE
                assert len({id(error) for error, _ in ends}) == CALLERS
            proxy.passing.set()
            async with asyncio.timeout(HANG):
                while any(isinstance(end, BacktestPersistError) for end, _ in await call()):
                    pass
        finally:
            await container.close()


async def test_first_calls_share_one_preparation(settings: Settings, driver: str) -> None:
    """Callers that come at the same time ask for the indexes once; one that is cancelled leaves the others."""
    async with monitored_container(settings, driver) as (container, commands):
        db = container.signal_db_service
        calls = [asyncio.create_task(db.upsert(f"s{n}", "t", "e", {})) for n in range(CALLERS)]
        await asyncio.sleep(0)
        calls[0].cancel()
        ends = await asyncio.gather(*calls, return_exceptions=True)
        assert isinstance(ends[0], asyncio.CancelledError)
        assert not [end for end in ends[1:] if isinstance(end, BaseException)]
        assert commands.names.count("listIndexes") == 1
        assert commands.names.count("createIndexes") == 1


async def test_a_container_prepares_several_collections_at_a_time(settings: Settings) -> None:
    """Over a slow line their round trips do not add up; in the end all are prepared, or an error is raised."""
    container, other = Container(settings), Container(settings)
    try:
        await asyncio.gather(container.mongo_service.ping(), other.mongo_service.ping())
        state = container.mongo_service._states.get()

        async def several_are_being_prepared() -> bool:
            return len(state._preparing) > 1

        async with suspended_mongo(other):
            preparing = asyncio.create_task(container.wait_for_init())
            await wait_until(several_are_being_prepared)
        await preparing
        assert state.prepared >= {service.collection for service in container.db_services}
        narrow = container.mongo_service.database["candle-items"]
        await narrow.create_index([("symbol", 1), ("interval", 1), ("timestamp", 1)], unique=True)
        with pytest.raises(IndexConflictError, match="candle-items"):
            await other.wait_for_init()
    finally:
        await container.close()
        await other.close()


async def test_a_call_after_a_failed_preparation_prepares_again(container: Container) -> None:
    """A caller that tries again at once, while another one has yet to learn of the failure, is not let through."""
    mongo, attempts = container.mongo_service, 0

    async def prepare(state: object) -> None:
        nonlocal attempts
        attempts += 1
        await asyncio.sleep(0)
        if attempts == 1:
            raise StoreUnavailableError("away")

    async def call() -> int:
        try:
            await mongo.prepared("some-items", prepare)
        except StoreUnavailableError:
            await mongo.prepared("some-items", prepare)
        return attempts

    assert await asyncio.gather(call(), call(), call()) == [2, 2, 2]


async def test_first_calls_go_on_in_the_order_of_their_calls(settings: Settings) -> None:
    """Also those that come while the others are just about to go on: of one context the last write wins."""
    for late in range(12):
        container = Container(settings)
        try:
            db = container.signal_db_service
            await container.mongo_service.database.drop_collection(db.collection)
            calls = [asyncio.create_task(db.upsert("s", "t", "e", {"n": n})) for n in range(3)]
            while not (attempts := container.mongo_service._states.get()._preparing):
                await asyncio.sleep(0)
            (attempt,) = attempts.values()
            await asyncio.wait([attempt.task])
            for _ in range(late):
                await asyncio.sleep(0)
            calls += [asyncio.create_task(db.upsert("s", "t", "e", {"n": n})) for n in range(3, 6)]
            await asyncio.gather(*calls)
            row = await db.find_by_context("s", "t", "e")
            assert row is not None
            assert row.payload == {"n": 5}
        finally:
            await container.close()


async def test_a_first_call_that_is_cancelled_ends_at_once(settings: Settings) -> None:
    """The attempt goes on for the next caller, and closing the container ends it."""
    other = Container(settings)
    container = Container(settings)
    try:
        await other.signal_db_service.wait_for_init()
        async with suspended_mongo(other):
            calls: list[Callable[[], Awaitable[Any]]] = [
                container.signal_db_service.find_all,
                lambda: Registry(container).signal("s", "t", "e"),
            ]
            for call in calls:
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.1):
                        await call()
        assert await container.signal_db_service.find_all() == []
    finally:
        await container.close()
        await other.close()
