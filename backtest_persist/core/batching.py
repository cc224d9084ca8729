"""Batching: calls that wait at the same time share one round trip, and a lone call waits for nobody."""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager
from contextvars import Context
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Generic, TypeVar

from backtest_persist.errors import ErrorReason, StoreUnavailableError

__all__ = ("Batcher", "Call")

Item = TypeVar("Item")
Answer = TypeVar("Answer")


@dataclass(eq=False)
class Call(Generic[Item, Answer]):
    """One call: the item to send, since when it waits, and the future of its answer."""

    item: Item
    submitted_at: float
    """By `time.monotonic`."""
    future: "asyncio.Future[Answer]" = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    def resolve(self, answer: Answer) -> None:
        """Give the caller its answer, unless it has gone."""
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

    `send` is given the calls of a batch and the seconds it may take, and has to resolve or fail each of them. A call
    that has waited for `timeout` seconds fails with a `StoreUnavailableError` and is not sent. A batch that takes
    longer is left to itself and still counts as in flight: its callers get what `timed_out` makes. Nothing of the
    context variables of a caller reaches `send`, least of all its deadlines: the other callers have theirs.

    With `limit`, a context manager that bounds what is awaited in it by so many seconds, a caller without company need
    not be batched; what `send` awaits is then cancelled as the caller is.
    """

    CHECK_SECONDS = 0.05

    def __init__(
        self,
        send: Callable[[Sequence[Call[Item, Answer]], float], Coroutine[Any, Any, None]],
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
        self._in_flight: dict[asyncio.Future[None], Sequence[Call[Item, Answer]]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._checked_at = 0.0
        self._dispatching = False
        self._contended = False

    def submit(self, item: Item, since: float | None = None) -> "asyncio.Future[Answer]":
        """Send an item with the next batch; await the future for its answer.

        The caller waits since that time of `time.monotonic`, by default since now.
        """
        call = Call[Item, Answer](item, time.monotonic() if since is None else since)
        self._pending.append(call)
        self._contended = self._contended or bool(self._in_flight)
        if len(self._in_flight) < self._max_in_flight:
            self._dispatch_soon()
        if self._timer is None:
            self._start_timer(call.submitted_at)
        return call.future

    async def ask(self, item: Item, since: float | None = None) -> Answer:
        """Send an item and wait for its answer: in the caller's own task if no other call is under way, and it may.

        That is cheaper than `submit`, and is cut off when the caller is cancelled: not for writes. After a time of
        several calls at once more of them are expected, and the item is submitted.
        """
        if self._limit is None or self._contended or self._in_flight or self._pending:
            return await self.submit(item, since)
        now, finished = time.monotonic(), asyncio.get_running_loop().create_future()
        call = Call[Item, Answer](item, now if since is None else since)
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
            if self._pending:
                self._dispatch_soon()
        return call.future.result()

    @property
    def busy(self) -> bool:
        """Whether any call is pending or in flight."""
        return bool(self._pending or self._in_flight)

    async def drain(self) -> None:
        """Wait until no call is pending or in flight."""
        while self.busy:
            await (asyncio.wait(self._in_flight) if self._in_flight else asyncio.sleep(0))

    def _dispatch_soon(self) -> None:
        """Dispatch after this turn of the loop, so that all callers come along whom an answer has just woken."""
        if not self._dispatching:
            self._dispatching = True
            asyncio.get_running_loop().call_soon(self._dispatch)

    def _dispatch(self) -> None:
        self._dispatching = False
        while self._pending and len(self._in_flight) < self._max_in_flight:
            now, timeout = time.monotonic(), self._timeout
            batch: list[Call[Item, Answer]] = []
            while self._pending and len(batch) < self._max_size:
                call = self._pending.popleft()
                if now - call.submitted_at >= timeout:
                    call.fail(
                        StoreUnavailableError(
                            "MongoDB was busy for the whole deadline; nothing was sent.", reason=ErrorReason.BUSY
                        )
                    )
                elif not call.future.done():
                    batch.append(call)
            if batch:
                self._contended = len(batch) > 1 or bool(self._in_flight)
                seconds = timeout - now + batch[0].submitted_at
                task = asyncio.get_running_loop().create_task(self._send(batch, seconds), context=Context())
                self._in_flight[task] = batch
                task.add_done_callback(self._finish)  # also of one that is cancelled before it has begun

    def _finish(self, task: "asyncio.Future[None]") -> None:
        batch = self._in_flight.pop(task)
        for call in batch:  # that were not answered
            if task.cancelled():  # the event loop shuts down
                call.future.cancel()
            elif (error := task.exception()) is not None:
                call.fail(error)
        if self._pending:  # whose callers may be the last, and nobody has cancelled them
            self._dispatch_soon()

    def _start_timer(self, now: float) -> None:
        self._checked_at = now
        self._timer = asyncio.get_running_loop().call_later(self.CHECK_SECONDS, self._check_timeouts)

    def _check_timeouts(self) -> None:
        """Fail the calls that have timed out; not when the loop was busy, as answers may have come meanwhile."""
        self._timer, now = None, time.monotonic()
        if now < self._checked_at + 2 * self.CHECK_SECONDS:
            for call in chain(self._pending, *self._in_flight.values()):
                if now > call.submitted_at + self._timeout + self.CHECK_SECONDS and not call.future.done():
                    call.fail(self._timed_out(call.item))
        if self._pending or self._in_flight:
            self._start_timer(now)
