"""Cancelled writes: one that the server has received is never applied after a later one, and nothing leaks."""

import asyncio
import concurrent.futures
import subprocess
import threading
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

import pytest
from anyio import move_on_after
from motor.frameworks.asyncio import _EXECUTOR

from backtest_persist import Container, Settings
from backtest_persist.connections import Operation
from backtest_persist.core import mongo_store
from tests.support.containers import open_container
from tests.support.fail_points import Failing
from tests.support.processes import settings_environment, start_python
from tests.support.proxy import acknowledged
from tests.support.servers import command_monitor, wait_until, wait_until_ended, wait_until_running
from tests.support.stopwatch import Stopwatch

Write = Callable[[Container, int], Coroutine[Any, Any, Any]]
Read = Callable[[Container], Coroutine[Any, Any, Any]]


async def _read_signal(container: Container) -> Any:
    row = await container.signal_db_service.find_by_context("s", "t", "e")
    return row and row.payload


async def _read_storage(container: Container) -> Any:
    row = await container.storage_db_service.find_by_context(True, "a")
    return row and row.payload and {"n": row.payload["n"]}


async def _read_interval(container: Container) -> Any:
    row = await container.interval_db_service.find_by_context("b", "k")
    return row and row.payload


WRITES: dict[str, tuple[str, Write, Write, Read]] = {
    "upsert": (
        "findAndModify",
        lambda container, n: container.signal_db_service.upsert("s", "t", "e", {"n": n}),
        lambda container, n: container.signal_db_service.upsert("s", "t", "e", {"n": n}),
        _read_signal,
    ),
    "upsert_many": (
        "update",
        lambda container, n: container.storage_db_service.upsert_many(True, [{"id": "a", "n": n}]),
        lambda container, n: container.storage_db_service.upsert_many(True, [{"id": "a", "n": n}]),
        _read_storage,
    ),
    "upsert after upsert_many": (
        "update",
        lambda container, n: container.storage_db_service.upsert_many(True, [{"id": "a", "n": n}]),
        lambda container, n: container.storage_db_service.upsert(True, "a", {"id": "a", "n": n}),
        _read_storage,
    ),
    "upsert after clear_bucket": (
        "delete",
        lambda container, n: container.interval_db_service.clear_bucket("b"),
        lambda container, n: container.interval_db_service.upsert("b", "k", {"n": n}, 0),
        _read_interval,
    ),
}
"""The command, the write that is cancelled, the later one, and how to read."""


@pytest.mark.parametrize("configured_anew", [False, True])
@pytest.mark.parametrize("kind", WRITES)
async def test_a_write_cancelled_in_the_server_is_never_applied_last(
    container: Container, settings: Settings, failing: Failing, kind: str, configured_anew: bool
) -> None:
    """The server is slow with write A, whose caller is cancelled; write B is acknowledged, and stays."""
    command, write_a, write_b, read = WRITES[kind]
    await write_a(container, 0)
    await write_b(container, 0)
    background = asyncio.all_tasks()
    async with failing(command, blockConnection=True, blockTimeMS=1000):
        cancelled = asyncio.create_task(write_a(container, 1))

        await wait_until_running(settings, command)
        cancelled.cancel()
        await asyncio.wait([cancelled])
        assert cancelled.cancelled()
        if configured_anew:
            container.configure(settings)
        await write_b(container, 2)
        assert await read(container) == {"n": 2}
        await wait_until_ended(settings, command)
    assert await read(container) == {"n": 2}
    async with Container(settings) as other:
        assert await read(other) == {"n": 2}
    assert {task for task in asyncio.all_tasks() - background if "pymongo" not in repr(task)} == set()


@pytest.mark.parametrize("kind", WRITES)
async def test_a_write_cut_off_by_the_end_of_its_loop_is_never_applied_last(
    settings: Settings, failing: Failing, kind: str
) -> None:
    """The server is slow with write A when `asyncio.run` ends; write B, in the next one, is acknowledged, and stays."""
    command, write_a, write_b, read = WRITES[kind]
    container = Container(settings)
    cut_off: list[asyncio.Task[Any]] = []

    async def before() -> None:
        await write_a(container, 0)
        await write_b(container, 0)

    async def first() -> None:
        cut_off.append(asyncio.create_task(write_a(container, 1)))
        await wait_until_running(settings, command)

    def in_loops_of_their_own(*runs: Coroutine[Any, Any, None]) -> None:
        for run in runs:
            asyncio.run(run)

    await asyncio.to_thread(in_loops_of_their_own, before())
    async with failing(command, blockConnection=True, blockTimeMS=1000):
        await asyncio.to_thread(in_loops_of_their_own, first(), write_b(container, 2))
        assert cut_off[0].cancelled()
        await wait_until_ended(settings, command)
    async with Container(settings) as other:
        assert await read(other) == {"n": 2}


async def test_a_timeout_around_a_call(container: Container, failing: Failing) -> None:
    """`asyncio.timeout` ends in time with TimeoutError, and the next write wins."""
    db = container.signal_db_service
    await db.upsert("s", "t", "e", {"n": 0})
    async with failing("findAndModify", blockConnection=True, blockTimeMS=300):
        with Stopwatch() as watch, pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await db.upsert("s", "t", "e", {"n": 1})
        assert watch.seconds < 0.25
        await db.upsert("s", "t", "e", {"n": 2})
    assert await _read_signal(container) == {"n": 2}


@pytest.mark.parametrize("end", ["cancelled", "timeout"])
async def test_a_list_that_ends_while_a_batch_hangs(
    settings: Settings, failing: Failing, end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who gives up a list while the server is at work on it gets CancelledError or TimeoutError, whatever else fails.

    The server is silent for longer than the deadline, also when the cursor is closed; or all threads of Motor are busy,
    so that the cursor is not closed.
    """
    monkeypatch.setattr(mongo_store, "LIST_BATCH", 10)

    async with (
        open_container(settings, mongo_timeout_ms=300) as container,
        command_monitor(settings, "getMore") as at_work,
    ):
        db = container.log_db_service
        await acknowledged(lambda: db.create_many([{"id": f"{n}"} for n in range(25)]))

        async def read(limit: asyncio.Timeout) -> None:
            async with limit:
                await db.find_all()

        async def begin() -> tuple[asyncio.Timeout, asyncio.Task[None]]:
            """Begin to read, again if the server was at work unseen, as happens on a busy machine."""
            while True:
                limit = asyncio.timeout(None)
                reading = asyncio.create_task(read(limit))
                while not reading.done():
                    if await at_work() and not reading.done():
                        return limit, reading
                reading.exception()

        async def free() -> bool:
            return not await at_work()

        async with failing("getMore", "killCursors", times=1000, blockConnection=True, blockTimeMS=400):
            for threads in (0, 0, 0, 0, 200):
                limit, reading = await begin()
                released = threading.Event()
                busy = [_EXECUTOR.submit(released.wait) for _ in range(threads)]
                if end == "cancelled":
                    reading.cancel()
                else:
                    limit.reschedule(asyncio.get_running_loop().time())
                await asyncio.wait([reading])
                released.set()
                await asyncio.to_thread(concurrent.futures.wait, busy)
                if end == "cancelled":
                    assert reading.cancelled(), reading.exception()
                else:
                    assert type(reading.exception()) is TimeoutError
                await wait_until(free)
        assert len(await acknowledged(db.find_all)) == 25


async def test_a_task_group_whose_sibling_fails(container: Container, settings: Settings, failing: Failing) -> None:
    """The calls of the group are cancelled, the error of the sibling comes out alone, and the next writes win."""
    db = container.signal_db_service
    await db.upsert("s", "t", "e", {"n": 0})
    tasks: list[asyncio.Task[Any]] = []

    async def work() -> None:
        async with asyncio.TaskGroup() as group:
            writing = [group.create_task(db.upsert("s", "t", f"e{n}" if n else "e", {"n": 1})) for n in range(20)]
            reading = [group.create_task(db.find_by_context("s", "t", f"e{n}")) for n in range(20)]
            tasks.extend([*writing, *reading])
            await wait_until_running(settings, "update")
            raise LookupError("sibling")

    async with failing("find", "update", times=3, blockConnection=True, blockTimeMS=500):
        with pytest.raises(ExceptionGroup) as caught:
            await work()
        assert [type(error) for error in caught.value.exceptions] == [LookupError]
        assert [task.cancelled() for task in tasks] == [True] * 40
        rows = await asyncio.gather(*(db.upsert("s", "t", f"e{n}", {"n": 2}) for n in range(20)))
        await db.upsert("s", "t", "e", {"n": 2})
    assert [await db.find_by_id(row.id) for row in rows] == rows
    assert await _read_signal(container) == {"n": 2}


async def test_a_cancellation_that_the_driver_forgets(container: Container) -> None:
    """An operation whose answer comes as its caller is cancelled is cancelled all the same, and a timeout ends it."""

    async def forgetful() -> None:
        async with container.mongo_service.operation(Operation("Test")):
            with suppress(asyncio.CancelledError):  # asyncio.wait_for does this, if the answer is there
                await asyncio.Event().wait()

    task = asyncio.create_task(forgetful())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await forgetful()
    with move_on_after(0.01) as scope:
        await forgetful()
    assert scope.cancelled_caught


_CHILD = """
import asyncio, gc
from backtest_persist import Container

async def main():
    asyncio.get_running_loop().slow_callback_duration = 10  # a busy machine is no fault
    async with Container() as container:
        db = container.signal_db_service
        for turn in range(40):
            calls = [asyncio.create_task(call) for call in (
                db.upsert("s", "t", f"e{turn}", {"n": 1}),
                db.find_by_context("s", "t", f"e{turn}"),
                container.storage_db_service.upsert_many(True, [{"id": f"{turn}"}]),
                container.signal_cache_service.get_signal_id("s", "t", f"e{turn}"),
                db.find_all({"symbol": "s"}),
            )]
            for _ in range(turn % 20):
                await asyncio.sleep(0)
            if turn % 2:
                for call in calls:
                    call.cancel()
            else:
                try:
                    async with asyncio.timeout(0.0005):
                        await asyncio.gather(*calls)
                except TimeoutError:
                    pass
            await asyncio.gather(*calls, return_exceptions=True)
            row = await db.upsert("s", "t", f"e{turn}", {"n": 2})
            assert await db.find_by_context("s", "t", f"e{turn}") == row
    gc.collect()
    print("done")

asyncio.run(main())
gc.collect()
"""


_LISTS = """
import asyncio, gc, itertools
from backtest_persist import Container

container = Container()
db = container.log_db_service
kept = []

async def use(work):
    asyncio.get_running_loop().slow_callback_duration = 10  # a busy machine is no fault
    await work()

async def fill():
    await db.create_many([{"id": f"{n}"} for n in range(2100)])  # of which a batch has 1000

async def leave():
    async for row in db.iterate():
        break

async def hold():
    for _ in range(10):  # the loop closes them in any order, before and after the client
        kept.append(db.iterate())
        await anext(kept[-1])

async def walk(rows):
    seen = 0
    async for row in db.iterate():
        seen += 1
        if seen == rows:
            kept.append(rows)
            await asyncio.Event().wait()

def still_open(*lists):
    async def work():
        tasks = [asyncio.create_task(walk(rows)) for rows in lists]
        before = len(kept)
        while len(kept) < before + len(tasks):
            await asyncio.sleep(0)
        kept.append(tasks)
    return work

def under_way(turns):
    async def work():
        await db.count()
        kept.append([asyncio.create_task(call) for call in (walk(2100), walk(0), db.find_all())])
        for _ in range(turns):
            await asyncio.sleep(0)
    return work

for work in (
    fill, leave, hold, still_open(1), still_open(1, 1000, 1001), *map(under_way, (0, 1, 2, 3, 4, 6, 10, 20, 40, 80))
):
    asyncio.run(use(work))
    kept.clear()
    gc.collect()
print("done")
"""


@pytest.mark.parametrize("program", [_CHILD, _LISTS], ids=["cancels", "leaves lists open"])
async def test_no_warnings_in_development_mode(settings: Settings, program: str) -> None:
    """A process that cancels all the time, or ends loops amid lists, with every check of Python on, says nothing."""
    child = await start_python(
        *("-X", "dev", "-W", "error", "-c", program),
        environment=settings_environment(settings),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(60):
            out, errors = await child.communicate()
    except TimeoutError:
        child.kill()
        await child.wait()
        pytest.fail("it hangs")
    assert (out.decode(), errors.decode(), child.returncode) == ("done\n", "", 0)
