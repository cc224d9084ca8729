"""Batching: calls that wait at the same time share one round trip, and a lone call waits for nobody."""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from contextvars import Context
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Generic, TypeVar

from backtest_persist.errors import BacktestPersistError, ErrorReason, StoreUnavailableError

__all__ = ("BATCH_BYTES", "Batcher", "Call")

Item = TypeVar("Item")
Answer = TypeVar("Answer")

BATCH_BYTES = 8 * 1024 * 1024
"""The bytes that one batch carries at most, unless a single item is larger."""


@dataclass(eq=False)
class Call(Generic[Item, Answer]):
    """One call: the item to send, since when it waits, and the future of its answer."""

    item: Item
    submitted_at: float
    """By `time.monotonic`; infinite as long as its time has not begun."""
    bytes_before: int = 0
    """The bytes that were pending or in flight when it was submitted."""
    size: int = 0
    """The bytes that it adds to that."""
    future: "asyncio.Future[Answer]" = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    succeeded: bool = False
    was_encoded: bool = False
    """Whether it was encoded in a thread, with which others compete for the processor."""

    @property
    def has_to_wait(self) -> bool:
        """Whether more bytes than one batch carries had to be sent before it, or with it, or others encoded."""
        return self.was_encoded or self.bytes_before + self.size > BATCH_BYTES

    def resolve(self, answer: Answer) -> None:
        """Give the caller its answer, unless it has gone."""
        self.succeeded = True
        if not self.future.done():
            self.future.set_result(answer)

    def fail(self, error: BaseException) -> None:
        """Give the caller its error, unless it has gone."""
        if not self.future.done():
            self.future.set_exception(error)


class Batcher(Generic[Item, Answer]):
    """Sends the items of one event loop in batches of `max_size`, no more than `max_in_flight` at the same time.

    What is submitted in one turn of the event loop is dispatched together at its end if a batch may be sent, and
    otherwise together with what is submitted until one may; there are no timers. An item never joins a batch that was
    dispatched. Each batch is a separate task: a caller that is cancelled leaves the others, and what it sent is not
    cut in the middle. With one batch in flight at most, items are sent in the order of their calls, each after the
    answer to the one before it.

    `send` is given the calls of a batch and the seconds it may take, and has to resolve or fail each of them, but for
    those that it returns, which are sent again, before all others. A call that has waited for `timeout` seconds fails
    with a `StoreUnavailableError` and is not sent. A batch that takes longer is left to itself and still counts as in
    flight: its callers get what `timed_out` makes. Nothing of the context variables of a caller reaches `send`, least
    of all its deadlines: the other callers have theirs.

    A batch carries `BATCH_BYTES` at most, by the `size_of` its items. A call for which that leaves no room in the next
    one may have to wait longer than its deadline; its time begins when it is sent, as long as batches succeed.

    With `limit`, a context manager that bounds what is awaited in it by so many seconds, a caller without company need
    not be batched; what `send` awaits is then cancelled as the caller is.
    """

    CHECK_SECONDS = 0.05

    def __init__(
        self,
        send: Callable[[Sequence[Call[Item, Answer]], float], Coroutine[Any, Any, Sequence[Call[Item, Answer]]]],
        *,
        max_in_flight: int,
        max_size: int,
        timeout: float,
        timed_out: Callable[[Item], Exception],
        limit: Callable[[float], AbstractAsyncContextManager[None]] | None = None,
    ) -> None:
        self._send = send
        self._timed_out = timed_out
        self._limit = limit
        self._max_in_flight = max_in_flight
        self._max_size = max_size
        self._timeout = timeout
        self._pending: deque[Call[Item, Answer]] = deque()
        self._in_flight: dict[asyncio.Future[Any], Sequence[Call[Item, Answer]]] = {}
        self._bytes = 0
        """The sizes of what is pending or in flight."""
        self._succeeded_at = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._checked_at = 0.0
        self._dispatching = False
        self._contended = False

    @property
    def max_size(self) -> int:
        """How many items a batch may have now."""
        return self._max_size

    def size_of(self, item: Item) -> int:
        """Return how many bytes an item adds to its batch, as far as that is known."""
        return 0

    def busy_error(self, item: Item) -> BacktestPersistError:
        """Return the error of an item that was not sent within its deadline."""
        return StoreUnavailableError(
            "MongoDB was busy for the whole deadline; nothing was sent.", server="MongoDB", reason=ErrorReason.BUSY
        )

    def submit(self, item: Item, since: float | None = None) -> "asyncio.Future[Answer]":
        """Send an item with the next batch; await the future for its answer.

        The caller waits since that time of `time.monotonic`, by default since now.
        """
        return self.enqueue(item, time.monotonic() if since is None else since).future

    def enqueue(self, item: Item, since: float) -> Call[Item, Answer]:
        """Submit an item, which waits since that time, and return its call."""
        call: Call[Item, Answer] = Call(item, since, self._bytes, self.size_of(item))
        self._bytes += call.size
        self._pending.append(call)
        self._contended = self._contended or bool(self._in_flight)
        self._dispatch_soon()
        self._start_timer()
        return call

    async def ask(self, item: Item, since: float | None = None) -> Answer:
        """Send an item and wait for its answer: in the caller's own task if no other call is under way, and it may.

        That is cheaper than `submit`, and is cut off when the caller is cancelled: not for writes. After a time of
        several calls at once more of them are expected, and the item is submitted.
        """
        if self._limit is None or self._contended or self._in_flight or self._pending:
            return await self.submit(item, since)
        now, finished = time.monotonic(), asyncio.get_running_loop().create_future()
        call: Call[Item, Answer] = Call(item, now if since is None else since)
        self._in_flight[finished] = ()
        seconds = self._timeout - now + call.submitted_at
        try:
            async with self._limit(seconds):
                await self._send([call], seconds)
        except TimeoutError:
            raise self._timed_out(item) from None
        finally:
            del self._in_flight[finished]
            finished.set_result(None)
            self._dispatch_soon()
        return call.future.result()

    def occupy(self, until: "asyncio.Future[Any]") -> None:
        """Count as a batch in flight until that is done, if nothing is pending or in flight."""
        self._in_flight[until] = ()

        def end(_: object) -> None:
            del self._in_flight[until]
            self._dispatch_soon()

        until.add_done_callback(end)

    @property
    def busy(self) -> bool:
        """Whether any call is pending or in flight."""
        return bool(self._pending or self._in_flight)

    async def drain(self) -> None:
        """Wait until no call is pending or in flight."""
        while self.busy:
            await (asyncio.wait(self._in_flight) if self._in_flight else asyncio.sleep(0.001))

    def next_batch(self, now: float) -> list[Call[Item, Answer]]:
        """Take the calls of the next batch from those that are pending: the first ones."""
        batch: list[Call[Item, Answer]] = []
        size = 0
        for call in self.first_calls(now):
            size += self.size_of(call.item)  # which may be known better by now
            if len(batch) == self.max_size or (batch and size > BATCH_BYTES):
                break
            batch.append(self._pending.popleft())
        return batch

    def first_calls(self, now: float) -> Iterator[Call[Item, Answer]]:
        """Iterate over the first of the pending calls, which the consumer takes, without those that have ended."""
        while self._pending:
            call = self._pending[0]
            if self.has_ended(call, now):
                self.remove(self._pending.popleft())
            else:
                yield call

    def has_ended(self, call: Call[Item, Answer], now: float) -> bool:
        """Whether a pending call is not to be sent: its caller has gone, or it has waited too long and fails.

        One with hardly any time left is not sent either: nobody would learn what became of it.
        """
        if not call.future.done() and self._is_overdue(call, now, -min(self.CHECK_SECONDS, self._timeout / 10)):
            call.fail(self.busy_error(call.item))
        return call.future.done()

    def remove(self, call: Call[Item, Answer]) -> None:
        """Count a call, which is not pending any more, as neither pending nor in flight."""
        self._bytes -= call.size

    def _is_overdue(self, call: Call[Item, Answer], now: float, grace: float) -> bool:
        if now - call.submitted_at < self._timeout + grace:
            return False
        return not call.has_to_wait or now - self._succeeded_at > self._timeout

    def _dispatch_soon(self) -> None:
        """Dispatch after this turn of the loop, so that all callers come along whom an answer has just woken."""
        if self._pending and len(self._in_flight) < self._max_in_flight and not self._dispatching:
            self._dispatching = True
            asyncio.get_running_loop().call_soon(self._dispatch)

    def _dispatch(self) -> None:
        self._dispatching = False
        while self._pending and len(self._in_flight) < self._max_in_flight:
            now = time.monotonic()
            batch = self.next_batch(now)
            if not batch:
                break
            for call in batch:
                if call.has_to_wait:
                    call.submitted_at = now
            self._contended = len(batch) > 1 or bool(self._in_flight)
            last = max(call.submitted_at for call in batch)  # the others fail in time all the same
            seconds = self._timeout - now + min(now, last)
            task = asyncio.get_running_loop().create_task(self._send(batch, seconds), context=Context())
            self._in_flight[task] = batch
            task.add_done_callback(self._finish)  # also of one that is cancelled before it has begun

    def _finish(self, task: "asyncio.Future[Sequence[Call[Item, Answer]]]") -> None:
        batch = self._in_flight.pop(task)
        if any(call.succeeded for call in batch):
            self._succeeded_at = time.monotonic()
        again: Sequence[Call[Item, Answer]] = ()
        if task.cancelled():  # the event loop shuts down
            for call in batch:
                call.future.cancel()
        elif (error := task.exception()) is not None:
            for call in batch:
                call.fail(error)
        else:
            again = task.result()
        for call in set(batch).difference(again):
            self.remove(call)
        self._pending.extendleft(reversed(again))
        self._dispatch_soon()  # the callers of what is pending may be the last, and nobody has cancelled them

    def _start_timer(self) -> None:
        if self._timer is None:
            self._checked_at = time.monotonic()
            self._timer = asyncio.get_running_loop().call_later(self.CHECK_SECONDS, self._check_timeouts)

    def _check_timeouts(self) -> None:
        """Fail the calls that have timed out; not when the loop was busy, as answers may have come meanwhile."""
        self._timer, now = None, time.monotonic()
        if now < self._checked_at + 2 * self.CHECK_SECONDS:
            for call in self._pending:
                if not call.future.done() and self._is_overdue(call, now, self.CHECK_SECONDS):
                    call.fail(self.busy_error(call.item))
            for call in chain.from_iterable(self._in_flight.values()):
                if now - call.submitted_at > self._timeout + self.CHECK_SECONDS and not call.future.done():
                    call.fail(self._timed_out(call.item))
        if self._pending or self._in_flight:
            self._start_timer()
