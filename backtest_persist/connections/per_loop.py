"""Values that belong to an event loop: one for each, closed together with it."""

import asyncio
import os
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import Any, ClassVar, Generic, TypeVar
from weakref import WeakSet, WeakValueDictionary

from anyio import CancelScope

from backtest_persist.connections.workarounds import WithoutAsyncgenHooks
from backtest_persist.errors import (
    BacktestPersistError,
    ClosedError,
    SettingsError,
)

__all__ = ("LoopAffinity", "PerLoop", "closed_error", "joined", "uncancelled")


T = TypeVar("T")


class PerLoop(Generic[T]):
    """Keeps one value per running event loop and closes it together with that loop.

    The end of a loop is noticed through an asynchronous generator that is left suspended in it:
    `asyncio.run`, pytest-asyncio and every other runner that calls ``loop.shutdown_asyncgens()`` closes it.

    A process that was forked opens its own: by the sockets and the sessions of its parent it would take the answers
    that are for its parent, and its writes would count as repetitions of its parent's. It needs its own loop as
    well; both would be woken by the same file.
    """

    _all: ClassVar["WeakSet[PerLoop[Any]]"] = WeakSet()

    def __init__(self, create: Callable[[], T], close: Callable[[T], Awaitable[None]]) -> None:
        self._create = create
        self._close = close
        self._entries: dict[asyncio.AbstractEventLoop, tuple[T, AsyncGenerator[None]]] = {}
        self._retired: list[tuple[asyncio.AbstractEventLoop, tuple[T, AsyncGenerator[None]]]] = []
        self._inherited: list[tuple[asyncio.AbstractEventLoop, object]] = []
        self._closing: WeakValueDictionary[asyncio.AbstractEventLoop, asyncio.Lock] = WeakValueDictionary()
        self.closed = False
        PerLoop._all.add(self)

    @staticmethod
    def disinherit() -> None:
        """Leave to the parent of this process what it has open; kept, as collecting it would close it."""
        for per_loop in PerLoop._all:
            per_loop._inherited += [*per_loop._entries.items(), *per_loop._retired]
            per_loop._entries, per_loop._retired = {}, []

    def get(self) -> T:
        """Return the value of the running loop, creating it on first use."""
        loop = asyncio.get_running_loop()
        entry = self._entries.get(loop)
        if entry is not None:
            return entry[0]
        if self.closed:
            raise closed_error()
        if any(loop is inherited for inherited, _ in self._inherited):
            raise SettingsError("This event loop belongs to the process that was forked; call asyncio.run in this one.")
        for other in list(self._entries):  # one by one, as another thread may be adding its own
            if other.is_closed():
                self._entries.pop(other, None)
        self._let_go(lambda loop, _: loop.is_closed())
        value = self._create()
        guard = self._guard(loop, value)
        with suppress(StopIteration):  # runs to the yield: there is no suspension before it
            guard.__anext__().send(None)
        self._entries[loop] = value, guard
        return value

    async def _guard(self, loop: asyncio.AbstractEventLoop, value: T) -> AsyncGenerator[None]:
        owner = os.getpid()
        try:
            yield
        finally:
            entry = self._entries.get(loop)
            if entry is not None and entry[0] is value:
                del self._entries[loop]
            self._let_go(lambda _, retired: retired is value)
            if os.getpid() == owner:
                await WithoutAsyncgenHooks(self._close(value))

    def _let_go(self, is_over: Callable[[asyncio.AbstractEventLoop, T], bool]) -> None:
        for entry in list(self._retired):  # one by one, as another thread may be retiring its own
            if is_over(entry[0], entry[1][0]):
                with suppress(ValueError):
                    self._retired.remove(entry)

    def retire(self) -> None:
        """Forget every value; each is closed with its loop, or by the next `close` in it."""
        entries = [*self._retired, *self._entries.items()]
        self._retired = [(loop, entry) for loop, entry in entries if not loop.is_closed()]
        self._entries = {}

    @property
    def current_value(self) -> T | None:
        """The value of the running loop, if there is one."""
        entry = self._entries.get(asyncio.get_running_loop())
        return None if entry is None else entry[0]

    @property
    def retired_values(self) -> list[T]:
        """The values that the running loop had before, and that are still open."""
        loop = asyncio.get_running_loop()
        return [value for owner, (value, _) in self._retired if owner is loop]

    @property
    def open_values(self) -> list[T]:
        """All values of the running loop that are still open."""
        value = self.current_value
        return self.retired_values if value is None else [*self.retired_values, value]

    async def close(self) -> None:
        """Close what belongs to the running loop, but no value of a time after `closed`; a second caller waits, too."""
        loop = asyncio.get_running_loop()
        if self.closed and loop in self._entries:
            self._retired.append((loop, self._entries.pop(loop)))
        lock = self._closing.setdefault(loop, asyncio.Lock())
        async with lock:
            guards = [guard for owner, (_, guard) in self._retired if owner is loop]
            try:
                ends = await asyncio.gather(*(guard.aclose() for guard in guards), return_exceptions=True)
            finally:
                self._retired = [entry for entry in self._retired if entry[1][1] not in guards]
        for error in filter(None, ends):
            raise error


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=PerLoop.disinherit)


def _retrieve(task: "asyncio.Task[Any]") -> None:
    if not task.cancelled():
        task.exception()


async def joined(task: "asyncio.Task[T]", seconds: float | None = None) -> T:
    """Wait for a task together with others, none of whom cancels it; each gets its own copy of an error of ours.

    Raises `TimeoutError` after so many seconds, and `ClosedError` for a task that closing has cancelled.
    """
    task.add_done_callback(_retrieve)  # all who wait may be cancelled
    if not (await asyncio.wait([task], timeout=seconds))[0]:
        raise TimeoutError
    if task.cancelled():
        raise closed_error()
    error = task.exception()
    if isinstance(error, BacktestPersistError):
        raise error.copy()
    return task.result()


async def uncancelled(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run to the end, however often the caller is cancelled meanwhile, and cancel it afterwards."""
    task = asyncio.create_task(work())
    cancelled: asyncio.CancelledError | None = None
    with CancelScope(shield=True):
        while not task.done():
            try:
                await asyncio.wait([task])
            except asyncio.CancelledError as error:
                cancelled = error
    if cancelled is not None:
        raise cancelled
    task.result()


def closed_error() -> ClosedError:
    """Return the error of something that is used after it was closed."""
    return ClosedError("This container was closed; open another one with Container(...) or setup().")


class LoopAffinity:
    """Ties a client that was given to the container to one event loop: the one in which it is used first."""

    def __init__(self, server: str) -> None:
        self._server = server
        self._loop: asyncio.AbstractEventLoop | None = None

    def conflict(self) -> str | None:
        """Return what is wrong in another loop than that, and what to do; None in that loop."""
        running = asyncio.get_running_loop()
        if self._loop is None:
            self._loop = running
        if self._loop is running:
            return None
        return (
            f"The {self._server} client given to this container belongs to the event loop of its first use. Give "
            "another loop a container with its own client, or give none: then each loop gets one."
        )
