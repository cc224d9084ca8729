"""Closing while operations are under way: what was stored is reported as stored, and nothing is left open."""

import asyncio
import gc
import warnings
from collections import Counter
from typing import Any

import pytest
from pymongo import AsyncMongoClient

from backtest_persist import (
    BacktestPersistError,
    ClosedError,
    Container,
    Settings,
    StoreUnavailableError,
    WriteOutcomeUnknownError,
)
from tests.support.cases import CASES, Case
from tests.support.commands import close_client
from tests.support.fail_points import Failing
from tests.support.public_calls import adapter_calls, cache_calls, db_calls, run_to_end
from tests.support.servers import wait_until, wait_until_running
from tests.support.stopwatch import GRACE, HANG, timed


async def wait_until_disconnected(settings: Settings) -> None:
    """Wait until mongod has no connection of the clients of this test."""
    name = settings.redis_key_prefix.rstrip(":")
    uri = settings.mongo_connection_string.get_secret_value()
    async with AsyncMongoClient[dict[str, Any]](uri, appName="tests") as client:

        async def gone() -> bool:
            connections = await client.admin.aggregate(
                [{"$currentOp": {"idleConnections": True}}, {"$match": {"appName": name}}]
            )
            return await connections.to_list() == []

        await wait_until(gone)


async def test_close_waits_for_what_is_under_way(settings: Settings) -> None:
    """Each of 200 writes either returns and is stored, or is a ClosedError and is not; no connection is left."""
    container = Container(settings)
    db = container.signal_db_service
    await db.wait_for_init()
    started = 0

    async def write(n: int) -> Any:
        nonlocal started
        await asyncio.sleep(n * 0.0005)
        started += 1
        return await db.upsert("s", "t", f"e{n}", {"n": n})

    gc.collect()  # what other tests left
    with warnings.catch_warnings(record=True) as left_open:
        warnings.simplefilter("always", ResourceWarning)
        tasks = [asyncio.create_task(write(n)) for n in range(200)]
        await tasks[40]
        before = started
        await asyncio.gather(container.close(), container.close())
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        gc.collect()
    assert [str(warning.message) for warning in left_open if issubclass(warning.category, ResourceWarning)] == []
    done = {n for n, outcome in enumerate(outcomes) if not isinstance(outcome, BaseException)}
    assert {type(outcome) for n, outcome in enumerate(outcomes) if n not in done} <= {ClosedError}
    assert done >= set(range(before))
    async with Container(settings) as other:
        rows = await other.signal_db_service.find_all()
        assert {int(row.exchange_name[1:]) for row in rows} == done
        cached = [await other.signal_cache_service.get_signal_id("s", "t", f"e{n}") for n in sorted(done)]
        assert cached == [outcomes[n].id for n in sorted(done)]  # pyright: ignore[reportUnknownMemberType, reportAttributeAccessIssue, reportUnknownVariableType]


async def test_close_waits_for_commands_of_the_cache(settings: Settings) -> None:
    """Maps used on their own, before and while it closes, end with a result, or a ClosedError."""
    container = Container(settings)
    gc.collect()  # what other tests left
    with warnings.catch_warnings(record=True) as left_open:
        warnings.simplefilter("always", ResourceWarning)
        tasks = [asyncio.create_task(container.signal_cache_service.set(f"k{n}", "v")) for n in range(200)]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        closing = asyncio.create_task(container.close())
        while not closing.done():
            tasks.append(asyncio.create_task(container.signal_cache_service.set(f"k{len(tasks)}", "v")))
            await asyncio.sleep(0)
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        gc.collect()
    assert [str(warning.message) for warning in left_open if issubclass(warning.category, ResourceWarning)] == []
    assert Counter(map(type, outcomes)).keys() <= {type(None), ClosedError}


async def test_close_gives_up_after_the_deadline(settings: Settings, failing: Failing) -> None:
    """A write that hangs is waited for as long as the deadline; it says that it may have been applied."""
    container = Container(settings.model_copy(update={"mongo_timeout_ms": 500}))
    await container.signal_db_service.wait_for_init()
    async with failing("findAndModify", blockConnection=True, blockTimeMS=2000):
        writing = asyncio.create_task(container.signal_db_service.upsert("s", "t", "e", {"n": 1}))
        await wait_until_running(settings, "findAndModify")
        _, seconds = await timed(container.close())
        assert seconds < 0.5 + GRACE
        with pytest.raises(WriteOutcomeUnknownError):
            await writing


async def test_close_does_not_wait_for_a_long_index_build(settings: Settings, failing: Failing) -> None:
    """`wait_for_init` may take minutes; closing gives it the deadline, and it ends with a typed error."""
    container = Container(settings.model_copy(update={"mongo_timeout_ms": 500}))
    async with failing("createIndexes", blockConnection=True, blockTimeMS=3000):
        preparing = asyncio.create_task(container.wait_for_init())
        await wait_until_running(settings, "createIndexes")
        _, seconds = await timed(container.close())
        assert seconds < 1 + GRACE  # of the client as well
        with pytest.raises(BacktestPersistError):
            await preparing


async def test_close_in_a_cancelled_task(settings: Settings, failing: Failing) -> None:
    """A task that closes when it is cancelled in a write, and is cancelled again, closes all the same."""
    container = Container(settings)
    await container.signal_db_service.wait_for_init()
    closed = False

    async def work() -> None:
        nonlocal closed
        try:
            await container.signal_db_service.upsert("s", "t", "e", {"n": 1})
        finally:
            try:
                await container.close()
            finally:
                closed = True

    async with failing("findAndModify", blockConnection=True, blockTimeMS=300):
        task = asyncio.create_task(work())
        await wait_until_running(settings, "findAndModify")
        task.cancel()
        await asyncio.sleep(0)
        task.cancel()
        async with asyncio.timeout(HANG):
            await asyncio.wait([task])
    assert task.cancelled()
    assert closed
    assert container.mongo_service._states.current_value is None
    with pytest.raises(ClosedError):
        await container.signal_db_service.find_by_context("s", "t", "e")
    await wait_until_disconnected(settings)
    async with Container(settings) as other:
        assert await other.signal_db_service.find_by_context("s", "t", "e")


async def test_writes_in_finally_at_the_end_of_a_loop_are_stored(settings: Settings, failing: Failing) -> None:
    """Twelve strategies have a write in flight or pending when `asyncio.run` ends; each writes again in `finally`."""
    container = Container(settings)
    db = container.signal_db_service
    acknowledged: dict[str, str] = {}
    running: list[asyncio.Task[None]] = []

    async def strategy(name: str) -> None:
        try:
            while True:
                await db.upsert("s", "t", name, {"is": "running"})
        finally:
            acknowledged[name] = (await db.upsert("s", "t", name, {"is": "over"})).id

    async def main() -> None:
        await db.wait_for_init()
        running.extend(asyncio.create_task(strategy(f"sent{n}")) for n in range(6))
        await wait_until_running(settings, "update")
        running.extend(asyncio.create_task(strategy(f"pending{n}")) for n in range(6))
        await asyncio.sleep(0)

    for _ in range(3):  # who is cancelled first is a matter of luck
        acknowledged.clear()
        running.clear()
        async with failing("update", blockConnection=True, blockTimeMS=200):
            await asyncio.to_thread(lambda: asyncio.run(main()))
        assert [task.cancelled() for task in running] == [True] * 12
        async with Container(settings) as other:
            rows = await other.signal_db_service.find_all()
            assert {row.exchange_name: row.id for row in rows} == acknowledged
            assert [row.payload for row in rows] == [{"is": "over"}] * 12


async def test_iterating_while_it_closes(settings: Settings) -> None:
    """A list that is half read does not keep `close` from closing; the next batch is a ClosedError."""
    container = Container(settings)
    await container.log_db_service.create_many([{"id": f"{n}"} for n in range(500)])
    rows = container.log_db_service.iterate()
    await anext(rows)
    _, seconds = await timed(container.close())
    assert seconds < 1
    with pytest.raises(ClosedError):
        _ = [row async for row in rows]


NOTHING_TO_SEND = {"dispose", "restore"}
"""Calls that ask no server; `restore` with the arguments of the list, which are no documents."""


@pytest.mark.parametrize("case", CASES, ids=str)
async def test_nothing_can_be_called_after_close(settings: Settings, case: Case) -> None:
    """Every call of the db service, the cache service and the adapter is a ClosedError, and opens nothing."""
    container = Container(settings)
    db: Any = getattr(container, f"{case.domain}_db_service")
    row = await (
        db.upsert(*case.args, *case.written) if hasattr(db, "upsert") else db.create(*case.args[:-1], *case.written)
    )
    await container.close()
    calls = [*db_calls(container, case), *cache_calls(container, case, row), *adapter_calls(container, case)]
    tasks = asyncio.all_tasks()
    open_still: list[str] = []
    for call in calls:
        if call.name in NOTHING_TO_SEND:
            continue
        try:
            await run_to_end(call.make(**call.arguments))
        except ClosedError:
            continue
        open_still.append(str(call))
    assert open_still == []
    assert asyncio.all_tasks() == tasks


async def test_a_write_to_a_client_that_others_closed(settings: Settings, driver: str) -> None:
    """A client that somebody else closed is an unknown outcome for a write, and a ClosedError for a read."""
    container = Container(settings)
    await container.signal_db_service.wait_for_init()
    await close_client(container.mongo_service.client)
    if driver == "pymongo":  # Motor's opens again
        with pytest.raises(WriteOutcomeUnknownError):
            await container.signal_db_service.upsert("s", "t", "e", {"n": 1})
        with pytest.raises((ClosedError, StoreUnavailableError)):
            await container.signal_db_service.find_by_context("s", "t", "e")
    await container.close()
