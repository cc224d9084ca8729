"""Run: a strategy bar by bar, whose bars are stored as a whole or not at all, by one writer."""

import asyncio
import time
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from contextvars import Context as ContextVariables
from contextvars import Token
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar, cast

from pydantic import BaseModel, ValidationError

from backtest_persist.backends.services import AtomicBackend
from backtest_persist.connections import joined, to_plain
from backtest_persist.contracts import CandleData, When
from backtest_persist.core.batching import BATCH_BYTES
from backtest_persist.core.change import Committer
from backtest_persist.core.keys import join_key
from backtest_persist.core.lease_document import LeaseContext
from backtest_persist.core.payload import encoded_fields, is_deferred
from backtest_persist.core.transaction import WithoutTransactions
from backtest_persist.core.unit_of_work import Layer, UnitOfWork, join, leave
from backtest_persist.domains.candle import CandleDbService
from backtest_persist.domains.session import SessionContext, SessionDbService
from backtest_persist.errors import (
    BacktestPersistError,
    ClosedError,
    InvalidWhenError,
    LeaseLostError,
    SettingsError,
    WriteOutcomeUnknownError,
)
from backtest_persist.logger import LoggerService
from backtest_persist.mode import Mode
from backtest_persist.run.bar import Bar, RunAdapters
from backtest_persist.run.candle_memory import CandleMemories, CandleMemory
from backtest_persist.run.candles import BufferedCandleStore, report_candles, unit_over

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ("BARS_OF_A_COMMIT", "SECONDS_OF_A_COMMIT", "Run")

S = TypeVar("S")

BARS_OF_A_COMMIT = 64
"""The bars of a backtest that are stored together, unless `commit_every` says otherwise."""
SECONDS_OF_A_COMMIT = 0.25
"""After which time bars are stored, however few they are."""
_MEASURED = (1, 8)
"""After how many bars of a commit their size is measured, as a transaction has to fit into the cache of the server."""
_UNCERTAIN = (WriteOutcomeUnknownError, LeaseLostError, ClosedError)
"""The errors of a commit after which a run cannot go on; after others nothing of it is stored."""
_logger = LoggerService()


@dataclass(frozen=True)
class _Point:
    """Where a run is: after how many bars, at which instant, with which session."""

    bars: int = 0
    when: int | None = None
    data: Any = None
    """The session as it is stored; None as long as nothing is."""


class Run(Generic[S]):
    """Runs a strategy of one symbol bar by bar; made by `Registry.run`, used by ``async with``.

    ::

        async with persist.run(strategy="trend", exchange="binance", symbol="BTCUSDT", frame="2024",
                               mode=Mode.BACKTEST, session=Session) as run:
            for candle in candles:
                if run.seen(closes_at := candle.timestamp + 60_000):
                    continue  # stored before the process was killed
                async with run.bar(closes_at) as bar:
                    ...

    What a bar writes, with the session, becomes visible together. An exception within the block discards what the bar
    has written and restores the session. After a kill at any instant the next run begins after the last bar that was
    stored, with the session of its end.

    In paper and live mode leaving the block means that the bar is stored. In a backtest bars are stored in the
    background, 64 of them or those of 250 ms together, or fewer if they take more than about 8 MiB, by one transaction,
    never a part of a bar; leaving the run, or `flush`, waits for all.

    If a bar of a commit of its own could not be stored, and that is known, it is discarded as by an exception, and can
    be done again. After any other error of a commit the run cannot go on: enter another one, which begins at what is
    stored.

    Entering takes a lease: there is one run of a strategy, exchange, symbol, frame and mode. `LeaseHeldError` if there
    is another one after `lease_wait` s, `LeaseLostError` from a bar if another one has succeeded this one.
    """

    def __init__(
        self,
        backend: AtomicBackend,
        context: LeaseContext,
        session: Callable[[], S],
        *,
        commit_every: int | None,
        lease_wait: float,
        atomic: bool,
        restart: bool,
        memories: CandleMemories,
    ) -> None:
        if commit_every is not None and (type(commit_every) is not int or commit_every < 1):
            raise SettingsError(f"commit_every is a number of bars, 1 or more, not {commit_every!r:.40}.")
        if not atomic and commit_every not in (None, 1):
            raise SettingsError("With atomic=False a run stores bar by bar: leave commit_every out.")
        self.context = context
        self.id = join_key(*(str(part) for part in context.parts().values()))
        """The strategy, exchange, symbol, frame and mode, as the ids that its bars give begin."""
        self._backend = backend
        self._factory = session
        self._every = commit_every or (BARS_OF_A_COMMIT if context.mode is Mode.BACKTEST and atomic else 1)
        self._lease_wait = lease_wait
        self._atomic = atomic
        self._restart = restart
        self._memories = memories
        self._stack: AsyncExitStack | None = None
        self._unit: UnitOfWork
        self._committer: Committer
        self._lease: Any
        self._memory: CandleMemory
        self.adapters: RunAdapters
        """The adapters, for reads between bars."""
        self.current: Bar[S] | None = None
        """The bar that is open."""
        self._token: Token[tuple[UnitOfWork, ...]] | None = None
        self._session: S
        self._is_restorable = False
        """Whether a session of this run was stored and made again."""
        self._point = _Point()
        self._stored = self._point
        """Where the run was when the last commit of its own began."""
        self._most = self._every
        """How many bars fit into one commit, by the size of those that wait for it."""
        self._pending_bars = 0
        self._pending_since = 0.0
        self._commit: asyncio.Task[None] | None = None
        self._failure: BaseException | None = None
        self._timer: asyncio.TimerHandle | None = None

    # --- begin and end ---

    async def __aenter__(self) -> Self:
        if self._stack is not None:
            raise SettingsError("A run is entered once; call persist.run(...) for another one.")
        async with AsyncExitStack() as stack:
            lease = self._backend.lease(self.context, wait=self._lease_wait)
            self._lease = await stack.enter_async_context(lease)
            self._committer = (
                self._backend.committer(lease) if self._atomic else WithoutTransactions(self._session_store)
            )
            stack.push_async_callback(self._committer.close)
            await self._committer.wait_for_init()
            self._unit = unit_over(self._backend)
            self._unit.is_open = False
            self.adapters = RunAdapters(self.context, self._unit)
            self._memory = await stack.enter_async_context(self._memories.shared())
            await self._restore()
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._stack is not None
        try:
            await self._finish(error)
        finally:
            self._cancel_timer()
            self._unit.end()
            await self._stack.aclose()

    async def _finish(self, error: BaseException | None) -> None:
        """Store the bars that are left; an error of that is not to hide the one that has ended the run."""
        try:
            await self.flush()
        except BacktestPersistError as problem:
            if error is None:
                raise
            _logger.warning("run.not_stored", context=self.context.describe(), error=type(problem).__name__)

    async def _restore(self) -> None:
        session = self._factory()
        if not isinstance(session, BaseModel | dict):
            raise SettingsError(
                f"A session is a pydantic model or a dict, not {type(session).__name__}: session=MySession, or "
                "session=dict."
            )
        self._session = session
        row = await self._sessions.find_by_context(*self._session_context.parts().values())
        payload = None if row is None else row.payload
        if payload is None or self._restart:
            return
        if payload.get("id") != self.id or not _is_point(payload):
            problem = (
                f"holds the session of the run {payload['id']}: paper and live share what is kept with backtest=False"
                if "id" in payload and _is_point(payload)
                else "holds a session that no run has stored"
            )
            raise SettingsError(
                f"session-items ({self._session_context.describe()}) {problem}. Give this run another exchange or "
                "frame, or pass restart=True, which replaces that session.",
                context=self._session_context.parts(),
            )
        self._point = self._stored = _Point(payload["bars"], payload["when"], payload["data"])
        self._session = self._rebuilt(self._point)

    def _rebuilt(self, point: _Point) -> S:
        """Return the session of a point, as a new object."""
        session = self._factory()
        if point.bars == 0:
            return session
        data = to_plain(point.data)
        if not isinstance(session, BaseModel):
            return cast("S", data)
        try:
            return cast("S", type(session).model_validate(data, strict=False, by_alias=True, by_name=True))
        except ValidationError as error:
            names = ", ".join(sorted({".".join(map(str, found["loc"])) for found in error.errors()}))
            raise SettingsError(
                f"session-items ({self._session_context.describe()}): what is stored of the session is no "
                f"{type(session).__name__}: see {names or 'its validators'}. Give new fields a default, store no field "
                "that it does not take, or begin with a new session by restart=True.",
                context=self._session_context.parts(),
            ) from None

    # --- the state of the run ---

    def _check_entered(self) -> None:
        if self._stack is None:
            raise SettingsError("Enter the run first: async with persist.run(...) as run.")

    @property
    def session(self) -> S:
        """The state of the strategy; change it within a bar."""
        self._check_entered()
        return self._session

    @session.setter
    def session(self, value: S) -> None:
        self._session = value

    @property
    def last_when(self) -> int | None:
        """The instant of the last bar that has ended, in ms UTC, also of a run before; None before the first."""
        return self._point.when

    @property
    def bars(self) -> int:
        """How many bars have ended, of this run and those before it."""
        return self._point.bars

    def seen(self, when: When) -> bool:
        """Whether the bar of that instant has ended, in this run or one before it."""
        return self._point.when is not None and self._sessions.to_millis(when) <= self._point.when

    @property
    def _sessions(self) -> SessionDbService:
        return self._unit.db_service(SessionDbService)

    @property
    def _session_context(self) -> SessionContext:
        context = self.context
        return SessionContext(
            strategy_name=context.strategy_name,
            exchange_name=context.exchange_name,
            frame_name=context.frame_name,
            symbol=context.symbol,
            backtest=context.mode.backtest,
        )

    def _session_store(self) -> Any:
        return self._backend.services.db_service(SessionDbService).store

    # --- bars ---

    def bar(self, when: When) -> Bar[S]:
        """Return the bar of an instant (aware datetime, or ms UTC): ``async with run.bar(when) as bar:``.

        Entering it raises `InvalidWhenError` for an instant that is not later than that of the last bar.
        """
        self._check_entered()
        return Bar(self, self._sessions.to_millis(when))

    async def begin(self, bar: Bar[S]) -> None:
        """Begin a bar; called by `Bar`."""
        if self._every == 1:  # the end of the bar before it may have been cancelled
            await self._settled()
        self._check()
        if self.current is not None:
            raise SettingsError(f"The bar of {self.current.when} has not ended; a run has one bar at a time.")
        if self._point.when is not None and bar.when <= self._point.when:
            raise InvalidWhenError(
                f"The bar of {bar.when} is not later than that of {self._point.when}, which has ended; pass over those "
                "for which run.seen(when) is true."
            )
        if not self._pending_bars:  # others may have written since the last read
            self._unit.forget_reads()
        self.current = bar
        self._unit.when = bar.when
        self._unit.is_open = True
        self._unit.open_layer()
        self._token = join(self._unit)

    async def end(self, bar: Bar[S], error: BaseException | None) -> None:
        """End a bar, which is discarded after an error; called by `Bar`."""
        if self._token is not None:
            leave(self._token)
        try:
            if error is None:
                point = await self._write_session(bar)
        except BaseException as problem:
            error = problem
            raise
        finally:
            self._unit.is_open = False
            self._unit.when = None
            self.current = None
            if error is not None:
                self._unit.discard_layer()
                self._unit.forget_reads()  # what it has read may be why it has failed
                self._session = self._rebuilt(self._point)
        if error is None:
            self._unit.keep_layer()
            self._point = point  # pyright: ignore[reportPossiblyUnboundVariable]
            await self._after_bar()

    async def _write_session(self, bar: Bar[S]) -> _Point:
        bars = self._point.bars + 1
        context = self._session_context
        payload = {"id": self.id, "data": self._session, "when": bar.when, "bars": bars}
        fields = {"payload": self._sessions.encoded(payload, context)}
        encoded = await asyncio.to_thread(encoded_fields, fields) if is_deferred(fields) else encoded_fields(fields)
        if not self._is_restorable:  # better known in the first bar than after a kill
            self._rebuilt(_Point(bars, bar.when, encoded["payload"]["data"]))
            self._is_restorable = True
        await self._sessions.store.write(context, {**encoded, "when": self._sessions.wire_when(bar.when)})
        return _Point(bars, bar.when, encoded["payload"]["data"])

    async def _after_bar(self) -> None:
        """Begin a commit if one is due; wait for it if it has this bar alone."""
        if not self._pending_bars:
            self._pending_since = time.monotonic()
        self._pending_bars += 1
        if self._every == 1:
            await self._commit_alone()
        else:
            self._check()
            if self._pending_bars in _MEASURED:
                bars = BATCH_BYTES * self._pending_bars // max(1, self._unit.kept_bytes())
                self._most = max(1, min(self._every, bars))
            if self._pending_bars >= self._most or time.monotonic() - self._pending_since >= SECONDS_OF_A_COMMIT:
                await self._settled()  # the server is slower than the strategy, which waits here
                self._begin_commit()
            elif self._timer is None:
                self._timer = asyncio.get_running_loop().call_later(SECONDS_OF_A_COMMIT, self._on_time)
        await asyncio.sleep(0)  # a strategy that is served from memory would let nobody else run

    async def _commit_alone(self) -> None:
        await self._settled()
        commit = self._begin_commit()
        if commit is not None:
            await joined(commit)

    async def flush(self) -> None:
        """Wait until all bars that have ended are stored; raises what went wrong."""
        self._check_entered()
        await self._settled()
        while self._pending_bars:
            self._begin_commit()
            await self._settled()

    async def _settled(self) -> None:
        """Wait until no commit is in progress; raises the error of one that has failed."""
        self._check()
        while self._commit is not None and not self._commit.done():
            await asyncio.wait([self._commit])
            self._check()

    def _check(self) -> None:
        if self._stack is not None and self._unit.has_ended:
            raise ClosedError("This run has ended; call persist.run(...) for another one.")
        failure = self._failure or self._lease.lost()
        if isinstance(failure, BacktestPersistError):
            raise failure.copy()
        if failure is not None:
            raise failure

    def _begin_commit(self) -> "asyncio.Task[None] | None":
        """Store the bars that have ended, unless the timer has begun to meanwhile; there is one commit at a time."""
        self._cancel_timer()
        if not self._pending_bars:
            return None
        self._pending_bars = 0
        before, self._stored = self._stored, self._point
        store = self._store(self._unit.take_layer(), before)
        commit = self._commit = asyncio.create_task(store, context=ContextVariables())
        commit.add_done_callback(self._note)
        return commit

    async def _store(self, layer: Layer, before: _Point) -> None:
        try:
            await self._unit.commit(self._committer, layer)
        except BaseException as error:  # here, as the next commit may begin in the turn in which this one ends
            is_known = isinstance(error, BacktestPersistError) and not isinstance(error, _UNCERTAIN)
            if self._every == 1 and is_known:
                self._point = self._stored = before
                self._session = self._rebuilt(before)
            else:
                self._failure = error
            raise
        for series, candles in await report_candles(self._unit, layer):
            self._memory.add(series.symbol, series.interval, series.exchange_name, candles)

    def _note(self, commit: "asyncio.Task[None]") -> None:
        if commit.cancelled():
            self._failure = ClosedError("The event loop was shut down before this run was stored.")
        else:
            commit.exception()  # nobody may be waiting for it

    def _on_time(self) -> None:
        """Store the bars that have ended, as no other one has for a while."""
        self._timer = None
        if self._commit is not None and not self._commit.done():
            self._timer = asyncio.get_running_loop().call_later(SECONDS_OF_A_COMMIT, self._on_time)
        elif self._failure is None:
            self._begin_commit()

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # --- candles ---

    @property
    def _candles(self) -> BufferedCandleStore:
        return cast("BufferedCandleStore", self._unit.db_service(CandleDbService).candles)

    async def candle_window(
        self, interval: str, limit: int, until: int, *, as_columns: bool
    ) -> "list[CandleData] | dict[str, NDArray[Any]]":
        """Return the last candles that have closed by `until`; see `Bar.candles`."""
        symbol, exchange = self.context.symbol, self.context.exchange_name
        pending = self._candles.pending(symbol, interval, exchange)
        if as_columns:
            return await self._memory.window(symbol, interval, exchange, limit, until, pending=pending)
        return await self._memory.rows(symbol, interval, exchange, limit, until, pending=pending)

    def forget_candles(self) -> None:
        """Read candles again, after others have replaced or deleted some; so do all runs of this event loop."""
        self._memory.forget()


def _is_point(payload: Mapping[str, Any]) -> bool:
    counts = (payload.get("bars"), payload.get("when"))
    return all(type(count) is int for count in counts) and "data" in payload
