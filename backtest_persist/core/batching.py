"""Flights: calls that wait at the same time share one round trip, and a lone call waits for nobody."""

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from contextvars import Context
from dataclasses import dataclass, field
from itertools import chain
from typing import Generic, TypeVar

from backtest_persist.errors import ErrorReason, StoreUnavailableError

__all__ = ("Flights", "Seat")

Item = TypeVar("Item")
Answer = TypeVar("Answer")


@dataclass(eq=False)
class Seat(Generic[Item, Answer]):
    """One call: what it asks for, since when it waits, and where its answer goes."""

    item: Item
    arrived: float
    answer: "asyncio.Future[Answer]" = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    def land(self, answer: Answer) -> None:
        """Give the caller its answer, unless it has gone."""
        if not self.answer.done():
            self.answer.set_result(answer)

    def crash(self, error: BaseException) -> None:
        """Give the caller its error, unless it has gone."""
        if not self.answer.done():
            self.answer.set_exception(error)


class Flights(Generic[Item, Answer]):
    """Sends items of one event loop in flights; no more than `limit` are in the air, each of `size` items at most.

    What arrives in one turn of the event loop leaves together at its end, if there is room, and otherwise together with
    what arrives until there is; there are no timers. An item never joins a flight that has left. Flights are tasks of
    their own: a caller that is cancelled leaves the others, and what it sent is not cut in the middle. With a `limit`
    of 1 items are sent in the order of their arrival, each after the one before it has landed.

    `fly` is given the seats of a flight and the seconds it may take, and has to `land` or `crash` each seat. An item
    that has waited for `deadline` seconds is a `StoreUnavailableError` and is not sent. A flight that takes longer is
    left to itself, and keeps its place: its callers get what `late` makes. Nothing of the context variables of a caller
    reaches `fly`, its deadlines least of all: the others have theirs.

    With `alone`, which bounds what is awaited in it by so many seconds, a caller without company need not fly; whatever
    `fly` awaits is then cancelled as the caller is.
    """

    LOOK_SECONDS = 0.05

    def __init__(
        self,
        fly: Callable[[Sequence[Seat[Item, Answer]], float], Awaitable[None]],
        *,
        limit: int,
        size: int,
        deadline: float,
        late: Callable[[Item], Exception],
        alone: Callable[[float], AbstractAsyncContextManager[None]] | None = None,
    ) -> None:
        self._fly = fly
        self._late = late
        self._alone = alone
        self._limit = limit
        self._size = size
        self._deadline = deadline
        self._waiting: deque[Seat[Item, Answer]] = deque()
        self._flying: dict[asyncio.Future[None], Sequence[Seat[Item, Answer]]] = {}
        self._looking: asyncio.TimerHandle | None = None
        self._looked = 0.0
        self._called = False
        self._crowded = False

    def board(self, item: Item, since: float | None = None) -> "asyncio.Future[Answer]":
        """Send an item with the next flight; await the future for its answer.

        The caller waits since that time of `time.monotonic`, by default since now.
        """
        seat = Seat[Item, Answer](item, time.monotonic() if since is None else since)
        self._waiting.append(seat)
        self._crowded = self._crowded or bool(self._flying)
        if len(self._flying) < self._limit:
            self._call()
        if self._looking is None:
            self._look_again(seat.arrived)
        return seat.answer

    async def ask(self, item: Item, since: float | None = None) -> Answer:
        """Send an item and wait for its answer; in the caller's own task when it travels alone and may.

        That is cheaper than `board`, and is cut off when the caller is cancelled: not for writes. Who comes after
        several that flew at the same time expects company, and boards.
        """
        if self._alone is None or self._crowded or self._flying or self._waiting:
            return await self.board(item, since)
        now, landed = time.monotonic(), asyncio.get_running_loop().create_future()
        seat = Seat[Item, Answer](item, now if since is None else since)
        self._flying[landed] = ()
        seconds = self._deadline - now + seat.arrived
        try:
            async with self._alone(seconds):
                await self._fly([seat], seconds)
        except TimeoutError:
            raise self._late(item) from None
        finally:
            del self._flying[landed]
            landed.set_result(None)
            if self._waiting:
                self._call()
        return seat.answer.result()

    @property
    def busy(self) -> bool:
        """Whether anything is waiting or in the air."""
        return bool(self._waiting or self._flying)

    async def drain(self) -> None:
        """Wait until nothing is waiting or in the air."""
        while self.busy:
            await (asyncio.wait(self._flying) if self._flying else asyncio.sleep(0))

    def _call(self) -> None:
        """Depart after this turn of the loop, so that all come along whom a landing has just woken."""
        if not self._called:
            self._called = True
            asyncio.get_running_loop().call_soon(self._depart)

    def _depart(self) -> None:
        self._called = False
        while self._waiting and len(self._flying) < self._limit:
            now, deadline = time.monotonic(), self._deadline
            seats: list[Seat[Item, Answer]] = []
            while self._waiting and len(seats) < self._size:
                seat = self._waiting.popleft()
                if now - seat.arrived >= deadline:
                    seat.crash(
                        StoreUnavailableError(
                            "MongoDB was busy for the whole deadline; nothing was sent.", reason=ErrorReason.BUSY
                        )
                    )
                elif not seat.answer.done():
                    seats.append(seat)
            if seats:
                self._crowded = len(seats) > 1 or bool(self._flying)
                seconds = deadline - now + seats[0].arrived
                task = asyncio.get_running_loop().create_task(self._travel(seats, seconds), context=Context())
                self._flying[task] = seats
                task.add_done_callback(self._landed)  # also of one that is cancelled before it has begun

    def _landed(self, task: "asyncio.Future[None]") -> None:
        seats = self._flying.pop(task)
        if task.cancelled():  # the event loop shuts down
            for seat in seats:
                seat.answer.cancel()
        if self._waiting:  # who waits may be sending its last, and nobody has cancelled that
            self._call()

    async def _travel(self, seats: Sequence[Seat[Item, Answer]], seconds: float) -> None:
        try:
            await self._fly(seats, seconds)
        except Exception as error:
            for seat in seats:
                seat.crash(error)

    def _look_again(self, now: float) -> None:
        self._looked = now
        self._looking = asyncio.get_running_loop().call_later(self.LOOK_SECONDS, self._look)

    def _look(self) -> None:
        """Tell those whose time is over; not when the loop was busy, as answers may have come meanwhile."""
        self._looking, now = None, time.monotonic()
        if now < self._looked + 2 * self.LOOK_SECONDS:
            for seat in chain(self._waiting, *self._flying.values()):
                if now > seat.arrived + self._deadline + self.LOOK_SECONDS and not seat.answer.done():
                    seat.crash(self._late(seat.item))
        if self._waiting or self._flying:
            self._look_again(now)
