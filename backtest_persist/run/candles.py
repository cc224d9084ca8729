"""Candles in a unit of work: those that are stored, and those that the unit has written."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from backtest_persist.backends.services import AtomicBackend
from backtest_persist.contracts import CandleData, When
from backtest_persist.core.change import Change, ChangeKind
from backtest_persist.core.ohlcv import NUMBERS, Series, candle_columns
from backtest_persist.core.unit_of_work import Layer, UnitOfWork
from backtest_persist.domains.candle import CandleContext, CandleDbService, CandleReport, CandleRow
from backtest_persist.errors import BacktestPersistError, SettingsError
from backtest_persist.logger import LoggerService

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ("BufferedCandleDbService", "report_candles", "unit_over")


class BufferedCandleDbService(CandleDbService):
    """Keeps candles that are written in a unit of work, and reads them together with those that are stored.

    Whether one is stored already with other numbers, which are then kept, is found out, and logged, when it is stored.
    """

    def __init__(self, inner: CandleDbService, unit: UnitOfWork) -> None:
        self._buffer = unit.store_over(super(CandleDbService, inner).store, CandleDbService)
        self._buffer.remembers_ids = inner.remembers_ids
        super().__init__(self._buffer)
        self.inner = inner
        self._unit = unit

    def pending(self, symbol: str, interval: str, exchange_name: str) -> dict[int, CandleData]:
        """Return the candles of a series that the unit has written, by opening time in ms UTC, in order."""
        found: dict[int, CandleData] = {}
        for layer in reversed([*self._unit.seen()]):
            for change in layer.of(self._buffer).values():
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
        for change in layer.of(self._buffer).values():
            context = cast("CandleContext", change.context)
            series = Series(context.symbol, context.interval, context.exchange_name)
            written.setdefault(series, {})[context.timestamp] = _data(change)
        settled: list[tuple[Series, list[CandleData]]] = []
        for series, candles in written.items():
            stored = await self.inner._find_numbers(series, sorted(candles))
            report = CandleReport()
            self._compare(candles, stored, report)
            self._tell(series, report)
            kept = [_candle(at, stored[at]) for at in sorted(stored) if _is_of_floats(stored[at])]
            settled.append((series, kept))
        return settled

    # --- reading ---

    async def find_range(
        self, symbol: str, interval: str, exchange_name: str, since: When, limit: int
    ) -> list[CandleRow]:
        """Find the window of `limit` candles from `since` on, oldest first."""
        series = Series(symbol, interval, exchange_name)
        written = self._between(series, *self._bounds(series, since, limit))  # before a commit lets them go
        return self._merged_rows(
            series, await self.inner.find_range(symbol, interval, exchange_name, since, limit), written
        )

    async def find_data(
        self, symbol: str, interval: str, exchange_name: str, since: When, limit: int
    ) -> list[CandleData]:
        """Find the same as `find_range`, as plain data."""
        series = Series(symbol, interval, exchange_name)
        written = self._between(series, *self._bounds(series, since, limit))
        return _merged(await self.inner.find_data(symbol, interval, exchange_name, since, limit), written)

    async def find_columns(
        self, symbol: str, interval: str, exchange_name: str, since: When, limit: int
    ) -> "dict[str, NDArray[Any]]":
        """Find the same as `find_range`, as numpy arrays by field."""
        series = Series(symbol, interval, exchange_name)
        start, end = self._bounds(series, since, limit)
        if not self._between(series, start, end):
            return await self.inner.find_columns(symbol, interval, exchange_name, since, limit)
        return candle_columns(await self.find_data(symbol, interval, exchange_name, since, limit))

    async def find_last(
        self, symbol: str, interval: str, exchange_name: str, limit: int, until: When | None = None
    ) -> list[CandleRow]:
        """Find the last `limit` candles that have closed by `until`, by default the bar's `when`, oldest first."""
        series = Series(symbol, interval, exchange_name)
        until = self._until(until)
        written = self._between(series, None, self._end(series, until))
        rows = await self.inner.find_last(symbol, interval, exchange_name, limit, until)
        return self._merged_rows(series, rows, written)[-limit:] if limit else []

    async def find_last_data(
        self, symbol: str, interval: str, exchange_name: str, limit: int, until: When | None = None
    ) -> list[CandleData]:
        """Find the same as `find_last`, as plain data."""
        series = Series(symbol, interval, exchange_name)
        until = self._until(until)
        written = self._between(series, None, self._end(series, until))
        candles = await self.inner.find_last_data(symbol, interval, exchange_name, limit, until)
        return _merged(candles, written)[-limit:] if limit else []

    async def find_gaps(
        self, symbol: str, interval: str, exchange_name: str, since: When, until: When
    ) -> list[tuple[int, int]]:
        """Return the holes in [since, until), each as (first missing opening time, time after the hole), in ms UTC."""
        series = Series(symbol, interval, exchange_name)
        step, gaps = series.step, list[tuple[int, int]]()
        pending = self._pending(series)
        for start, end in await self.inner.find_gaps(symbol, interval, exchange_name, since, until):
            first = start
            for at in (at for at in pending if start <= at < end):
                if at > first:
                    gaps.append((first, at))
                first = at + step
            if first < end:
                gaps.append((first, end))
        return gaps

    def _until(self, until: When | None) -> When | None:
        return self._buffer.default_when() if until is None else until

    def _end(self, series: Series, until: When | None) -> int | None:
        return None if until is None else self._instant(until, "until") - series.step + 1

    def _between(self, series: Series, start: int | None, end: int | None) -> list[CandleData]:
        return [
            candle
            for at, candle in self._pending(series).items()
            if (start is None or start <= at) and (end is None or at < end)
        ]

    def _merged_rows(self, series: Series, rows: list[CandleRow], written: list[CandleData]) -> list[CandleRow]:
        stored = {row.timestamp for row in rows}
        new = [self._row(series, candle) for candle in written if candle["timestamp"] not in stored]
        return sorted([*rows, *new], key=lambda row: row.timestamp)

    # --- writing ---

    @property
    def _logger(self) -> LoggerService:
        return self.inner._logger

    async def _store_candles(self, series: Series, candles: Mapping[int, CandleData], report: CandleReport) -> None:
        keys = {at: self._change(series, candle).context.cache_key for at, candle in candles.items()}
        changes = {at: self._unit.change_of(self._buffer, key) for at, key in keys.items()}
        pending = {at: _data(change) for at, change in changes.items() if change is not None}
        self._compare(candles, pending, report)
        report.new = await self._insert(series, [candle for at, candle in candles.items() if at not in pending])

    async def _create(self, series: Series, candle: CandleData) -> CandleRow:
        stored = await self.find_by_context(series.symbol, series.interval, series.exchange_name, candle["timestamp"])
        if stored is not None:
            return stored
        await self._insert(series, [candle])
        return self._row(series, candle)

    def _row(self, series: Series, candle: CandleData) -> CandleRow:
        return self._buffer.row_of(self._change(series, candle))

    def _change(self, series: Series, candle: CandleData) -> Change:
        context = self._context(series.symbol, series.interval, series.exchange_name, candle["timestamp"])
        return Change(context, ChangeKind.INSERT, {name: candle[name] for name in NUMBERS})

    async def _find_numbers(
        self, series: Series, times: Sequence[int], *, prepare: bool = True
    ) -> dict[int, Mapping[str, Any]]:
        wanted = set(times)
        written = {at: candle for at, candle in self._pending(series).items() if at in wanted}
        return written | await self.inner._find_numbers(series, times, prepare=prepare)

    async def _insert(self, series: Series, candles: Sequence[CandleData]) -> int:
        for candle in candles:
            change = self._change(series, candle)
            self._unit.add(self._buffer, change.context.cache_key, change)
        return len(candles)

    async def _delete_range(self, series: Series, start: int | None, end: int | None) -> int:
        raise SettingsError(
            f"{series.describe()}: candles are not deleted or replaced in a unit of work; do it outside of the run or "
            "the checkpoint."
        )


def _data(change: Change) -> CandleData:
    return cast("CandleData", {"timestamp": cast("CandleContext", change.context).timestamp, **change.fields})


def unit_over(backend: AtomicBackend) -> UnitOfWork:
    """Return a unit of work over a backend."""
    return UnitOfWork(backend.services, {CandleDbService: BufferedCandleDbService})


async def report_candles(unit: UnitOfWork, layer: Layer) -> list[tuple[Series, list[CandleData]]]:
    """Return the candles of a layer that was stored, as they are stored; see `BufferedCandleDbService.settle`.

    None, if they cannot be read just now: all is stored.
    """
    try:
        return await cast("BufferedCandleDbService", unit.buffered(CandleDbService)).settle(layer)
    except BacktestPersistError:
        return []


def _candle(timestamp: int, numbers: Mapping[str, Any]) -> CandleData:
    return cast("CandleData", {"timestamp": timestamp, **{name: numbers[name] for name in NUMBERS}})


def _is_of_floats(numbers: Mapping[str, Any]) -> bool:
    return all(type(numbers.get(name)) is float for name in NUMBERS)


def _merged(stored: list[CandleData], pending: list[CandleData]) -> list[CandleData]:
    if not pending:
        return stored
    by_time = {candle["timestamp"]: candle for candle in [*pending, *stored]}
    return [by_time[at] for at in sorted(by_time)]
