"""Time as the event loop sees it: bounds on it hold on a busy machine, where other processes take turns."""

import asyncio
import os
import time
from collections.abc import Awaitable
from pathlib import Path
from typing import Any, Self
from weakref import WeakKeyDictionary

from backtest_persist import BacktestPersistError

__all__ = ("GRACE", "HANG", "Stopwatch", "pauses", "slowness", "timed")

GRACE = 0.25
"""Seconds that an operation may take longer than its deadline."""
HANG = 60.0
"""Seconds after which something hangs: many times what it takes on a busy machine, where no bound is stated."""
TICK = 0.01
_SCHEDSTAT = Path("/proc/thread-self/schedstat")


class _Clock:
    """Ticks in an event loop while a stopwatch runs there; at most two ticks count of the time between two of them."""

    def __init__(self) -> None:
        self._counted = 0.0
        self._ticked = time.monotonic()
        self._watched = 0
        self._timer: asyncio.TimerHandle | None = None

    def read(self) -> float:
        now = time.monotonic()
        self._counted += min(now - self._ticked, 2 * TICK)
        self._ticked = now
        return self._counted

    def watch(self, change: int) -> None:
        self._watched += change
        if self._timer is None:
            self._tick()

    def _tick(self) -> None:
        self.read()
        self._timer = asyncio.get_running_loop().call_later(TICK, self._tick) if self._watched else None


_clocks: WeakKeyDictionary[asyncio.AbstractEventLoop, _Clock] = WeakKeyDictionary()


class Stopwatch:
    """Counts the `seconds` of a block in which its event loop was free to see an answer.

    Time in which the loop was busy itself does not count either; `pauses` finds that.
    """

    def __enter__(self) -> Self:
        self._clock = _clocks.setdefault(asyncio.get_running_loop(), _Clock())
        self._clock.watch(1)
        self._started = self._clock.read()
        return self

    def __exit__(self, *raised: object) -> None:
        self.seconds = self._clock.read() - self._started
        self._clock.watch(-1)


async def timed(operation: Awaitable[Any]) -> tuple[Any, float]:
    """Return the result of an operation or its typed error, and the seconds it took; any other error is raised."""
    with Stopwatch() as watch:
        try:
            result = await operation
        except BacktestPersistError as error:
            result = error
    return result, watch.seconds


async def pauses(done: asyncio.Future[Any]) -> list[float]:
    """Return for how many seconds each time, until `done`, the event loop ran no other task; the longest last.

    Time in which this thread could have run, and other processes had all processors, does not count.
    """
    found, last = list[float](), time.monotonic() - _seconds_without_processor()
    while not done.done():
        await asyncio.sleep(0.005)
        now = time.monotonic() - _seconds_without_processor()
        found.append(now - last)
        last = now
    return sorted(found)


def _seconds_without_processor() -> float:
    """How long this thread has waited for a processor so far, as the kernel has counted it; 0 where it does not."""
    try:
        return int(_SCHEDSTAT.read_text().split()[1]) / 1e9
    except OSError:
        return 0.0


def slowness() -> float:
    """How many times as long as on a quiet machine a server may take now: by the load of each processor, or 1."""
    return max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))
