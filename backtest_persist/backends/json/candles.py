"""Candles in files: windows are read by the names of their files, and every candle is checked."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, cast

from anyio.to_thread import run_sync

from backtest_persist.backends.json.codec import dumps
from backtest_persist.backends.json.folder import DumpFiles
from backtest_persist.backends.json.layout import SERIES_PATH, Layout
from backtest_persist.backends.json.rows import to_row
from backtest_persist.backends.json.series import stored_series
from backtest_persist.backends.json.store import JsonStore
from backtest_persist.backends.json.value_file import Stored, Write
from backtest_persist.contracts import CandleData
from backtest_persist.core.candles.input import checked_candle
from backtest_persist.core.candles.ohlcv import NUMBERS, Series, candle_columns
from backtest_persist.core.candles.series_summary import SeriesSummary
from backtest_persist.core.domain import Domain
from backtest_persist.core.frames.row_list import RowList
from backtest_persist.core.instants import admitted, checked_int64
from backtest_persist.domains.candle import CANDLE, CandleContext, CandleRow
from backtest_persist.errors import InvalidPayloadError
from backtest_persist.logger import LoggerService
from backtest_persist.settings import Settings

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ("JsonCandleStore",)

_MAX_MISSING = 100
"""How many candles of a window may be missing before its directory is listed, which takes long for a large one."""

_LAYOUT = Layout(CANDLE)


class JsonCandleStore(JsonStore[CandleContext, CandleRow]):
    """Keeps candles in files, which contain their time beside their numbers; implements `CandleStore`."""

    remembers_ids = False
    """There is no Redis to tell ids."""

    def __init__(self, dump: DumpFiles, domain: Domain, settings: Callable[[], Settings]) -> None:
        super().__init__(dump, domain, settings)
        self.logger = LoggerService()
        self._has_looked = False

    async def wait_for_init(self) -> None:
        """Warn once of series files in the dump, which are not read."""
        if not self._has_looked:
            self._has_looked = True
            directory = self.dump.root / SERIES_PATH
            if await run_sync(directory.is_dir):
                effect = "not read: import-dump stores them, and export-dump --candles files makes files that are read"
                self.logger.warning("candles.series_files", directory=directory, effect=effect)

    def to_write(self, context: Mapping[str, Any], fields: Mapping[str, Any]) -> Write:
        """Return what stores the candle of a context, with these numbers, in its folder."""
        at = context["timestamp"]
        return Write(str(at), dumps({"timestamp": at, **{name: fields[name] for name in NUMBERS}}))

    async def find(self, context: CandleContext) -> CandleRow | None:
        """Return the row of a context, or None; `InvalidPayloadError` for a damaged file."""
        series = Series(context.symbol, context.interval, context.exchange_name)
        return await self._open(series).find(context.timestamp)

    async def find_rows(self, series: Series, start: int, end: int) -> RowList[CandleRow]:
        """Find what is stored in [start, end)."""
        files = self._open(series)
        return RowList([files.row(at, stored) for at, stored in await files.read(start, end)], CandleRow)

    async def find_data(self, series: Series, start: int, end: int) -> list[CandleData]:
        """Find the same as plain data."""
        files = self._open(series)
        return [files.candle(at, stored) for at, stored in await files.read(start, end)]

    async def find_columns(self, series: Series, start: int | None, end: int | None) -> "dict[str, NDArray[Any]]":
        """Find the same as numpy arrays by field: `timestamp` int64, the others float64; None is no bound."""
        if start is not None and end is not None:
            return candle_columns(await self.find_data(series, start, end))
        files = self._open(series)
        stored = await files.read_times(await files.stored_times(start, end))
        return candle_columns([files.candle(at, value) for at, value in stored])

    async def find_last_rows(self, series: Series, limit: int, latest: int) -> RowList[CandleRow]:
        """Find the last `limit` candles that open at `latest` or before."""
        files = self._open(series)
        return RowList([files.row(at, stored) for at, stored in await files.read_last(limit, latest)], CandleRow)

    async def find_last_data(self, series: Series, limit: int, latest: int) -> list[CandleData]:
        """Find the same as plain data."""
        files = self._open(series)
        return [files.candle(at, stored) for at, stored in await files.read_last(limit, latest)]

    async def find_gaps(self, series: Series, start: int, end: int) -> list[tuple[int, int]]:
        """Find the gaps in [start, end), two starts of candles: each its first missing time, and the time after it."""
        step = series.step
        bounds = [start - step, *await self._open(series).times(range(start, end, step)), max(start, end)]
        return [(before + step, after) for before, after in pairwise(bounds) if after > before + step]

    async def find_bounds(self, series: Series, since: int | None = None) -> tuple[int, int] | None:
        """Find the first and the last time that is stored, of those from `since` on; None when nothing is."""
        times = await self._open(series).stored_times(since)
        return (times[0], times[-1]) if times else None

    async def list_series(self, names: Mapping[str, str]) -> list[SeriesSummary]:
        """Summarise each series whose names, by the fields of the context, are these."""
        found: list[SeriesSummary] = []
        for parts in sorted(await run_sync(stored_series, self.dump.root, _LAYOUT)):
            context = dict(zip(_LAYOUT.directory_fields, parts, strict=True))
            if all(context[name] == value for name, value in names.items()):
                times = sorted(_times_in(await self.folder(context).names()))
                found += [SeriesSummary.of_times(**context, times=times)] if times else []
        return found

    async def find_numbers(
        self, series: Series, times: Sequence[int], *, prepare: bool = True
    ) -> dict[int, Mapping[str, Any]]:
        """Find the numbers of the candles that are stored at these times, which are in order."""
        files = self._open(series)
        return {at: files.candle(at, stored) for at, stored in await files.read_times(times)}

    async def create_candle(self, context: CandleContext, candle: CandleData) -> CandleRow:
        """Store a candle, unless one is stored in its context; returns the row of that which is stored then."""
        files = self._open(Series(context.symbol, context.interval, context.exchange_name))
        await files.write([candle])
        return cast("CandleRow", await files.find(context.timestamp))

    async def insert_candles(self, series: Series, candles: Sequence[CandleData]) -> int:
        """Store candles where none is stored yet; returns how many."""
        return await self._open(series).write(candles)

    async def delete_range(self, series: Series, start: int | None, end: int | None) -> int:
        """Delete what is stored from `start` on and before `end`; returns how many candles."""
        return await self._open(series).delete(start, end)

    def _open(self, series: Series) -> "_SeriesFiles":
        return _SeriesFiles(self, series)


class _SeriesFiles:
    """The files of the candles of one series."""

    def __init__(self, store: JsonCandleStore, series: Series) -> None:
        self.step = series.step
        self._series = series
        self._folder = store.folder(series.parts())

    def window(self, since: int, until: int) -> range:
        """Return the opening times in [since, until), which ends at one."""
        start, end = (checked_int64(-(-at // self.step) * self.step, "a bound") for at in (since, until))
        return range(start, max(start, end), self.step)

    async def write(self, candles: Sequence[CandleData]) -> int:
        """Store checked candles, unless one of their time is stored; returns how many were new."""
        writes = [Write(str(candle["timestamp"]), dumps(candle)) for candle in candles]
        return await self._folder.write(writes, replace=False)

    async def find(self, timestamp: int) -> CandleRow | None:
        """Return the row of an opening time, or None."""
        stored = await self._folder.read(str(timestamp))
        return None if stored is None else self.row(timestamp, stored)

    async def read(self, since: int, until: int) -> list[tuple[int, Stored]]:
        """Read the stored values of [since, until), each with its opening time, in order."""
        return await self.read_times(self.window(since, until))

    async def read_times(self, times: Sequence[int]) -> list[tuple[int, Stored]]:
        """Read the values that are stored at these times, which are in order."""
        found, count = await self._folder.read_many(map(str, times), max_missing=_MAX_MISSING)
        if count < len(times):
            left = times[count:]
            wanted = left if isinstance(left, range) else set(left)
            rest = sorted(at for at in await self._stored_times() if at in wanted)
            found += (await self._folder.read_many(map(str, rest), max_missing=len(rest)))[0]
        return [(int(name), value) for name, value in found]

    async def read_last(self, limit: int, latest: int) -> list[tuple[int, Stored]]:
        """Read the values of the last `limit` opening times up to `latest`, in order."""
        newest = latest - latest % self.step
        last: Sequence[int] = range(newest - (limit - 1) * self.step, newest + 1, self.step)
        found, _ = await self._folder.read_many(map(str, reversed(last)), max_missing=0)
        if len(found) < limit:  # some of them are missing
            times = [at for at in await self._stored_times() if at <= latest and not at % self.step]
            last = sorted(times)[-limit:]
            found, _ = await self._folder.read_many(map(str, reversed(last)), max_missing=len(last))
        return [(int(name), stored) for name, stored in reversed(found)]

    async def delete(self, start: int | None, end: int | None) -> int:
        """Delete what is stored from `start` on and before `end`; returns how many files."""
        return await self._folder.delete([str(at) for at in await self.stored_times(start, end)])

    async def stored_times(self, start: int | None = None, end: int | None = None) -> list[int]:
        """List the opening times in [start, end) that are stored, in order; None is no bound."""
        times = await self._stored_times()
        return sorted(at for at in times if (start is None or start <= at) and (end is None or at < end))

    async def _stored_times(self) -> set[int]:
        return _times_in(await self._folder.names())

    async def times(self, window: range) -> list[int]:
        """List the opening times in a window that are stored, in order."""
        return sorted(at for at in await self._stored_times() if at in window)

    def candle(self, timestamp: int, stored: Stored) -> CandleData:
        """Return the candle of a file; `InvalidPayloadError` for a damaged one."""
        try:
            candle = checked_candle(self._series, stored.value, admitted)
        except InvalidPayloadError as error:
            raise InvalidPayloadError(
                f"A damaged file: {error} Repair or remove it.", collection=error.collection, context=error.context
            ) from None
        if candle["timestamp"] != timestamp:
            raise InvalidPayloadError(
                f"{self._folder.describe(str(timestamp))}: the file holds another candle. Repair or remove it.",
                collection=CANDLE.collection,
                context={**self._series.parts(), "timestamp": timestamp},
            )
        return candle

    def row(self, timestamp: int, stored: Stored) -> CandleRow:
        """Return the row of a file; `InvalidPayloadError` for a damaged one."""
        self.candle(timestamp, stored)
        return cast("CandleRow", to_row(_LAYOUT, {**self._series.parts(), "timestamp": timestamp}, stored))


def _times_in(names: Iterable[str]) -> set[int]:
    """Return the opening times that files are named by."""
    found = [_LAYOUT.parse_name(name) for name in names]
    return {fields["timestamp"] for fields in found if fields is not None}
