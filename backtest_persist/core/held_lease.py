"""HeldLease: what the holder of a lease has open, which is its renewal and the session of its transactions."""

import asyncio
import os
import time
from contextlib import suppress
from contextvars import Context as ContextVariables
from typing import Any
from uuid import UUID

from backtest_persist.connections import MongoState, joined
from backtest_persist.core.lease_document import LEASES, LeaseContext, LeaseDocument, LeaseRow
from backtest_persist.core.owner import lost_error, note_given_up
from backtest_persist.errors import BacktestPersistError, LeaseLostError
from backtest_persist.logger import LoggerService

__all__ = ("HeldLease",)

_VERIFY_SECONDS = 1.0
"""How much later a transaction that has failed may fail, so that its error is the right one."""


class HeldLease:
    """A lease from when it was taken until it is given up; belongs to the event loop in which it was taken."""

    def __init__(
        self,
        state: MongoState,
        logger: LoggerService,
        context: LeaseContext,
        document: LeaseDocument,
        row: LeaseRow,
        duration: float,
    ) -> None:
        self.state = state
        self.epoch = row.epoch
        self._logger = logger
        self._context = context
        self._document = document
        self._duration = duration
        self._pid = os.getpid()
        self._lost: LeaseLostError | None = None
        self._ended = set(row.session_ids)
        """Sessions that are recorded in the lease, and have no transaction any more."""
        self._recorded: dict[UUID, Any] = {}
        """Sessions of this holder that may have a transaction."""
        self._unused: Any = None
        """A session that could not be recorded, or perhaps was; the next attempt takes it again."""
        self._starting: asyncio.Task[Any] | None = None
        self._killing: set[asyncio.Task[None]] = set()
        self._has_fenced = False
        """Whether a transaction may have renewed the lease since the last look at it."""
        self._safe_until = 0.0
        """Until when it cannot have run out, as far as is known, on the monotonic clock of this process."""
        self._stopped = asyncio.Event()
        self._has_ended = asyncio.Event()
        self._renewal = asyncio.create_task(self._keep_renewed(), context=ContextVariables())
        self._siblings = state.per_collection(LEASES.collection, _HeldLeases)
        self._siblings.leases.add(self)

    @property
    def is_here(self) -> bool:
        """Whether this process took it, and not the one by which it was forked."""
        return self._pid == os.getpid()

    def lost(self) -> LeaseLostError | None:
        """Return the error that says why it is not held any more; None as long as no loss is known."""
        if not self.is_here:
            problem = (
                f"its lease belongs to the process {self._pid}, by which this one was forked. Take one in this one"
            )
            return self._lost_error(problem)
        return self._lost

    # --- transactions ---

    async def session(self) -> Any:
        """Return the session of the transactions, which all callers share; see `Lease.session`."""
        starting = self._starting
        if starting is None or (starting.done() and (starting.cancelled() or starting.exception() is not None)):
            start = self._start_session(frozenset(self._killing))
            starting = self._starting = asyncio.create_task(start, context=ContextVariables())
        return starting.result() if starting.done() else await joined(starting)

    async def _start_session(self, killing: "frozenset[asyncio.Task[None]]") -> Any:
        if killing:  # what they end may lock what the next transaction writes; later ones wait for this session
            await asyncio.wait(killing)
        await self.state.select_server(LEASES.operation("start a session", self._context))
        self.state.check_transactions()
        await self._end_recorded()  # which a kill has left, and which may lock the lease
        session = self._unused = self._unused or await self.state.start_session()
        id = UUID(bytes=bytes(session.session_id["id"]))
        ended = set(self._ended) - {id}
        sent = time.monotonic()
        if not await self._document.record(self.epoch, id, ended):
            raise await self._loss()
        self._unused = None
        self._recorded[id] = session
        self._note_expiry(sent + self._duration)
        self._ended -= ended
        return session

    def abandon_session(self) -> None:
        """Forget the session and end its transaction in the background; see `Lease.abandon_session`."""
        if not self.is_here:
            return
        starting, self._starting = self._starting, None
        if starting is not None:
            task = asyncio.create_task(self._kill_sessions(starting), context=ContextVariables())
            self._killing.add(task)
            task.add_done_callback(self._killing.discard)

    async def _kill_sessions(self, starting: "asyncio.Task[Any]") -> None:
        await asyncio.wait([starting])
        with suppress(BacktestPersistError):  # they stay recorded, then, for a successor
            await self._end_recorded()

    async def _end_recorded(self) -> None:
        sessions = dict(self._recorded)
        if sessions:
            await self._document.end_transactions(sessions)
        for id in sessions:
            self._recorded.pop(id, None)
        self._ended |= sessions.keys()

    async def renew_for(self, seconds: float) -> None:
        """Let it last for a transaction of so many seconds, and its duration on top; see `Lease.renew_for`."""
        sent = time.monotonic()
        if sent + seconds > self._safe_until:
            lasting = seconds + self._duration
            if not await self._document.renew(self.epoch, min(seconds, self.state.seconds), lasting):
                raise await self._loss()
            self._note_expiry(sent + lasting)

    async def fence(self, session: Any) -> None:
        """Refuse the transaction of a session unless the lease is still held; see `Lease.fence`."""
        self._has_fenced = True
        if not await self._document.fence(self.epoch, session):
            raise await self._loss()

    async def verify(self) -> None:
        """Raise the error of a lease that is lost; see `Lease.verify`."""
        if time.monotonic() < self._safe_until:
            return
        found = await self._document.find(min(self.state.seconds, _VERIFY_SECONDS))
        if found is None or not self._document.owns(found.row, self.epoch):
            raise await self._loss()

    # --- renewal ---

    async def _keep_renewed(self) -> None:
        pause = self._duration / 3
        while not await self._is_stopped_within(pause) and self.lost() is None:
            pause = self._duration / 3
            try:
                await self._renew()
            except LeaseLostError:
                return
            except BacktestPersistError as error:  # the server is away, or a transaction of this holder locks the lease
                pause = self._duration / 10
                self._logger.debug("lease.not_renewed", context=self._context.describe(), why=error)

    async def _is_stopped_within(self, seconds: float) -> bool:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stopped.wait()
        return self._stopped.is_set()

    async def _renew(self) -> None:
        sent = time.monotonic()
        if self._has_fenced:  # a read meets no lock of a transaction, and is in the way of none
            self._has_fenced = False
            found = await self._document.find()
            is_mine = found is not None and self._document.owns(found.row, self.epoch)
            if found is not None and is_mine and found.seconds_left > self._duration * 2 / 3:
                self._note_expiry(sent + found.seconds_left)
                return
            sent = time.monotonic()
        if not await self._document.renew(self.epoch, min(self.state.seconds, self._duration / 3)):
            raise await self._loss()
        self._note_expiry(sent + self._duration)

    def _note_expiry(self, safe_until: float) -> None:
        self._safe_until = max(self._safe_until, safe_until)

    # --- the end ---

    async def end(self) -> None:
        """Give the lease up, bounded by one deadline; what cannot be sent is left to the end of its duration.

        A second caller waits for the first one.
        """
        if not self.is_here:
            return
        if self._stopped.is_set():
            await self._has_ended.wait()
            return
        self._stopped.set()
        self._siblings.leases.discard(self)
        half = self.state.seconds / 2
        try:
            try:
                if self._recorded:  # before all else, as what it ends may lock the lease
                    await self._document.kill(set(self._recorded), half)
            finally:
                await asyncio.wait({self._renewal, *self._killing, *([self._starting] if self._starting else [])})
                self._starting = None
            await self._document.release(half)
        except BacktestPersistError as error:
            note_given_up(self._document.token)
            self._logger.warning("lease.not_given_up", context=self._context.describe(), why=error)
        finally:
            self._lost = self._lost or self._lost_error("its lease was given up")
            self._has_ended.set()
        if self._unused is not None:
            await self._unused.end_session()

    async def _loss(self) -> LeaseLostError:
        """Note that the lease is not this holder's any more, and return the error that says so."""
        if self._lost is None:
            found = None
            with suppress(BacktestPersistError):
                found = await self._document.find()
            if self._lost is None:  # nor meanwhile
                row = None if found is None else found.row
                self._lost = self._lost_error(row=row)
                self._logger.warning("lease.lost", context=self._context.describe(), epoch=self.epoch)
        return self._lost.copy()

    def _lost_error(self, problem: str | None = None, row: LeaseRow | None = None) -> LeaseLostError:
        owner, since = (None, None) if row is None else (row.owner, row.since)
        return lost_error(self._context, problem, owner=owner, since=since, collection=LEASES.collection)


class _HeldLeases:
    """The leases that an event loop holds, which are given up when its client is closed."""

    def __init__(self, state: MongoState) -> None:
        self.leases: set[HeldLease] = set()

    async def drain(self) -> None:
        """Wait for nothing: what is in progress is waited for by those who asked for it, or by `end`."""

    async def settle(self) -> None:
        """Wait for nothing: a write that the network delays has no effect on a lease that another one has taken."""

    async def end(self) -> None:
        """Give all up, one by one: at the end of a loop a task would begin asynchronous generators, which warns."""
        for lease in list(self.leases):
            await lease.end()
