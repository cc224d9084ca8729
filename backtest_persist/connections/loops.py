"""What belongs to an event loop: values that are closed with it, and time in which it was free."""

import asyncio
import math
import os
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Generator
from contextlib import (
    AbstractAsyncContextManager,
    suppress,
)
from typing import Any, ClassVar, Generic, TypeVar
from weakref import WeakSet, WeakValueDictionary

from anyio import CancelScope

from backtest_persist.errors import (
    ClosedError,
    SettingsError,
)

__all__ = ("Home", "PerLoop", "Watch", "closed", "uncancelled")


T = TypeVar("T")


class PerLoop(Generic[T]):
    """Holds one value per running event loop and closes it together with that loop.

    The end of a loop is noticed through an asynchronous generator that is left suspended in it:
    `asyncio.run`, pytest-asyncio and every other runner that calls ``loop.shutdown_asyncgens()`` closes it.

    A process that was forked opens its own: by the sockets and the sessions of its parent it would take the answers
    that are for its parent, and its writes would count as repetitions of its parent's. It needs a loop of its own as
    well; both would be woken by the same file.
    """

    _all: ClassVar["WeakSet[PerLoop[Any]]"] = WeakSet()

    def __init__(self, create: Callable[[], T], close: Callable[[T], Awaitable[None]]) -> None:
        self._create = create
        self._close = close
        self._held: dict[asyncio.AbstractEventLoop, tuple[T, AsyncGenerator[None]]] = {}
        self._retired: list[tuple[asyncio.AbstractEventLoop, tuple[T, AsyncGenerator[None]]]] = []
        self._inherited: list[tuple[asyncio.AbstractEventLoop, object]] = []
        self._closing: WeakValueDictionary[asyncio.AbstractEventLoop, asyncio.Lock] = WeakValueDictionary()
        self.closed = False
        PerLoop._all.add(self)

    @staticmethod
    def disinherit() -> None:
        """Leave to the parent of this process what it has open; kept, as collecting it would close it."""
        for per_loop in PerLoop._all:
            per_loop._inherited += [*per_loop._held.items(), *per_loop._retired]
            per_loop._held, per_loop._retired = {}, []

    def get(self) -> T:
        """Return the value of the running loop, creating it on first use."""
        loop = asyncio.get_running_loop()
        held = self._held.get(loop)
        if held is not None:
            return held[0]
        if self.closed:
            raise closed()
        if any(loop is inherited for inherited, _ in self._inherited):
            raise SettingsError("This event loop belongs to the process that was forked; call asyncio.run in this one.")
        for other in list(self._held):  # one by one, as another thread may be adding its own
            if other.is_closed():
                self._held.pop(other, None)
        value = self._create()
        guard = self._guard(loop, value)
        with suppress(StopIteration):  # runs to the yield: there is no suspension before it
            guard.__anext__().send(None)
        self._held[loop] = value, guard
        return value

    async def _guard(self, loop: asyncio.AbstractEventLoop, value: T) -> AsyncGenerator[None]:
        owner = os.getpid()
        try:
            yield
        finally:
            held = self._held.get(loop)
            if held is not None and held[0] is value:
                del self._held[loop]
            if os.getpid() == owner:
                await _Untracked(self._close(value))

    def retire(self) -> None:
        """Forget every value; each is closed with its loop, or by the next `close` in it."""
        open_ones = [*self._retired, *self._held.items()]
        self._retired = [(loop, held) for loop, held in open_ones if not loop.is_closed()]
        self._held = {}

    @property
    def held(self) -> T | None:
        """The value of the running loop, if there is one."""
        held = self._held.get(asyncio.get_running_loop())
        return None if held is None else held[0]

    @property
    def retired(self) -> list[T]:
        """The values that the running loop had before, and that are still open."""
        loop = asyncio.get_running_loop()
        return [value for owner, (value, _) in self._retired if owner is loop]

    @property
    def all(self) -> list[T]:
        """All values of the running loop that are still open."""
        return self.retired if self.held is None else [*self.retired, self.held]

    async def close(self) -> None:
        """Close what belongs to the running loop, but no value of a time after `closed`; a second caller waits, too."""
        loop = asyncio.get_running_loop()
        if self.closed and loop in self._held:
            self._retired.append((loop, self._held.pop(loop)))
        turn = self._closing.setdefault(loop, asyncio.Lock())
        async with turn:
            mine = [guard for owner, (_, guard) in self._retired if owner is loop]
            try:
                ends = await asyncio.gather(*(guard.aclose() for guard in mine), return_exceptions=True)
            finally:
                self._retired = [entry for entry in self._retired if entry[1][1] not in mine]
        for error in filter(None, ends):
            raise error


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=PerLoop.disinherit)


class _Untracked(Awaitable[None], Generator[Any, Any, None]):
    """Awaits what begins and ends asynchronous generators of its own, as PyMongo does, in a loop that closes all.

    The loop would warn of each that begins then, and that is an error where warnings are. Only hooks that are put aside
    for each step of this coroutine leave those of the other tasks alone.
    """

    def __init__(self, work: Awaitable[None]) -> None:
        self._steps = work.__await__()

    def __await__(self) -> Generator[Any, Any, None]:
        return self

    def send(self, value: Any) -> Any:
        return self._step(self._steps.send, value)

    def throw(self, kind: Any, value: Any = None, traceback: Any = None) -> Any:
        return self._step(self._steps.throw, kind if value is None else value)

    def _step(self, step: Callable[[Any], Any], argument: Any) -> Any:
        hooks = sys.get_asyncgen_hooks()
        sys.set_asyncgen_hooks(firstiter=None)
        try:
            return step(argument)
        finally:
            sys.set_asyncgen_hooks(*hooks)


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


def closed() -> ClosedError:
    """The error of what is used after it was closed."""
    return ClosedError("This container was closed; open another one with Container(...) or setup().")


class Home:
    """The event loop of an injected client: the one in which it is used first."""

    def __init__(self, server: str) -> None:
        self._server = server
        self._loop: asyncio.AbstractEventLoop | None = None

    def check(self) -> None:
        """Raise a `SettingsError` in another loop than that."""
        running = asyncio.get_running_loop()
        if self._loop is None:
            self._loop = running
        if self._loop is not running:
            raise SettingsError(
                f"The {self._server} client given to this container belongs to the event loop of its first use. Give "
                "another loop a container with a client of its own, or give none: then each loop gets one."
            )


class Watch:
    """Bounds what is awaited in one event loop by a time in which the loop was free to see an answer.

    The time is counted in steps: while the loop is busy with something else, however long, at most one passes. One
    timer counts for everything; one of its own would cost as much as a command of Redis.
    """

    def __init__(self, step: float) -> None:
        self._step = step
        self._limits: set[_Limit] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._next = 0.0

    def limit(self, seconds: float) -> AbstractAsyncContextManager[None]:
        """Raise a `TimeoutError` after so many seconds, and a step at most."""
        return _Limit(self, math.ceil(seconds / self._step - 0.01) + 1)  # the first may be short

    def add(self, limit: "_Limit") -> None:
        """Count for this one from now on."""
        self._limits.add(limit)
        if self._timer is None:
            self._schedule(asyncio.get_running_loop().time())

    def discard(self, limit: "_Limit") -> None:
        """Count for it no more."""
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
        """Stop the timer; nothing is awaited any more."""
        if self._timer is not None:
            self._timer.cancel()


class _Limit(AbstractAsyncContextManager[None]):
    __slots__ = ("_left", "_timeout", "_watch")

    def __init__(self, watch: Watch, steps: int) -> None:
        self._watch = watch
        self._left = steps
        self._timeout = asyncio.timeout(None)

    async def __aenter__(self) -> None:
        await self._timeout.__aenter__()
        self._watch.add(self)

    def step(self) -> None:
        self._left -= 1
        if not self._left:
            self._timeout.reschedule(asyncio.get_running_loop().time())

    async def __aexit__(self, *raised: Any) -> None:
        self._watch.discard(self)
        await self._timeout.__aexit__(*raised)
