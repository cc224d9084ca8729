"""JsonLease: makes one process the writer of a context of a dump; see `core.lease` for that of MongoDB.

Whoever takes a lease has locked the journal and the directory of the lease, in this order. So a commit, which checks
its lease while it has the journal, is either stored before a successor takes the lease, or refused. Renewing a lease
and giving it up takes the directory of the lease alone: leases do not run out while another process keeps the journal.
"""

import asyncio
import os
from collections.abc import Generator
from contextlib import contextmanager, suppress
from contextvars import Context as ContextVariables
from datetime import datetime, timedelta
from functools import partial
from types import TracebackType
from typing import NamedTuple, Self

from anyio.to_thread import run_sync

from backtest_persist.backends.json.atomic import (
    cause_of,
    find_leftovers,
    make_directory,
    read_file,
    remove_leftovers,
    replace_file,
    sync_directory,
)
from backtest_persist.backends.json.folder import DumpFiles
from backtest_persist.backends.json.locks import directory_lock
from backtest_persist.backends.json.names import escape, shorten
from backtest_persist.backends.json.sidecar import HIDDEN
from backtest_persist.connections import uncancelled
from backtest_persist.core.lease import LEASE_SECONDS, check_times, take_within
from backtest_persist.core.lease_document import LeaseContext
from backtest_persist.core.owner import Owner, held_error, lost_error
from backtest_persist.core.row import utc_now
from backtest_persist.errors import (
    BacktestPersistError,
    InvalidKeyError,
    LeaseLostError,
    StoreUnavailableError,
)
from backtest_persist.logger import LoggerService

__all__ = ("JsonLease",)

_logger = LoggerService()


class _StoredLease(LeaseContext):
    """The content of the file of a lease."""

    epoch: int
    """The number of times that it was taken."""
    owner: Owner | None
    """The process that has taken it; None when it was given up."""
    since: datetime
    """When it was taken."""
    expiry: datetime
    """When it runs out unless it is renewed."""
    duration: timedelta
    """How long it lasts; if it has longer than that from now, the clock was set back since."""


class _Taken(NamedTuple):
    epoch: int
    predecessor: Owner | None
    """The holder that was succeeded."""


class JsonLease:
    """Makes this process the one writer of a context of a dump for the length of an ``async with`` block.

    Entering raises `LeaseHeldError` unless the lease is free within `wait` s. It is renewed in the background; without
    that it lasts for `duration` s. A holder that ran on this host and is gone is succeeded at once, any other one when
    its lease has run out. What a holder that is gone has left in the journal is settled before the block begins.

    A lease that was lost does not end the block: the next commit of its committer is refused.
    """

    def __init__(
        self, dump: DumpFiles, context: LeaseContext, *, wait: float = 0.0, duration: float = LEASE_SECONDS
    ) -> None:
        check_times(wait, duration)
        self.context = context
        self.epoch = 0
        """The number of times that the lease of this context was taken, by now; 0 before it is."""
        self._journal = dump.journal
        parts = [escape(str(part)).replace("_", "%5F") for part in context.parts().values()]
        self._directory = dump.root / HIDDEN / "leases" / shorten("_".join(parts))
        self._file = self._directory / "lease.json"
        self._wait = wait
        self._duration = timedelta(seconds=duration)
        self._owner: Owner | None = None
        self._lost: LeaseLostError | None = None
        self._stopped = asyncio.Event()
        self._renewal: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        await take_within(self._wait, self._take)
        self._lost = None
        self._stopped = asyncio.Event()
        self._renewal = asyncio.create_task(self._keep_renewed(), context=ContextVariables())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._owner is not None and self._is_here:
            await uncancelled(partial(self._end, self._owner))

    def lost(self) -> LeaseLostError | None:
        """Return the error that says why the lease is not held any more; None as long as no loss is known."""
        if self._owner is not None and not self._is_here:
            problem = (
                f"its lease belongs to the process {self._owner.pid}, by which this one was forked. Take one in this "
                "one"
            )
            return lost_error(self.context, problem)
        return self._lost

    def fence(self) -> None:
        """Raise `LeaseLostError` unless the lease is still held; renew it. For a thread that has locked the journal."""
        lost = self.lost()
        if lost is not None:
            raise lost.copy()
        if self._owner is None:
            raise lost_error(self.context, "its lease was not taken. Use the lease inside of `async with`")
        with self._lock():
            found = self._load()
            if found is None or found.owner is None or (found.epoch, found.owner) != (self.epoch, self._owner):
                self._lost = lost_error(
                    self.context, owner=found.owner if found else None, since=found.since if found else None
                )
                _logger.warning("lease.lost", context=self.context.describe(), epoch=self.epoch)
                raise self._lost.copy()
            now = utc_now()
            if not self._duration * 2 / 3 <= found.expiry - now <= self._duration:
                self._store(found.model_copy(update={"expiry": now + self._duration}), flush=False)

    @property
    def _is_here(self) -> bool:
        return self._owner is not None and self._owner.pid == os.getpid()

    async def _take(self) -> None:
        owner = Owner.here()
        taking = asyncio.create_task(run_sync(self._take_file, owner))
        try:
            taken = await asyncio.shield(taking)
        except asyncio.CancelledError:
            await uncancelled(partial(self._undo, taking, owner))
            raise
        self._owner, self.epoch = owner, taken.epoch
        if taken.predecessor is not None:
            host, pid = taken.predecessor.host, taken.predecessor.pid
            _logger.info("lease.succeeded", context=self.context.describe(), host=host, pid=pid)

    async def _undo(self, taking: "asyncio.Task[_Taken]", owner: Owner) -> None:
        """Give up what was taken for a caller who was cancelled."""
        await asyncio.wait([taking])
        if taking.exception() is None:
            with suppress(BacktestPersistError):
                await run_sync(self._release, owner)

    async def _keep_renewed(self) -> None:
        usual = self._duration.total_seconds() / 3
        pause = usual
        while not await self._is_stopped_within(pause):
            pause = usual
            try:
                await run_sync(self._renew)
            except LeaseLostError:
                return
            except BacktestPersistError as error:
                pause = usual / 3
                _logger.debug("lease.not_renewed", context=self.context.describe(), why=error)

    async def _is_stopped_within(self, seconds: float) -> bool:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stopped.wait()
        return self._stopped.is_set()

    async def _end(self, owner: Owner) -> None:
        if self._renewal is None or self._stopped.is_set():
            return
        self._stopped.set()
        await asyncio.wait([self._renewal])
        try:
            await run_sync(self._release, owner)
        except BacktestPersistError as error:
            _logger.warning("lease.not_given_up", context=self.context.describe(), why=error)
        self._lost = self._lost or lost_error(self.context, "its lease was given up")

    # --- in a thread ---

    def _take_file(self, owner: Owner) -> _Taken:
        with self._errors("taken"):
            self._check_free(self._load(), utc_now())  # without waiting for those who use the journal
            with self._journal.lock(), self._lock():
                found, now = self._load(), utc_now()
                if found is not None and found.expiry - now > found.duration:  # to be counted from now
                    found = found.model_copy(update={"expiry": now + found.duration})
                    self._store(found, flush=False)
                self._check_free(found, now)
                epoch = 1 if found is None else found.epoch + 1
                lease = _StoredLease(
                    **self.context.parts(),
                    epoch=epoch,
                    owner=owner,
                    since=now,
                    expiry=now + self._duration,
                    duration=self._duration,
                )
                self._store(lease, flush=True)
                return _Taken(epoch, None if found is None else found.owner)

    def _check_free(self, found: _StoredLease | None, now: datetime) -> None:
        """Raise the error of a lease that is held, unless the clock was set back since."""
        if found is None or found.owner is None or found.expiry <= now or found.expiry - now > found.duration:
            return
        if not found.owner.is_gone():
            left = (found.expiry - now).total_seconds()
            raise held_error(self.context, found.owner, found.since, seconds_left=left)

    @contextmanager
    def _lock(self) -> Generator[None]:
        make_directory(self._directory)
        with directory_lock(self._directory):
            yield

    def _renew(self) -> None:
        with self._errors("renewed"):
            self.fence()

    def _release(self, owner: Owner) -> None:
        with self._errors("given up"), self._lock():
            found = self._load()
            if found is not None and found.owner == owner:
                self._store(found.model_copy(update={"owner": None, "expiry": utc_now()}), flush=True)

    def _load(self) -> _StoredLease | None:
        """Read the lease; None if it was never taken, or its file is damaged, which no living holder leaves."""
        text = read_file(self._file)
        try:
            return None if text is None else _StoredLease.model_validate_json(text)
        except (InvalidKeyError, ValueError):
            return None

    def _store(self, lease: _StoredLease, *, flush: bool) -> None:
        remove_leftovers(find_leftovers(self._directory, locked=True))
        replace_file(self._file, lease.model_dump_json(by_alias=True).encode(), flush=flush)
        if flush:
            sync_directory(self._directory)

    @contextmanager
    def _errors(self, verb: str) -> Generator[None]:
        try:
            yield
        except OSError as error:
            raise StoreUnavailableError(
                f"The lease of the run ({self.context.describe()}) cannot be {verb}: {cause_of(error)}.",
                context=self.context.parts(),
                retryable=not isinstance(error, PermissionError),
            ) from None
