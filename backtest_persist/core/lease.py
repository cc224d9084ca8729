"""Lease: makes one process the writer of a context, until it gives that up, ends, or is silent for too long.

A holder that was paused can wake up after another process has succeeded it. So a lease alone prevents nothing: what
does is the `fence` inside each transaction. It writes the lease document on the condition that the epoch is still that
of this holder, so that either its commit or the taking by a successor happens, never both.

A successor takes these steps, and begins again if the document is locked:

1. It reads the lease. Only one that has run out, or whose holder is gone, is succeeded.
2. It ends the transactions of the recorded sessions, as one of them may lock the document.
3. It takes the lease, by one command, if what it has read still holds: the holder may have woken up and renewed it.
4. It ends the transactions of the recorded sessions once more, as the holder may have begun one after step 2.

After step 3 its predecessor can neither record a session nor pass the fence.
"""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from types import TracebackType
from typing import Any, Protocol, Self

from backtest_persist.connections import MongoService, MongoState, uncancelled
from backtest_persist.core.held_lease import HeldLease
from backtest_persist.core.indexes import BUILD_SECONDS
from backtest_persist.core.lease_document import LEASES, FoundLease, LeaseContext, LeaseDocument, LeaseRow
from backtest_persist.core.owner import Owner, held_error, lost_error
from backtest_persist.errors import (
    BacktestPersistError,
    ErrorReason,
    LeaseHeldError,
    LeaseLostError,
    SettingsError,
    StoreUnavailableError,
    WriteOutcomeUnknownError,
)

__all__ = ("LEASE_SECONDS", "Lease", "check_times", "prepare_leases", "take_within")

LEASE_SECONDS = 15.0
"""How long a lease lasts that is not renewed."""
_LOOK_SECONDS = 0.1
"""How often one who waits looks whether the lease is free."""
_LOCKED_SECONDS = 0.5
"""How long the first command waits for a lock on the document before what holds that is ended once more."""


async def prepare_leases(mongo: MongoService) -> None:
    """Create and verify the index of the leases, unless this user may take none."""
    try:
        await mongo.prepared(LEASES.collection, LEASES.prepare, patience=BUILD_SECONDS)
    except BacktestPersistError as error:
        if error.reason is not ErrorReason.NOT_PERMITTED:
            raise


class _Connected(Protocol):
    """A container, as far as a lease needs it."""

    @property
    def mongo_service(self) -> MongoService: ...


def check_times(wait: float, duration: float) -> None:
    """Raise `SettingsError` unless a lease can be waited for and last so many seconds."""
    if not wait >= 0:  # NaN included
        raise SettingsError(f"The wait for a lease is a number of seconds, 0 or more, not {wait!r}.")
    if not 0 < duration < math.inf:
        raise SettingsError(f"The duration of a lease is a number of seconds above 0, not {duration!r}.")


async def take_within(wait: float, take: Callable[[], Awaitable[None]]) -> None:
    """Take a lease by calls that fail while it is not free, for so many seconds; raises the error of the last one."""
    until = time.monotonic() + wait
    while True:
        try:
            return await take()
        except (LeaseHeldError, StoreUnavailableError, WriteOutcomeUnknownError) as error:
            left = until - time.monotonic()
            if left <= 0 or not error.retryable:
                raise
        await asyncio.sleep(min(left, _LOOK_SECONDS))


class Lease:
    """Makes this process the one writer of a context for the length of an ``async with`` block.

    Entering raises `LeaseHeldError` unless the lease is free within `wait` s. It is renewed in the background; without
    that it lasts for `duration` s, by the clock of the server. A holder that ran on this host and is gone is succeeded
    at once, any other one when its lease has run out. Its open transactions are ended before the block begins.

    A lease that was lost does not end the block: `fence` refuses the next transaction.
    """

    def __init__(
        self, container: _Connected, context: LeaseContext, *, wait: float = 0.0, duration: float = LEASE_SECONDS
    ) -> None:
        check_times(wait, duration)
        self.context = context
        self._mongo = container.mongo_service
        self._wait = wait
        self._duration = duration
        self._held: HeldLease | None = None

    @property
    def epoch(self) -> int:
        """The number of times that the lease of this context was taken, by now; 0 before it is."""
        return 0 if self._held is None else self._held.epoch

    @property
    def state(self) -> MongoState:
        """The client by which it is held, which the transactions have to use as well."""
        return self._checked().state

    async def __aenter__(self) -> Self:
        await take_within(self._wait, self._take)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._held is not None:
            await uncancelled(self._held.end)

    async def session(self) -> Any:
        """Return the session of the transactions: the same one until `abandon_session`.

        It is recorded in the lease before it is returned, so that a successor can end its open transaction. Do not end
        it yourself: the driver would use it for other commands, which a successor would then end.

        Raises `LeaseLostError`, and `SettingsError` for a standalone, which has no transactions.
        """
        return await self._checked().session()

    async def abandon_session(self) -> None:
        """Let `session` start another one, and end the transaction of this one on the server, in the background.

        For a transaction that has failed, or whose outcome is unknown.
        """
        if self._held is not None:
            self._held.abandon_session()

    async def renew_for(self, seconds: float) -> None:
        """Renew the lease unless it lasts for so many seconds: then for these and its duration.

        Before a transaction that may take so long: until it ends, its own fence keeps the lease from being renewed.
        Raises `LeaseLostError`.
        """
        await self._checked().renew_for(seconds)

    async def fence(self, session: Any) -> None:
        """Refuse the transaction of this session, by a `LeaseLostError`, unless the lease is still held; renew it.

        Send it as the first statement of the transaction: if the lease is lost, nothing else is locked then, and the
        renewal in the background cannot conflict with it. The driver's errors are not translated, as they have the
        labels that tell what to retry.
        """
        await self._checked().fence(session)

    async def verify(self) -> None:
        """Raise `LeaseLostError` if the lease is lost; asks the server if it may have run out.

        For a transaction that has failed before its fence could tell: that of a process that was paused meets its
        deadline first. `StoreUnavailableError` if the server does not answer within a second.
        """
        await self._checked().verify()

    def lost(self) -> LeaseLostError | None:
        """Return the error that says why the lease is not held any more; None as long as no loss is known."""
        return None if self._held is None else self._held.lost()

    def _checked(self) -> HeldLease:
        if self._held is None:
            problem = "its lease was not taken. Use the lease inside of `async with`"
            raise lost_error(self.context, problem, collection=LEASES.collection)
        lost = self._held.lost()
        if lost is not None:
            raise lost.copy()
        return self._held

    async def _take(self) -> None:
        state = await self._mongo.prepared(LEASES.collection, LEASES.prepare)
        with self._mongo.accept():
            attempt = _Attempt(state, self.context, self._duration)
            task = asyncio.create_task(attempt.run())
            try:
                row = await asyncio.shield(task)
            except asyncio.CancelledError:
                state.background(attempt.undo(task))
                raise
            self._held = HeldLease(state, self._mongo.logger, self.context, attempt.document, row, self._duration)
        predecessor = attempt.predecessor
        if predecessor is not None:
            self._mongo.logger.info(
                "lease.succeeded", context=self.context.describe(), host=predecessor.host, pid=predecessor.pid
            )


class _Attempt:
    """One attempt to take a lease, in a task of its own, so that a cancelled one is undone."""

    def __init__(self, state: MongoState, context: LeaseContext, duration: float) -> None:
        self.predecessor: Owner | None = None
        """The holder that was succeeded."""
        self._state = state
        self._context = context
        self._owner = Owner.here()
        self.document = LeaseDocument(state, context, self._owner.token, duration)
        self._is_sent = False

    async def run(self) -> LeaseRow:
        """Take the lease and end the transactions of a predecessor; `LeaseHeldError` if there is another holder."""
        try:
            row = await self._take()
            if row.session_ids:
                await self.document.kill(row.session_ids)
        except BacktestPersistError:
            if self._is_sent:  # it may have been taken
                self._state.background(self._release())
            raise
        return row

    async def _take(self) -> LeaseRow:
        until = time.monotonic() + self._state.seconds
        patience = _LOCKED_SECONDS
        while True:
            found = await self.document.find()
            gone = self._find_gone(found)
            if found is not None and found.row.session_ids:
                await self.document.kill(found.row.session_ids)
            left = until - time.monotonic()
            self._is_sent = True
            try:
                row = await self.document.take(self._owner, gone, max(min(patience, left), 0.001))
            except (StoreUnavailableError, WriteOutcomeUnknownError) as error:  # to take it again does no harm
                if not error.retryable or left <= 0:
                    raise
                if error.reason is ErrorReason.TIMEOUT:
                    patience *= 2  # it may be the network that is slow, and no lock
                else:
                    await asyncio.sleep(_LOOK_SECONDS)
            else:
                if row.owner is not None and row.owner.token == self._owner.token:
                    return row

    def _find_gone(self, found: FoundLease | None) -> str | None:
        """Return the token of a holder that is gone, None for a free lease; `LeaseHeldError` for any other holder."""
        owner = None if found is None else found.row.owner
        if found is None or owner is None or owner.token == self._owner.token:
            return None
        is_gone = owner.is_gone()
        if is_gone or found.seconds_left <= 0:
            self.predecessor = owner
            return owner.token if is_gone else None
        left = found.seconds_left
        raise held_error(self._context, owner, found.row.since, seconds_left=left, collection=LEASES.collection)

    async def undo(self, task: "asyncio.Task[LeaseRow]") -> None:
        """Give up what an attempt has taken whose caller was cancelled."""
        await asyncio.wait([task])
        if not task.cancelled() and task.exception() is None:
            await self._release()

    async def _release(self) -> None:
        with suppress(BacktestPersistError):
            await self.document.release(all_ended=False)  # those of a predecessor
