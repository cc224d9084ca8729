"""Candles in a unit of work: those that are stored, and those that the unit has written."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from backtest_persist.backends.services import AtomicBackend
from backtest_persist.contracts import CandleData
from backtest_persist.core.candles.ohlcv import NUMBERS, Series, candle_columns
from backtest_persist.core.candles.report import CandleReport, ReportLog
from backtest_persist.core.candles.series_summary import SeriesSummary
from backtest_persist.core.candles.store import CandleStore, in_parts
from backtest_persist.core.change import Change, ChangeKind
from backtest_persist.core.frames.row_list import RowList
from backtest_persist.core.instants import admitted
from backtest_persist.core.unit_of_work import BufferedStore, Layer, UnitOfWork
from backtest_persist.domains.candle import CandleContext, CandleDbService, CandleRow
from backtest_persist.errors import BacktestPersistError, SettingsError
from backtest_persist.logger import LoggerService
from backtest_persist.run.candle_chunks import merged_columns

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ("BufferedCandleStore", "report_candles", "unit_over")


class BufferedCandleStore(BufferedStore[CandleContext, CandleRow]):
    """Keeps candles that are written in a unit of work, over those that are stored; implements `CandleStore`.

    Whether one is stored already with other numbers, which are then kept, is found out, and logged, when it is stored.
    """

    def __init__(
        self, inner: CandleStore[CandleContext, CandleRow], row_type: type[CandleRow], unit: UnitOfWork
    ) -> None:
        super().__init__(inner, row_type, unit)
        self.remembers_ids = inner.remembers_ids
        self._stored_candles = inner

    @property
    def logger(self) -> LoggerService:
        """The logger of the backend."""
        return self._stored_candles.logger

    def pending(self, symbol: str, interval: str, exchange_name: str) -> dict[int, CandleData]:
        """Return the candles of a series that the unit has written, by opening time in ms UTC, in order."""
        found: dict[int, CandleData] = {}
        for layer in reversed([*self.unit.seen()]):
            for change in layer.of(self).values():
                context = cast("CandleContext", change.context)
                if (context.symbol, context.interval, context.exchange_name) == (symbol, interval, exchange_name):
                    found.setdefault(context.timestamp, _data(change))
        return dict(sorted(found.items()))

    def _pending(self, series: Series) -> dict[int, CandleData]:
        return self.pending(series.symbol, series.interval, series.exchange_name)

    async def settle(self, layer: Layer) -> list[tuple[Series, list[CandleData]]]:
        """Return the candles of a layer that was stored, as they are stored; logs those that others had stored before.

        Those that another program has stored as numbers of other types are left out.
        """
        written: dict[Series, dict[int, CandleData]] = {}
        for change in layer.of(self).values():
            context = cast("CandleContext", change.context)
            written.setdefault(_series(context), {})[context.timestamp] = _data(change)
        settled: list[tuple[Series, list[CandleData]]] = []
        for series, candles in written.items():
            stored: dict[int, Mapping[str, Any]] = {}
            for times in in_parts(sorted(candles)):
                stored |= await self._stored_candles.find_numbers(series, times)
            report = CandleReport()
            report.compare(candles, stored)
            ReportLog(self.logger).tell(series, report)
            kept = [_candle(at, stored[at]) for at in sorted(stored) if _is_of_floats(stored[at])]
            settled.append((series, kept))
        return settled

    # --- reading: what is pending is looked up before what is stored is read, as a commit lets it go ---

    async def find_rows(self, series: Series, start: int, end: int) -> RowList[CandleRow]:
        """Find what is stored or pending in [start, end)."""
        written = self._between(series, start, end)
        return self._merged_rows(series, await self._stored_candles.find_rows(series, start, end), written)

    async def find_data(self, series: Series, start: int, end: int) -> list[CandleData]:
        """Find the same as plain data."""
        written = self._between(series, start, end)
        return _merged(await self._stored_candles.find_data(series, start, end), written)

    async def find_columns(self, series: Series, start: int | None, end: int | None) -> "dict[str, NDArray[Any]]":
        """Find the same as numpy arrays by field: `timestamp` int64, the others float64; None is no bound."""
        written = self._between(series, start, end)
        stored = await self._stored_candles.find_columns(series, start, end)
        return merged_columns(stored, candle_columns(written)) if written else stored

    async def find_last_rows(self, series: Series, limit: int, latest: int) -> RowList[CandleRow]:
        """Find the last `limit` candles that open at `latest` or before."""
        written = self._between(series, None, latest + 1)
        rows = await self._stored_candles.find_last_rows(series, limit, latest)
        return self._merged_rows(series, rows, written)[-limit:] if limit else RowList((), CandleRow)

    async def find_last_data(self, series: Series, limit: int, latest: int) -> list[CandleData]:
        """Find the same as plain data."""
        written = self._between(series, None, latest + 1)
        candles = await self._stored_candles.find_last_data(series, limit, latest)
        return _merged(candles, written)[-limit:] if limit else []

    async def find_gaps(self, series: Series, start: int, end: int) -> list[tuple[int, int]]:
        """Find the gaps in [start, end), two starts of candles: each its first missing time, and the time after it."""
        gaps: list[tuple[int, int]] = []
        pending = self._pending(series)
        for first, after in await self._stored_candles.find_gaps(series, start, end):
            for at in (at for at in pending if first <= at < after):
                if at > first:
                    gaps.append((first, at))
                first = at + series.step
            if first < after:
                gaps.append((first, after))
        return gaps

    async def find_bounds(self, series: Series, since: int | None = None) -> tuple[int, int] | None:
        """Raise a `SettingsError`: the last time of a series lies in the future of a backtest."""
        raise _not_listed()

    async def list_series(self, names: Mapping[str, str]) -> list[SeriesSummary]:
        """Raise a `SettingsError`, as `find_bounds` does."""
        raise _not_listed()

    async def find_numbers(
        self, series: Series, times: Sequence[int], *, prepare: bool = True
    ) -> dict[int, Mapping[str, Any]]:
        """Find the numbers of the candles that the unit has written; what is stored is compared by `settle`."""
        keys = {at: series.cache_key(at) for at in times}
        changes = {at: self.unit.change_of(self, key) for at, key in keys.items()}
        return {at: _data(change) for at, change in changes.items() if change is not None}

    def _between(self, series: Series, start: int | None, end: int | None) -> list[CandleData]:
        return [
            candle
            for at, candle in self._pending(series).items()
            if (start is None or start <= at) and (end is None or at < end)
        ]

    def _merged_rows(self, series: Series, rows: list[CandleRow], written: list[CandleData]) -> RowList[CandleRow]:
        stored = {row.timestamp for row in rows}
        new = [self.row_of(_change(series, candle)) for candle in written if candle["timestamp"] not in stored]
        return RowList(sorted([*rows, *new], key=lambda row: row.timestamp), CandleRow)

    # --- writing ---

    async def create_candle(self, context: CandleContext, candle: CandleData) -> CandleRow:
        """Store a candle, unless one is stored in its context; returns the row of that which is stored then."""
        row = await self.find(context)
        if row is None:
            series = _series(context)
            await self.insert_candles(series, [candle])
            row = self.row_of(_change(series, candle))
        return row

    async def insert_candles(self, series: Series, candles: Sequence[CandleData]) -> int:
        """Add candles, of which the unit has written none; returns how many."""
        for candle in candles:
            change = _change(series, candle)
            self.unit.add(self, change.context.cache_key, change)
        return len(candles)

    async def delete_range(self, series: Series, start: int | None, end: int | None) -> int:
        """Raise a `SettingsError`: a unit has no change that deletes."""
        raise SettingsError(
            f"{series.describe()}: candles are not deleted or replaced in a unit of work; do it outside of the run or "
            "the checkpoint."
        )


def _not_listed() -> SettingsError:
    return SettingsError("Series are not listed in a unit of work; do it outside of the run or the checkpoint.")


def unit_over(backend: AtomicBackend) -> UnitOfWork:
    """Return a unit of work over a backend."""
    return UnitOfWork(backend.services, {CandleDbService: BufferedCandleStore})


async def report_candles(unit: UnitOfWork, layer: Layer) -> list[tuple[Series, list[CandleData]]]:
    """Return the candles of a layer that was stored, as they are stored; see `BufferedCandleStore.settle`.

    None, if they cannot be read just now: all is stored.
    """
    try:
        return await cast("BufferedCandleStore", unit.buffered(CandleDbService).candles).settle(layer)
    except BacktestPersistError:
        return []


def _series(context: CandleContext) -> Series:
    return Series(context.symbol, context.interval, context.exchange_name)


def _change(series: Series, candle: CandleData) -> Change:
    context = CandleContext.model_validate({**series.parts(), "timestamp": candle["timestamp"]}, context=admitted)
    return Change(context, ChangeKind.INSERT, {name: candle[name] for name in NUMBERS})


def _data(change: Change) -> CandleData:
    return _candle(cast("CandleContext", change.context).timestamp, change.fields)


def _candle(timestamp: int, numbers: Mapping[str, Any]) -> CandleData:
    return cast("CandleData", {"timestamp": timestamp, **{name: numbers[name] for name in NUMBERS}})


def _is_of_floats(numbers: Mapping[str, Any]) -> bool:
    return all(type(numbers.get(name)) is float for name in NUMBERS)


def _merged(stored: list[CandleData], pending: Sequence[CandleData]) -> list[CandleData]:
    if not pending:
        return stored
    by_time = {candle["timestamp"]: candle for candle in [*pending, *stored]}
    return [by_time[at] for at in sorted(by_time)]
