"""A process that forks while it has connections: the child opens new ones, or gets an error; neither hangs."""

import asyncio
import os

import pytest

from backtest_persist import Settings
from tests.support.processes import settings_environment, start_python
from tests.support.stopwatch import HANG

_PROGRAM = """
import asyncio, os, sys, time
from backtest_persist import base_map, ioc

async def work(who, count):
    if who == "child":  # by an id that it knows from its parent
        assert await ioc.signal_db_service.find_by_context("s", "t", "parent") is not None
    prices = base_map("prices")(ioc.redis_service)
    for n in range(count):
        await ioc.signal_db_service.upsert("s", "t", who, {"n": n})
        row = await ioc.signal_db_service.find_by_context("s", "t", who)
        assert row is not None and row.payload == {"n": n}, (who, n, row)
        await prices.set(f"{who}{n}", f"{who}{n}")
        assert await prices.get(f"{who}{n}") == f"{who}{n}"

def in_child(work):
    try:
        work()
        os._exit(0)
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", flush=True)
        os._exit(1)

async def forks():
    await work("parent", 10)
    if not (child := os.fork()):
        in_child(lambda: asyncio.run(work("child", 50)))
    await work("parent", 50)
    status = await asyncio.to_thread(os.waitpid, child, 0)
    await work("parent", 10)
    await ioc.close()
    sys.exit(os.waitstatus_to_exitcode(status[1]))

def forks_between():
    loop = asyncio.new_event_loop()
    loop.run_until_complete(work("parent", 10))
    if not (child := os.fork()):
        in_child(lambda: loop.run_until_complete(work("child", 50)))
    loop.run_until_complete(work("parent", 50))
    status = os.waitpid(child, 0)[1]
    loop.run_until_complete(work("parent", 10))
    loop.run_until_complete(ioc.close())
    sys.exit(os.waitstatus_to_exitcode(status))

asyncio.run(forks()) if sys.argv[1] == "inside" else forks_between()
"""


async def _run(settings: Settings, where: str) -> tuple[int | None, str]:
    process = await start_python(
        *("-c", _PROGRAM, where),
        environment=settings_environment(settings),
        stdout=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    try:
        async with asyncio.timeout(HANG):
            said, _ = await process.communicate()
    except TimeoutError:
        os.killpg(process.pid, 9)
        await process.wait()
        pytest.fail("parent or child hangs")
    return process.returncode, said.decode()


async def test_a_forked_child_in_a_new_loop_opens_its_own_connections(settings: Settings) -> None:
    """A child that a coroutine forked works by asyncio.run, next to its parent: each reads what it has written."""
    assert await _run(settings, "inside") == (0, "")


async def test_a_forked_child_in_its_parents_loop_is_told_so(settings: Settings) -> None:
    """A child that goes on with the loop of its parent gets an error, and its parent does not notice."""
    code, said = await _run(settings, "between")
    assert (code, said.partition(";")[0]) == (
        1,
        "SettingsError: This event loop belongs to the process that was forked",
    )
