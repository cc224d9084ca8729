"""The parts of which a deadline is made: a timer that counts in steps, the driver's deadline, and both together."""

import asyncio
import time
from contextlib import AbstractContextManager, nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
from pymongo import _csot

from backtest_persist.connections.deadlines import SELECTION_SECONDS, Deadline, StepTimer, driver_timeout
from backtest_persist.connections.selection import ServerSelection
from backtest_persist.connections.translation import Operation, mongo_errors
from backtest_persist.errors import ErrorReason, StoreUnavailableError
from tests.support.stopwatch import Stopwatch


def client(*, writable: bool = True) -> Any:
    """A client that knows, or does not know, of a primary."""
    return SimpleNamespace(topology_description=SimpleNamespace(has_writable_server=lambda: writable))


KNOWN = ServerSelection(client(), srv=False)


async def test_a_limit_raises_after_its_time_and_a_step_at_most() -> None:
    """It is a `TimeoutError`, as of `asyncio.timeout`."""
    timer = StepTimer(0.01)
    started = time.monotonic()
    with Stopwatch() as watch, pytest.raises(TimeoutError):
        async with timer.limit(0.05):
            await asyncio.Event().wait()
    assert time.monotonic() - started >= 0.05
    assert watch.seconds < 0.5
    timer.close()


async def test_a_limit_that_is_not_reached_does_nothing() -> None:
    """Nor is it counted for any more."""
    timer = StepTimer(0.01)
    async with timer.limit(0.02):
        await asyncio.sleep(0)
    await asyncio.sleep(0.06)
    assert timer._limits == set()
    assert timer._timer is None


async def test_of_a_busy_loop_one_step_passes() -> None:
    """An answer that came meanwhile is seen: the loop was not free to see it."""
    timer = StepTimer(0.02)
    async with timer.limit(0.06):
        answer = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_later(0.001, answer.set_result, None)
        time.sleep(0.3)  # noqa: ASYNC251  # the strategy computes something
        await answer
    timer.close()


async def test_one_timer_counts_for_all_limits() -> None:
    """Each has its own time; the event loop has one timer for them."""
    timer = StepTimer(0.01)
    ends: list[str] = []

    async def wait(name: str, seconds: float) -> None:
        try:
            async with timer.limit(seconds):
                await asyncio.Event().wait()
        except TimeoutError:
            ends.append(name)

    await asyncio.gather(wait("long", 0.09), wait("short", 0.02), wait("middle", 0.05))
    assert ends == ["short", "middle", "long"]


async def test_a_limit_leaves_the_cancellation_of_others_alone() -> None:
    """A task that is cancelled is cancelled."""
    timer = StepTimer(0.01)

    async def wait() -> None:
        async with timer.limit(5):
            await asyncio.Event().wait()

    task = asyncio.create_task(wait())
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    timer.close()


def remaining(timeout: AbstractContextManager[None]) -> float:
    with timeout:
        left = _csot.remaining()
    assert left is not None
    return left


def test_the_deadline_of_the_driver() -> None:
    """Shorter by the time in which it does not look at its clock, while it knows of no server; never without end."""
    assert remaining(driver_timeout(client(), 5)) == pytest.approx(5, abs=0.1)
    assert remaining(driver_timeout(client(writable=False), 5)) == pytest.approx(5 - SELECTION_SECONDS, abs=0.1)
    assert remaining(driver_timeout(client(writable=False), 0.4)) == pytest.approx(0.2, abs=0.05)
    assert 0 < remaining(driver_timeout(client(), 0)) <= 0.001


async def test_a_deadline_bounds_the_driver_and_the_caller() -> None:
    """Within it the driver has its deadline; a driver that exceeds it is an error of ours."""
    timer = StepTimer(0.01)

    async def find() -> None:
        async with Deadline(client(), KNOWN, 0.05, timer.limit(0.05), mongo_errors(Operation("find", "signal-items"))):
            assert _csot.remaining() is not None
            await asyncio.Event().wait()

    with pytest.raises(StoreUnavailableError, match="no answer within the deadline") as caught:
        await find()
    assert (caught.value.reason, caught.value.collection) == (ErrorReason.TIMEOUT, "signal-items")
    assert _csot.remaining() is None
    timer.close()


async def test_a_deadline_without_a_limit_lets_the_driver_exceed_it() -> None:
    """For a driver that does not bear to be cancelled by a timer."""
    async with Deadline(client(), KNOWN, 0.01, nullcontext(), mongo_errors(Operation("Find"))):
        await asyncio.sleep(0.05)


async def test_a_cancellation_within_a_deadline_is_not_translated() -> None:
    """Nor swallowed, if the driver has swallowed it."""

    async def forget() -> None:
        async with Deadline(client(), KNOWN, 5, nullcontext(), mongo_errors(Operation("Find"))):
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                return

    task = asyncio.create_task(forget())
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
