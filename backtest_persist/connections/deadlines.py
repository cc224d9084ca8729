"""Deadlines: how long something that is awaited may take, counted by the event loop and by the driver."""

import asyncio
import math
import sys
import time
from contextlib import AbstractAsyncContextManager, AbstractContextManager, nullcontext
from typing import Any, cast

import pymongo
from pymongo import AsyncMongoClient
from pymongo.errors import AutoReconnect, ServerSelectionTimeoutError

from backtest_persist.connections.selection import ServerSelection
from backtest_persist.connections.workarounds import raise_swallowed_cancellation

__all__ = ("SELECTION_SECONDS", "Deadline", "StepTimer", "driver_timeout")

SELECTION_SECONDS = 0.5
"""How often PyMongo looks at its clock while it waits for a server."""


class StepTimer:
    """Bounds what is awaited in one event loop by a time in which the loop was free to see an answer.

    The time is counted in steps: while the loop is busy with something else, however long, at most one passes. One
    timer serves all limits; a timer for each would cost as much as a command of Redis.
    """

    def __init__(self, step: float) -> None:
        self._step = step
        self._limits: set[_Limit] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._next = 0.0

    def limit(self, seconds: float) -> AbstractAsyncContextManager[None]:
        """Raise a `TimeoutError` after so many seconds, and a step at most."""
        return _Limit(self, max(1, math.ceil(seconds / self._step - 0.01) + 1))  # the first may be short

    def add(self, limit: "_Limit") -> None:
        """Count for this limit from now on."""
        self._limits.add(limit)
        if self._timer is None:
            self._schedule(asyncio.get_running_loop().time())

    def discard(self, limit: "_Limit") -> None:
        """Count for this limit no more."""
        self._limits.discard(limit)

    def _pass(self) -> None:
        for limit in self._limits:
            limit.step()
        self._timer = None
        if self._limits:
            self._schedule(max(self._next, asyncio.get_running_loop().time() - self._step))

    def _schedule(self, last: float) -> None:
        self._next = last + self._step
        self._timer = asyncio.get_running_loop().call_at(self._next, self._pass)

    def close(self) -> None:
        """Stop; nothing is awaited any more."""
        if self._timer is not None:
            self._timer.cancel()


class _Limit(AbstractAsyncContextManager[None]):
    __slots__ = ("_left", "_timeout", "_timer")

    def __init__(self, timer: StepTimer, steps: int) -> None:
        self._timer = timer
        self._left = steps
        self._timeout = asyncio.timeout(None)

    async def __aenter__(self) -> None:
        await self._timeout.__aenter__()
        self._timer.add(self)

    def step(self) -> None:
        self._left -= 1
        if not self._left:
            self._timeout.reschedule(asyncio.get_running_loop().time())

    async def __aexit__(self, *raised: Any) -> None:
        self._timer.discard(self)
        await self._timeout.__aexit__(*raised)


def driver_timeout(client: AsyncMongoClient[Any], seconds: float) -> AbstractContextManager[None]:
    """Return the deadline of the driver, which both drivers know by a context variable.

    It is shorter while the driver knows of no server: it then looks at its clock every `SELECTION_SECONDS` only.
    """
    if not client.topology_description.has_writable_server():
        seconds -= min(SELECTION_SECONDS, seconds / 2)
    return pymongo.timeout(max(seconds, 0.001))  # 0 would be no deadline


class Deadline(AbstractAsyncContextManager[None]):
    """The deadline of the driver, which knows best what was wrong, and a limit for when the driver exceeds it.

    A class, as it is entered around every command: a generator would cost several times as much.
    """

    __slots__ = ("_client", "_driver", "_errors", "_limit", "_requests", "_seconds", "_selection", "_task")

    def __init__(
        self,
        client: AsyncMongoClient[Any],
        selection: ServerSelection,
        seconds: float,
        limit: AbstractAsyncContextManager[None],
        errors: AbstractContextManager[None],
    ) -> None:
        self._client = client
        self._selection = selection
        self._seconds = seconds
        self._limit = limit
        self._errors = errors
        self._driver: AbstractContextManager[None] = nullcontext()

    async def __aenter__(self) -> None:
        self._task = cast("asyncio.Task[Any]", asyncio.current_task())
        self._requests = self._task.cancelling()
        seconds = self._seconds
        await self._limit.__aenter__()
        is_known = self._selection.is_known
        if not is_known and self._selection.is_up_to_us(seconds):
            started = time.monotonic()
            try:
                await self._selection.wait(seconds)
            except BaseException:
                await self.__aexit__(*sys.exc_info())
                raise
            seconds = max(0.0, seconds - (time.monotonic() - started))
        driver = pymongo.timeout(max(seconds, 0.001)) if is_known else driver_timeout(self._client, seconds)
        driver.__enter__()
        self._driver = driver

    async def __aexit__(self, *raised: Any) -> None:
        self._driver.__exit__(*raised)
        error: BaseException | None = raised[1]
        if isinstance(error, AutoReconnect) and not isinstance(error, ServerSelectionTimeoutError):
            self._selection.was_known = True  # the connection that broke had been opened
        try:
            await self._limit.__aexit__(*raised)
        except TimeoutError as timeout:
            error = timeout
        if self._task.cancelling() > self._requests:
            await raise_swallowed_cancellation(self._task, self._requests, error)
        self._errors.__exit__(None if error is None else type(error), error, None)
