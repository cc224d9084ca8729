"""Runs whose process is killed or paused at any instant: no bar is stored in part, and none is done twice."""

import asyncio
import os
import random
import signal
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, nullcontext
from typing import Any

import pytest

from backtest_persist import (
    ClosedError,
    Container,
    Mode,
    Registry,
    Settings,
    StoreUnavailableError,
    WriteOutcomeUnknownError,
    WriteRejectedError,
)
from backtest_persist.errors import LeaseHeldError
from tests.support.fail_points import Failing
from tests.support.killed_runs import Host, check, contents, host, play, run_of
from tests.support.proxy import with_short_deadline
from tests.support.servers import suspended, wait_until, wait_until_running


@pytest.fixture(scope="module")
async def processes() -> AsyncIterator[Host]:
    """The host of all processes of these tests."""
    async with host() as processes:
        yield processes


SECONDS = 2.0
"""Within which the first bar of a successor is stored."""


async def succeed(container: Container, symbol: str, mode: Mode) -> int:
    """Take over from a process that was just killed, do one bar, and return how many are stored."""
    started = time.monotonic()
    async with run_of(Registry(container), symbol, mode, lease_wait=1) as run:
        before, entered = run.bars, time.monotonic()
        assert await check(container, symbol, mode) == before
        checked = time.monotonic()
        await play(run, before + 1)
        await run.flush()
        seconds = entered - started + time.monotonic() - checked
    assert seconds < SECONDS, (entered - started, seconds)
    return before + 1


async def kill_often(container: Container, processes: Host, mode: Mode, kills: int, seed: int) -> None:
    """Kill the processes of a run one after another, and compare the end with that of a run that was left alone."""
    draw, bars = random.Random(seed), 0

    async def has_done_bars() -> bool:
        stored = (await contents(container, "killed", mode))["session"]
        return bool(stored) and stored[0]["payload"]["bars"] > bars

    for kill in range(kills):
        pid = await processes.start(container.settings, "killed", mode)
        if kill % 4:
            await processes.says("running")
        if kill == 1:
            await wait_until(has_done_bars, 30)
        await asyncio.sleep(draw.random() * 0.2)
        os.kill(pid, signal.SIGKILL)
        now = await succeed(container, "killed", mode)
        assert now > bars
        bars = now
    async with run_of(Registry(container), "whole", mode) as run:
        await play(run, bars)
    killed, whole = [await contents(container, symbol, mode) for symbol in ("killed", "whole")]
    for name, documents in killed.items():
        assert repr(documents).replace("killed", "whole") == repr(whole[name]).replace("killed", "whole"), name


@pytest.mark.parametrize("mode", [Mode.LIVE, Mode.BACKTEST])
async def test_killed_at_any_instant(container: Container, processes: Host, mode: Mode) -> None:
    """What is stored is the last bar that was committed; the next process goes on from there within 2 s, to the end."""
    await kill_often(container, processes, mode, 5, 1)


@pytest.mark.soak
@pytest.mark.parametrize("mode", [Mode.LIVE, Mode.BACKTEST])
async def test_killed_two_hundred_times(container: Container, processes: Host, mode: Mode) -> None:
    """The same, 100 times in each mode."""
    await kill_often(container, processes, mode, 100, random.randrange(1 << 32))


@pytest.mark.parametrize("command", ["update", "commitTransaction"])
async def test_killed_inside_of_a_transaction(
    settings: Settings, container: Container, processes: Host, failing: Failing, command: str
) -> None:
    """It has locked the documents of the bar and the lease; its successor ends it."""
    await succeed(container, "killed", Mode.LIVE)
    async with failing(command, times=1000, blockConnection=True, blockTimeMS=200):
        pid = await processes.start(settings, "killed", Mode.LIVE)

        await wait_until_running(settings, command)
        await asyncio.sleep(0.5 if command == "update" else 0)  # the first one is the fence
        os.kill(pid, signal.SIGKILL)
    assert await succeed(container, "killed", Mode.LIVE) in (2, 3)


@pytest.mark.parametrize("at", ["anywhere", "in a transaction"])
async def test_a_paused_process_that_goes_on_stores_nothing(
    settings: Settings, container: Container, processes: Host, failing: Failing, at: str
) -> None:
    """The second run is refused while the lease lasts, then admitted; the first one ends with a `LeaseLostError`.

    Also if it was paused in a transaction, for longer than the deadline of that. If it was paused in the commit, it may
    end with a `WriteOutcomeUnknownError`: the second run has begun after that bar, or has done it itself.
    """
    persist = Registry(container)
    pid = await processes.start(with_short_deadline(settings), "killed", Mode.LIVE, 1)
    await processes.says("running")

    async def has_begun() -> bool:
        return await container.session_db_service.count({}) > 0

    await wait_until(has_begun, 10)
    run = run_of(persist, "killed", Mode.LIVE, lease_wait=10)
    blocked = failing("update", times=1000, blockConnection=True, blockTimeMS=300)
    async with AsyncExitStack() as stack:
        async with blocked if at == "in a transaction" else nullcontext():
            if at == "in a transaction":
                await wait_until_running(settings, "update")
            await stack.enter_async_context(suspended(pid))
            with pytest.raises(LeaseHeldError):
                await run_of(persist, "killed", Mode.LIVE).__aenter__()
        await run.__aenter__()
        before = run.bars
        await play(run, before + 2)
        await asyncio.sleep(1)  # beyond the deadline and what it may be late
    await processes.says("LeaseLostError", *(["WriteOutcomeUnknownError"] if at == "anywhere" else []))
    await play(run, before + 4)
    await run.__aexit__(None, None, None)
    assert await check(container, "killed", Mode.LIVE) == before + 4


# --- faults of the server ---


async def test_a_live_bar_that_could_not_be_stored_can_be_done_again(
    settings: Settings, container: Container, failing: Failing
) -> None:
    """Its session is what it was; where nobody knows whether it is stored, the run cannot go on."""
    await succeed(container, "killed", Mode.LIVE)
    async with Container(with_short_deadline(settings)) as other:
        async with run_of(Registry(other), "killed", Mode.LIVE) as run:
            await play(run, 3)
            session = dict(run.session)
            for fault in ({"closeConnection": True}, {"errorCode": 112}, {"errorCode": 13}):
                async with failing("update", times=10_000, **fault):
                    with pytest.raises((StoreUnavailableError, WriteRejectedError)):
                        await play(run, 4)
                assert (run.bars, run.session) == (3, session)
            await play(run, 5)
        assert await check(container, "killed", Mode.LIVE) == 5
        lost = run_of(Registry(other), "killed", Mode.LIVE)
        with pytest.raises(WriteOutcomeUnknownError):  # noqa: PT012  # it is raised again at the end of the run
            async with lost as run:
                async with failing("commitTransaction", times=10_000, closeConnection=True):
                    with pytest.raises(WriteOutcomeUnknownError):
                        await play(run, 6)
                with pytest.raises(WriteOutcomeUnknownError):
                    await play(run, 8)
        async with run_of(Registry(other), "killed", Mode.LIVE) as run:
            assert run.bars in (5, 6)
            assert await check(container, "killed", Mode.LIVE) == run.bars
            await play(run, 8)
    assert await check(container, "killed", Mode.LIVE) == 8


async def test_a_backtest_whose_commit_fails_ends(settings: Settings, container: Container, failing: Failing) -> None:
    """With a typed error; another run goes on after the last bar that is stored."""
    async with Container(with_short_deadline(settings)) as other:
        run = await run_of(Registry(other), "killed", Mode.BACKTEST).__aenter__()
        await play(run, 4)
        await run.flush()
        async with failing("update", times=10_000, errorCode=112):
            with pytest.raises(StoreUnavailableError, match="in its way"):
                await play(run, 1000)
        with pytest.raises(StoreUnavailableError, match="in its way"):
            await run.__aexit__(None, None, None)
        assert run.bars < 40
        assert await check(container, "killed", Mode.BACKTEST) == 4
        async with run_of(Registry(other), "killed", Mode.BACKTEST) as run:
            assert run.bars == 4
            await play(run, 20)
    assert await check(container, "killed", Mode.BACKTEST) == 20


async def test_cancelled_in_a_commit(settings: Settings, container: Container, failing: Failing) -> None:
    """The bar is carried through, and the run can be entered again at once."""
    await succeed(container, "killed", Mode.LIVE)

    async def strategy() -> None:
        async with run_of(Registry(container), "killed", Mode.LIVE) as run:
            await play(run, 1000)

    async with failing("commitTransaction", times=100, blockConnection=True, blockTimeMS=300):
        running = asyncio.create_task(strategy())

        await wait_until_running(settings, "commitTransaction")
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert await check(container, "killed", Mode.LIVE) == 2
    assert await succeed(container, "killed", Mode.LIVE) == 3


async def test_a_container_that_is_closed_under_a_run(settings: Settings, container: Container) -> None:
    """The commit in progress is waited for; the run ends with a `ClosedError`, and no bar is stored in part."""
    other = Container(settings)
    ended: list[Any] = []

    async def strategy() -> None:
        async with run_of(Registry(other), "killed", Mode.LIVE) as run:
            await play(run, 1000)

    running = asyncio.create_task(strategy())
    running.add_done_callback(ended.append)
    await asyncio.sleep(0.3)
    await other.close()
    with pytest.raises(ClosedError):
        await running
    bars = await check(container, "killed", Mode.LIVE)
    assert await succeed(container, "killed", Mode.LIVE) == bars + 1
