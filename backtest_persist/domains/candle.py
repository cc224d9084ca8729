"""Candles: OHLCV of one symbol, interval and exchange; immutable, the first write wins."""

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, ValidationInfo
from pymongo import ASCENDING

from backtest_persist.contracts import Bound, CandleData, CandleInterval, CandlesInput, When
from backtest_persist.core.base_map import base_map
from backtest_persist.core.candles.input import CheckedCandles, check_candles
from backtest_persist.core.candles.ohlcv import (
    INTERVALS,
    Series,
    checked_window,
    interval_step_ms,
    on_grid,
    plain_candle,
)
from backtest_persist.core.candles.report import CandleReport
from backtest_persist.core.candles.resampling import checked_resample, resample_columns
from backtest_persist.core.candles.series_summary import SeriesSummary
from backtest_persist.core.candles.store import CandleStore
from backtest_persist.core.candles.writer import CandleWriter
from backtest_persist.core.db_service import DbService
from backtest_persist.core.domain import Domain, Family, FileLayout
from backtest_persist.core.frames.frame import CandleFrame
from backtest_persist.core.frames.row_list import RowList
from backtest_persist.core.instants import EarlyTimes, checked_bound, checked_int64
from backtest_persist.core.keys import STORED, Name, Timestamp, checked_limit, checked_name, checked_timestamp, join_key
from backtest_persist.core.mongo_store import Restored
from backtest_persist.core.persist_instance import PersistInstance, Services
from backtest_persist.core.row import Context, Row
from backtest_persist.errors import InvalidKeyError, InvalidPayloadError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = (
    "CANDLE",
    "CandleCacheService",
    "CandleContext",
    "CandleDbService",
    "CandleRow",
    "PersistCandleInstance",
)


def _interval(value: Any, info: ValidationInfo) -> str:
    if info.context != STORED:  # another program may store intervals that this one does not
        interval_step_ms(value)
    return checked_name(value, "interval")


Interval = Annotated[str, BeforeValidator(_interval)]


class CandleContext(Context):
    """Identifies one candle; `timestamp` is its opening time in ms UTC."""

    exchange_name: Name
    symbol: Name
    interval: Interval
    timestamp: Timestamp

    @property
    def cache_key(self) -> str:
        """The Redis key inside ``candle_cache``."""
        return join_key(self.exchange_name, self.symbol, self.interval, self.timestamp)


class CandleRow(CandleContext, Row):
    """One document of ``candle-items``."""

    open: float
    high: float
    low: float
    close: float
    volume: float

    def data(self) -> CandleData:
        """The candle as plain data, without context and dates."""
        return plain_candle(self)


class CandleCacheService(base_map("candle_cache", -1)):
    """Remembers which document holds a candle."""

    async def has_candle_id(self, symbol: str, interval: str, exchange_name: str, timestamp: When) -> bool:
        """Whether Redis knows an id for this context."""
        return await self.has(
            _context(symbol, interval, exchange_name, timestamp, self._service.allows_early_times).cache_key
        )

    async def get_candle_id(self, symbol: str, interval: str, exchange_name: str, timestamp: When) -> str | None:
        """Return the id that Redis knows for this context, or None."""
        return await self.get(
            _context(symbol, interval, exchange_name, timestamp, self._service.allows_early_times).cache_key
        )

    async def set_candle_id(self, row: CandleRow) -> str:
        """Remember the id of a row; returns it."""
        await self.set(row.cache_key, row.id)
        return row.id


class CandleDbService(DbService[CandleContext, CandleRow]):
    """Reads and writes ``candle-items``; there is no `upsert`, because a closed candle never changes."""

    collection = "candle-items"
    default_sort = tuple((name, ASCENDING) for name in ("timestamp", "exchangeName", "symbol", "interval"))
    """In one series by its unique index, so that the server need not sort."""

    def __init__(self, store: CandleStore[CandleContext, CandleRow]) -> None:
        super().__init__(store)
        self.candles = store
        """The candles, in whichever backend they are kept."""
        self._writer = CandleWriter(store)

    # --- writing ---

    @property
    def remembers_ids(self) -> bool:
        """Whether Redis is told the ids of new candles: ``CC_CANDLE_CACHE``."""
        return self.candles.remembers_ids

    async def create(self, symbol: str, interval: str, exchange_name: str, candle: Any) -> CandleRow:
        """Store one candle and return what is stored: an earlier candle of that time stays as it is.

        Raises `InvalidPayloadError` for a candle that has not closed yet, or cannot be real; see `store`.
        """
        series = Series(symbol, interval, exchange_name)
        checked = self._checked(series, [candle])
        if checked.open:
            raise series.error("the candle has not closed yet and may still change", checked.open[0])
        (data,) = checked.valid.values()
        context = self._context(series.symbol, series.interval, series.exchange_name, data["timestamp"])
        row = await self.candles.create_candle(context, data)
        report = CandleReport.of(checked)
        if row.data() != data:
            report.different.append(row.timestamp)
        self._writer.log.tell(series, report)
        return row

    async def create_many(self, symbol: str, interval: str, exchange_name: str, candles: CandlesInput) -> int:
        """Store closed candles, of which the first write of a time wins; returns how many were new. See `store`."""
        return (await self.store(symbol, interval, exchange_name, candles)).new

    async def store(  # pyright: ignore[reportIncompatibleMethodOverride]  # a name of the API; rows are in `candles`
        self,
        symbol: str,
        interval: str,
        exchange_name: str,
        candles: CandlesInput,
        *,
        as_of: When | None = None,
        errors: Literal["raise", "skip"] = "raise",
        allow_outliers: bool = False,
    ) -> CandleReport:
        """Store the candles that had closed at `as_of`, and tell what became of each; the first write of a time wins.

        For the shapes of `candles` see `contracts.CandlesInput`. `as_of` is when the exchange was asked: a candle that
        was open then is not stored, even if it has closed since. The default, and the latest that counts, is now.

        All candles are checked before any is stored. Those that cannot be real are an `InvalidPayloadError` that names
        five of them, or with ``errors="skip"`` entries of the report: a time that is no multiple of the interval, a
        number that is not finite, a high or low inside the body, a negative volume, and different candles of one time.
        Prices may be negative, as some futures have been. A high or low that misses the body by no more than 1e-9 of
        the price is set to it.

        An outlier, with a price in another unit than most of the call, is not stored unless `allow_outliers` is set:
        one of its prices is at least 10^5 times, or at most 10^-5 of, the last close before it that is right, or the
        next one after it. More than half of the call must be right. Only positive prices are compared, and none over a
        pause of more than 30 days.
        One that is stored already with the same numbers counts as `same`, but not within a run.
        """
        series = Series(symbol, interval, exchange_name)
        if errors not in ("raise", "skip"):
            raise InvalidPayloadError(f"errors must be 'raise' or 'skip', not {errors!r:.40}.")
        checked = self._checked(series, candles, as_of, skip=errors == "skip", allow_outliers=allow_outliers)
        await self._writer.admit_stored_outliers(series, checked)
        return await self._writer.write(series, checked)

    async def replace_range(
        self,
        symbol: str,
        interval: str,
        exchange_name: str,
        since: When,
        until: When,
        candles: CandlesInput,
        *,
        as_of: When | None = None,
        allow_outliers: bool = False,
    ) -> CandleReport:
        """Replace what is stored in [since, until) by these candles, such as after a split or a wrong import.

        They are checked first, as by `store`, and lie in that range. Outliers are an `InvalidPayloadError` unless they
        are allowed, or stored already with the same numbers. What is stored is deleted before the candles are stored,
        so that a read that begins meanwhile, or after a failure, finds the range incomplete. One that begins before and
        ends after, such as one of more than 50,000 candles, may find old ones first and then new ones.
        """
        series = Series(symbol, interval, exchange_name)
        start, end = self._instant(since, "since"), self._instant(until, "until")
        checked = self._checked(series, candles, as_of, allow_outliers=allow_outliers)
        if not allow_outliers:
            await self._writer.admit_stored_outliers(series, checked)
            if checked.outliers:
                raise checked.outliers_error(series)
        if outside := [at for at in checked.valid if not start <= at < end]:
            raise series.error(
                f"{len(outside)} candles lie outside of the range [{start}, {end}), such as {outside[0]}"
            )
        await self.candles.delete_range(series, start, end)
        return await self._writer.write(series, checked)

    async def delete_range(
        self,
        symbol: str,
        interval: str,
        exchange_name: str,
        since: When | None = None,
        until: When | None = None,
    ) -> int:
        """Delete what is stored in [since, until), without bounds the whole series; returns how many candles."""
        series = Series(symbol, interval, exchange_name)
        start = None if since is None else self._instant(since, "since")
        end = None if until is None else self._instant(until, "until")
        return await self.candles.delete_range(series, start, end)

    async def restore_series(
        self, symbol: str, interval: str, exchange_name: str, candles: Sequence[CandleData], *, dry_run: bool = False
    ) -> list[Restored]:
        """Restore candles of one series that `checked_candle` has passed; see `MongoStore.restore`."""
        series = Series(symbol, interval, exchange_name)
        return await self._writer.restore(series, candles, dry_run=dry_run)

    def _checked(
        self,
        series: Series,
        candles: CandlesInput,
        as_of: When | None = None,
        *,
        skip: bool = False,
        allow_outliers: bool = False,
    ) -> CheckedCandles:
        now = _now()
        asked = now if as_of is None else min(now, self._instant(as_of, "as_of"))
        checked = check_candles(
            series, candles, as_of=asked, early=self.allows_early_times, allow_outliers=allow_outliers
        )
        if checked.invalid and not skip:
            raise checked.error(series)
        return checked

    # --- reading ---

    async def find_by_context(
        self, symbol: str, interval: str, exchange_name: str, timestamp: When
    ) -> CandleRow | None:
        """Return the row of this context, or None."""
        return await self.candles.find(self._context(symbol, interval, exchange_name, timestamp))

    async def has_candle(self, symbol: str, interval: str, exchange_name: str, timestamp: When) -> bool:
        """Whether the candle is stored."""
        return await self.find_by_context(symbol, interval, exchange_name, timestamp) is not None

    async def find_range(
        self, symbol: str, interval: str, exchange_name: str, since: When, limit: int
    ) -> RowList[CandleRow]:
        """Find what is stored of the window of `limit` candles from `since` on, oldest first."""
        series = Series(symbol, interval, exchange_name)
        return await self.candles.find_rows(series, *self._bounds(series, since, limit))

    async def find_data(
        self, symbol: str, interval: str, exchange_name: str, since: When, limit: int
    ) -> list[CandleData]:
        """Find the same as `find_range`, as plain data: no row is built, and context and dates are not read."""
        series = Series(symbol, interval, exchange_name)
        return await self.candles.find_data(series, *self._bounds(series, since, limit))

    async def find_columns(
        self, symbol: str, interval: str, exchange_name: str, since: When, limit: int
    ) -> "dict[str, NDArray[Any]]":
        """Find the same as `find_range`, as numpy arrays by field: `timestamp` int64 (ms UTC), the others float64.

        No object is built for a candle. Needs numpy; `SettingsError` without it.
        """
        series = Series(symbol, interval, exchange_name)
        return await self.candles.find_columns(series, *self._bounds(series, since, limit))

    async def find_frame(
        self,
        symbol: str,
        interval: str,
        exchange_name: str,
        since: Bound | None = None,
        until: Bound | None = None,
        *,
        resample: str | None = None,
    ) -> CandleFrame:
        """Find the candles that open in [since, until), without bounds the whole series, for DataFrames.

        A bound is an instant, a date, which is the beginning of its UTC day, or either in ISO format, such as
        ``"2024-01-31"`` or ``"2024-01-31T09:30+01:00"``. In a run, candles that close after the instant of the bar are
        left out. So are those of other programs at times that are no multiple of the interval.

        `InvalidKeyError` for a bound that is none, and for a `since` after `until`.

        With `resample`, such as ``"12h"``, ``"1w"`` or ``"1M"``, longer candles are made of them: those that lie in
        [since, until) as a whole and have closed; see `resample_columns`. `InvalidKeyError` for an interval that is no
        multiple of the stored one. Needs numpy; `SettingsError` without it.
        """
        series = Series(symbol, interval, exchange_name)
        interval = series.interval if resample is None else checked_resample(series.interval, resample)
        start = None if since is None else self._bound(since, "since")
        end = None if until is None else self._bound(until, "until")
        if start is not None and end is not None and start > end:
            raise InvalidKeyError(f"since {since!s:.40} is after until {until!s:.40}; exchange them.")
        closed = self.default_until()
        last = None if closed is None else closed - series.step + 1
        ends = [bound for bound in (end, last) if bound is not None]
        found = await self.candles.find_columns(series, start, min(ends, default=None))
        columns = on_grid(found, series.step)
        if resample is not None:
            ends = [bound for bound in (end, _now() if closed is None else closed) if bound is not None]
            columns = resample_columns(columns, series.interval, resample, since=start, until=min(ends))
        return CandleFrame(series.symbol, interval, series.exchange_name, columns)

    async def find_last(
        self, symbol: str, interval: str, exchange_name: str, limit: int, until: When | None = None
    ) -> RowList[CandleRow]:
        """Find the last `limit` stored candles that have closed by `until`, by default now, oldest first.

        Missing ones are passed over, such as those of days without a session or minutes without a trade. In a run the
        default is the instant of the bar.
        """
        series = Series(symbol, interval, exchange_name)
        return await self.candles.find_last_rows(series, checked_limit(limit), self._latest(series, until))

    async def find_last_data(
        self, symbol: str, interval: str, exchange_name: str, limit: int, until: When | None = None
    ) -> list[CandleData]:
        """Find the same as `find_last`, as plain data."""
        series = Series(symbol, interval, exchange_name)
        return await self.candles.find_last_data(series, checked_limit(limit), self._latest(series, until))

    async def find_gaps(
        self, symbol: str, interval: str, exchange_name: str, since: When, until: When
    ) -> list[tuple[int, int]]:
        """Return the holes in [since, until), each as (first missing opening time, time after the hole), in ms UTC."""
        series = Series(symbol, interval, exchange_name)
        bounds = (self._instant(since, "since"), self._instant(until, "until"))
        start, end = (checked_int64(-(-bound // series.step) * series.step, "a bound") for bound in bounds)
        return await self.candles.find_gaps(series, start, end)

    async def list_series(
        self, symbol: str | None = None, interval: str | None = None, exchange_name: str | None = None
    ) -> list[SeriesSummary]:
        """List the stored series, or those with these names, by exchange, symbol and interval, each with its gaps.

        No document is read: in MongoDB series are found and counted by the unique index, each command with its own
        deadline. Those of intervals that another program has stored and this one does not know have no gaps; `interval`
        may therefore be any name. What is stored at a time that no candle can have is passed over or misaligned.
        """
        given = {"symbol": symbol, "interval": interval, "exchange_name": exchange_name}
        names = {name: checked_name(value, name) for name, value in given.items() if value is not None}
        return sorted(await self.candles.list_series(names), key=_by_names)

    def default_until(self) -> int | None:
        """Return the instant, in ms UTC, that a reader who names none may see: that of the bar in a run, or none."""
        return self.candles.default_when()

    def _bounds(self, series: Series, since: When, limit: int) -> tuple[int, int]:
        start = self._instant(since, "since")
        return start, checked_int64(start + checked_limit(limit) * series.step, "the end of the window")

    def _latest(self, series: Series, until: When | None) -> int:
        """Return the opening time of the last candle that has closed by `until`, if it opened on time."""
        until = self.default_until() if until is None else until
        return (_now() if until is None else self._instant(until, "until")) - series.step

    def _context(self, symbol: str, interval: str, exchange_name: str, timestamp: When) -> CandleContext:
        return _context(symbol, interval, exchange_name, timestamp, self.allows_early_times)

    def _bound(self, value: Bound, what: str) -> int:
        return checked_bound(value, what, self.allows_early_times)

    def _instant(self, value: When, what: str) -> int:
        return checked_timestamp(value, what, self.allows_early_times)


class PersistCandleInstance(PersistInstance[CandleDbService]):
    """Keeps the candles of one symbol, interval and exchange."""

    def __init__(
        self, symbol: str, interval: CandleInterval, exchange_name: str, *, ioc: Services | None = None
    ) -> None:
        super().__init__(ioc)
        self.symbol = symbol
        self.interval: CandleInterval = interval
        self.exchange_name = exchange_name

    async def read_candles_data(
        self, limit: int, since_timestamp: When, until_timestamp: When | None = None
    ) -> list[CandleData] | None:
        """The window of `limit` candles from `since_timestamp` (ms UTC) on, or None when any of them is missing.

        A candle that closes after `until_timestamp` (ms UTC) counts as missing: its prices lie in the future.
        Raises `InvalidKeyError` for a negative limit, or a start that is not a multiple of the interval.
        """
        window = self._window(limit, since_timestamp, until_timestamp)
        if window is None:
            return None
        candles = await self.db.find_data(self.symbol, self.interval, self.exchange_name, window.start, len(window))
        if len(candles) < len(window):
            return None
        found = {candle["timestamp"]: candle for candle in candles}  # another program may have stored some in between
        return [found[at] for at in window] if found.keys() >= set(window) else None

    async def read_candle_columns(
        self, limit: int, since_timestamp: When, until_timestamp: When | None = None
    ) -> "dict[str, NDArray[Any]] | None":
        """Read the same window as numpy arrays by field: `timestamp` int64 (ms UTC), the others float64.

        None when any candle of the window is missing. No object is built for a candle. Needs numpy.
        """
        window = self._window(limit, since_timestamp, until_timestamp)
        if window is None:
            return None
        columns = await self.db.find_columns(self.symbol, self.interval, self.exchange_name, window.start, len(window))
        columns = on_grid(columns, window.step)
        return columns if len(columns["timestamp"]) == len(window) else None

    async def read_last_candles(self, limit: int, until: When | None = None) -> list[CandleData]:
        """Return the last `limit` stored candles that have closed by `until`, by default now, oldest first.

        Missing ones are passed over, such as those of days without a session or minutes without a trade.
        """
        return await self.db.find_last_data(self.symbol, self.interval, self.exchange_name, limit, until)

    async def write_candles_data(self, candles: CandlesInput, *, as_of: When | None = None) -> None:
        """Store candles; those that had not closed at `as_of`, when the exchange was asked, are skipped.

        The default, and the latest that counts, is now.
        """
        await self.db.store(self.symbol, self.interval, self.exchange_name, candles, as_of=as_of)

    def _window(self, limit: int, since: When, until: When | None) -> range | None:
        until = self.db.default_until() if until is None else until
        return checked_window(self.interval, limit, since, until, self.db.allows_early_times)


def _by_names(summary: SeriesSummary) -> tuple[str, str, int, str]:
    known = summary.interval in INTERVALS
    place = INTERVALS.index(summary.interval) if known else len(INTERVALS)
    return summary.exchange_name, summary.symbol, place, summary.interval


def _now() -> int:
    return int(time.time() * 1000)


def _context(symbol: str, interval: str, exchange_name: str, timestamp: When, early: EarlyTimes) -> CandleContext:
    parts = {"exchange_name": exchange_name, "symbol": symbol, "interval": interval, "timestamp": timestamp}
    return CandleContext.model_validate(parts, context=early)


CANDLE = Domain(
    "candle",
    Family.SERIES,
    CandleCacheService,
    CandleDbService,
    PersistCandleInstance,
    FileLayout("data/candle", (("exchange_name",), ("symbol",), ("interval",)), ("timestamp",)),
    noun="candles",
    deletes=True,
)
