"""Faults at every point of an operation: the first, the second, and so on until it has no more points.

There are two kinds of points: the awaits of the calling task, and the calls of the drivers, in whichever task they are
made (batches are sent by other tasks). At an await the caller is cancelled or its timeout expires; at a call the caller
is cancelled, or the driver reports a lost connection or a timeout, before or after the server has acted.
"""

import asyncio
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Generator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, Self

import pytest
import redis.exceptions
from motor.motor_asyncio import AsyncIOMotorClientSession, AsyncIOMotorCollection
from pymongo.asynchronous.client_session import AsyncClientSession
from pymongo.asynchronous.collection import AsyncCollection
from pymongo.errors import AutoReconnect, NetworkTimeout

from backtest_persist.connections.redis_connection import _Connection

__all__ = ("FAULTS", "HELD", "Drivers", "Fault", "Outcome", "intercepted_drivers")

Call = Callable[[], Awaitable[Any]]
Server = Literal["mongo", "redis"]

_ERRORS: dict[tuple[str, Server], Callable[[], Exception]] = {
    ("lost", "mongo"): lambda: AutoReconnect("connection closed"),
    ("lost", "redis"): lambda: redis.exceptions.ConnectionError("Connection closed by server."),
    ("late", "mongo"): lambda: NetworkTimeout("timed out"),
    ("late", "redis"): lambda: redis.exceptions.TimeoutError("Timeout reading from socket"),
}


@dataclass(frozen=True)
class Fault:
    """A fault, and the moment of a point at which it happens."""

    what: Literal["cancelled", "timeout", "lost", "late"]
    """The caller is cancelled or its `asyncio.timeout` expires; the driver reports a lost connection or a timeout."""
    when: Literal["waits", "wakes", "before", "after", "held"]
    """When the caller begins to wait or is woken; before or after the server acts, or while a request is held back."""

    def __str__(self) -> str:
        return f"{self.what}-{self.when}"

    @property
    def at_await(self) -> bool:
        """Whether its points are the awaits of the caller rather than the calls of the drivers."""
        return self.when in ("waits", "wakes")


HELD = Fault("cancelled", "held")
FAULTS = (
    Fault("cancelled", "waits"),
    Fault("cancelled", "wakes"),
    Fault("timeout", "waits"),
    Fault("cancelled", "before"),
    Fault("cancelled", "after"),
    Fault("lost", "before"),
    Fault("lost", "after"),
    Fault("late", "before"),
    Fault("late", "after"),
    HELD,
)


@dataclass
class Outcome:
    """The end of a disturbed operation."""

    met: bool
    """Whether the operation has that many points; if not, it was not disturbed."""
    value: Any = None
    error: BaseException | None = None


@dataclass
class _Point:
    fault: Fault
    number: int
    caller: "asyncio.Task[Any]"
    passed: int = 0


class _Disturbed:
    """Awaits a coroutine, and calls `disturb` when it suspends for the n-th time."""

    def __init__(self, coroutine: Coroutine[Any, Any, Any], number: int, disturb: Callable[[Any], None]) -> None:
        self._coroutine = coroutine
        self._number = number
        self._disturb = disturb
        self.count = 0

    def __await__(self) -> Generator[Any, Any, Any]:
        step: Callable[[Any], Any] = self._coroutine.send
        value: Any = None
        while True:
            try:
                awaited = step(value)
            except StopIteration as end:
                return end.value
            self.count += 1
            if self.count == self._number:
                self._disturb(awaited)
            try:
                step, value = self._coroutine.send, (yield awaited)
            except BaseException as error:
                step, value = self._coroutine.throw, error


@dataclass
class Drivers:
    """Counts the calls of both drivers, and disturbs one of them on demand."""

    released: asyncio.Event = field(default_factory=asyncio.Event)
    """Set to let a request go on that was held back."""
    _point: _Point | None = None

    async def attempt(self, fault: Fault, number: int, operation: Callable[[], Coroutine[Any, Any, Any]]) -> Outcome:
        """Run an operation in a new task and disturb it at its point of that number."""
        self.released.clear()
        run = self._at_await if fault.at_await else self._at_call
        return await run(fault, number, operation)

    async def _at_await(self, fault: Fault, number: int, operation: Callable[[], Coroutine[Any, Any, Any]]) -> Outcome:
        limit = asyncio.timeout(None)

        def disturb(awaited: Any) -> None:
            caller = asyncio.current_task()
            assert caller is not None
            if fault.what == "timeout":
                limit.reschedule(0)
            elif fault.when == "wakes" and asyncio.isfuture(awaited):
                awaited.add_done_callback(partial(_cancel, caller))  # before it is woken
            else:
                caller.cancel()

        disturbed = _Disturbed(operation(), number, disturb)

        async def caller() -> Any:
            async with limit:
                return await disturbed

        outcome = await _end(asyncio.create_task(caller()))
        outcome.met = disturbed.count >= number
        return outcome

    async def _at_call(self, fault: Fault, number: int, operation: Callable[[], Coroutine[Any, Any, Any]]) -> Outcome:
        caller = asyncio.create_task(operation())
        point = self._point = _Point(fault, number, caller)
        outcome = await _end(caller)
        self._point = None
        outcome.met = point.passed == number
        return outcome

    async def pass_on(self, server: Server, call: Call) -> Any:
        """Make a call of a driver, or disturb it if it is the point of the current attempt."""
        point = self._point
        if point is None:
            return await call()
        point.passed += 1
        if point.passed < point.number:
            return await call()
        self._point = None
        fault = point.fault
        if fault.what != "cancelled":
            if fault.when == "after":
                await call()
            raise _ERRORS[fault.what, server]()
        if fault.when == "held":
            point.caller.cancel()
            holding = asyncio.create_task(self._hold(call))
            holding.add_done_callback(lambda held: held.cancelled() or held.exception())  # its exception is retrieved
            return await (asyncio.shield(holding) if server == "mongo" else holding)  # a Redis connection is cut
        if fault.when == "before":
            point.caller.cancel()
            return await call()
        result = await call()
        point.caller.cancel()
        return result

    async def _hold(self, call: Call) -> Any:
        """Make a call later, as Motor and the server do, which go on with a call whose caller has gone."""
        await self.released.wait()
        return await call()


def _cancel(caller: "asyncio.Task[Any]", _: "asyncio.Future[Any]") -> None:
    caller.cancel()


async def _end(caller: "asyncio.Task[Any]") -> Outcome:
    await asyncio.wait([caller])
    if caller.cancelled():
        return Outcome(True, error=asyncio.CancelledError())
    error = caller.exception()
    return Outcome(True, error=error) if error else Outcome(True, value=caller.result())


class _Cursor:
    """A cursor of either driver, each batch of which counts as a call."""

    def __init__(self, drivers: Drivers, open_cursor: Callable[[], Any]) -> None:
        self._drivers = drivers
        self._open = open_cursor
        self._cursor: Any = None

    async def _opened(self) -> Any:
        if self._cursor is None:
            cursor = self._open()
            self._cursor = await cursor if inspect.isawaitable(cursor) else cursor
        return self._cursor

    def __await__(self) -> Generator[Any, Any, Self]:
        """Return the cursor itself, as some calls of PyMongo are coroutines; the first batch sends the command."""
        return self
        yield

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        async def advance() -> Any:
            return await (await self._opened()).__anext__()

        return await self._drivers.pass_on("mongo", advance)

    async def to_list(self, length: int | None) -> list[Any]:
        async def collect() -> Any:
            return await (await self._opened()).to_list(length)

        return await self._drivers.pass_on("mongo", collect)

    @property
    def alive(self) -> bool:
        return self._cursor is None or self._cursor.alive

    async def close(self) -> None:
        if self._cursor is not None:
            await self._cursor.close()


_CALLS = (
    *("bulk_write", "count_documents", "create_indexes", "delete_many", "find_one", "find_one_and_update"),
    *("insert_many", "update_one"),
)
_inside = ContextVar("_inside", default=False)
"""Whether the current call is one that a driver makes itself."""
_CURSORS = ("aggregate", "aggregate_raw_batches", "find", "find_raw_batches", "list_indexes")


@contextmanager
def intercepted_drivers(*more: str) -> Generator[Drivers]:
    """Count the calls of the drivers in the block, and those of `more` methods of collections."""
    drivers = Drivers()

    def counted(server: Server, method: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def call(*args: Any, **kwargs: Any) -> Any:
            async def inside() -> Any:
                token = _inside.set(True)
                try:
                    return await method(*args, **kwargs)
                finally:
                    _inside.reset(token)

            return await (method(*args, **kwargs) if _inside.get() else drivers.pass_on(server, inside))

        return call

    def cursor(method: Callable[..., Any]) -> Callable[..., Any]:
        def open_cursor(*args: Any, **kwargs: Any) -> Any:
            return method(*args, **kwargs) if _inside.get() else _Cursor(drivers, lambda: method(*args, **kwargs))

        return open_cursor

    with pytest.MonkeyPatch.context() as patch:
        for collection in (AsyncIOMotorCollection, AsyncCollection):
            for name in (*_CALLS, *more):
                patch.setattr(collection, name, counted("mongo", getattr(collection, name)))
            for name in _CURSORS:
                patch.setattr(collection, name, cursor(getattr(collection, name)))
        for session in (AsyncIOMotorClientSession, AsyncClientSession):
            patch.setattr(session, "commit_transaction", counted("mongo", session.commit_transaction))
        for name in ("execute", "execute_all"):
            patch.setattr(_Connection, name, counted("redis", getattr(_Connection, name)))
        yield drivers
