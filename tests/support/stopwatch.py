"""A stopwatch that a busy machine does not disturb: bounds on time speak of the program, not of what runs beside it."""

import asyncio
import time
from collections.abc import Awaitable
from typing import Any, Self
from weakref import WeakKeyDictionary

from backtest_persist import BacktestPersistError

__all__ = ("GRACE", "Stopwatch", "pauses", "timed")

GRACE = 0.25
"""Seconds by which an operation may end after its deadline."""
TICK = 0.01


class _Clock:
    """Ticks in one event loop while somebody looks at it; of the time between two ticks two ticks count at most."""

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
    """Counts `seconds` in which the event loop of this block was free to see an answer.

    What the loop itself was busy with does not count either: `pauses` looks for that.
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
    """What an operation returns, or its typed error, and after how many seconds; any other error is raised."""
    with Stopwatch() as watch:
        try:
            result = await operation
        except BacktestPersistError as error:
            result = error
    return result, watch.seconds


async def pauses(done: asyncio.Future[Any]) -> list[float]:
    """For how long the event loop did not run another task, each time until something is done; the longest last."""
    found, last = list[float](), time.monotonic()
    while not done.done():
        await asyncio.sleep(0.005)
        now = time.monotonic()
        found.append(now - last)
        last = now
    return sorted(found)
