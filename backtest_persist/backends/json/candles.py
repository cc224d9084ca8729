"""Candles in files: windows are read by the names of their files, and every candle is checked."""

import time
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, cast

from anyio.to_thread import run_sync

from backtest_persist.backends.json.codec import dumps
from backtest_persist.backends.json.layout import SERIES_PATH, Layout
from backtest_persist.backends.json.rows import to_row
from backtest_persist.backends.json.store import JsonStore
from backtest_persist.backends.json.value_file import Stored, Write
from backtest_persist.contracts import CandleData, When
from backtest_persist.core.candle_input import checked_candle
from backtest_persist.core.instants import checked_int64
from backtest_persist.core.keys import checked_limit
from backtest_persist.core.ohlcv import NUMBERS, Series, candle_columns
from backtest_persist.domains.candle import CANDLE, CandleContext, CandleDbService, CandleRow
from backtest_persist.errors import InvalidPayloadError
from backtest_persist.logger import LoggerService

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ("JsonCandleDbService", "JsonCandleStore")

_MAX_MISSING = 100
"""How many candles of a window may be missing before its directory is listed, which takes long for a large one."""

_LAYOUT = Layout(CANDLE)
_logger = LoggerService()


class JsonCandleStore(JsonStore[CandleContext, CandleRow]):
    """Keeps candles in files, which contain their time beside their numbers."""

    _has_looked = False

    async def wait_for_init(self) -> None:
        """Warn once of series files in the dump, which are not read."""
        if not self._has_looked:
            self._has_looked = True
            directory = self.dump.root / SERIES_PATH
            if await run_sync(directory.is_dir):
                effect = "not read: import-dump stores them, and export-dump --candles files makes files that are read"
                _logger.warning("candles.series_files", directory=directory, effect=effect)

    def to_write(self, context: Mapping[str, Any], fields: Mapping[str, Any]) -> Write:
        """Return what stores the candle of a context, with these numbers, in its folder."""
        at = context["timestamp"]
        return Write(str(at), dumps({"timestamp": at, **{name: fields[name] for name in NUMBERS}}))


class JsonCandleDbService(CandleDbService):
    """Keeps candles in files; answers everything but queries by a filter."""

    def __init__(self, store: JsonStore[CandleContext, CandleRow]) -> None:
        super().__init__(store)
        self._files = store
        self._own_logger = LoggerService()

    async def find_by_context(
        self, symbol: str, interval: str, exchange_name: str, timestamp: When
    ) -> CandleRow | None:
        """Return the row of this context, or None."""
        files = self._open(Series(symbol, interval, exchange_name))
        return await files.find(self._instant(timestamp, "timestamp"))

    async def find_range(
        self, symbol: str, interval: str, exchange_name: str, since: When, limit: int
    ) -> list[CandleRow]:
        """Return the stored candles of the window of `limit` candles from `since` on, oldest first."""
        files = self._open(Series(symbol, interval, exchange_name))
        return [files.row(at, stored) for at, stored in await self._read(files, since, limit)]

    async def find_data(
        self, symbol: str, interval: str, exchange_name: str, since: When, limit: int
    ) -> list[CandleData]:
        """Return what `find_range` finds, as plain data."""
        files = self._open(Series(symbol, interval, exchange_name))
        return [files.candle(at, stored) for at, stored in await self._read(files, since, limit)]

    async def find_columns(
        self, symbol: str, interval: str, exchange_name: str, since: When, limit: int
    ) -> "dict[str, NDArray[Any]]":
        """Return what `find_range` finds, as numpy arrays by field: `timestamp` int64, the others float64."""
        return candle_columns(await self.find_data(symbol, interval, exchange_name, since, limit))

    async def find_last(
        self, symbol: str, interval: str, exchange_name: str, limit: int, until: When | None = None
    ) -> list[CandleRow]:
        """Return the last `limit` stored candles that have closed by `until`, by default now, oldest first."""
        files = self._open(Series(symbol, interval, exchange_name))
        return [files.row(at, stored) for at, stored in await self._read_last(files, limit, until)]

    async def find_last_data(
        self, symbol: str, interval: str, exchange_name: str, limit: int, until: When | None = None
    ) -> list[CandleData]:
        """Return what `find_last` finds, as plain data."""
        files = self._open(Series(symbol, interval, exchange_name))
        return [files.candle(at, stored) for at, stored in await self._read_last(files, limit, until)]

    async def find_gaps(
        self, symbol: str, interval: str, exchange_name: str, since: When, until: When
    ) -> list[tuple[int, int]]:
        """Return the gaps in [since, until), each as (first missing opening time, opening time after it), in ms UTC."""
        files = self._open(Series(symbol, interval, exchange_name))
        window = files.window(self._instant(since, "since"), self._instant(until, "until"))
        bounds = [window.start - window.step, *await files.times(window), window.stop]
        return [(before + window.step, after) for before, after in pairwise(bounds) if after > before + window.step]

    async def _read(self, files: "_SeriesFiles", since: When, limit: int) -> list[tuple[int, Stored]]:
        start = self._instant(since, "since")
        return await files.read(
            start, checked_int64(start + checked_limit(limit) * files.step, "the end of the window")
        )

    async def _read_last(self, files: "_SeriesFiles", limit: int, until: When | None) -> list[tuple[int, Stored]]:
        end = int(time.time() * 1000) if until is None else self._instant(until, "until")
        return await files.read_last(checked_limit(limit), end - files.step)

    # --- writing ---

    @property
    def _logger(self) -> LoggerService:
        return self._own_logger

    async def _create(self, series: Series, candle: CandleData) -> CandleRow:
        files = self._open(series)
        await files.write([candle])
        return cast("CandleRow", await files.find(candle["timestamp"]))

    async def _find_numbers(
        self, series: Series, times: Sequence[int], *, prepare: bool = True
    ) -> dict[int, Mapping[str, Any]]:
        files = self._open(series)
        return {at: files.candle(at, stored) for at, stored in await files.read_times(times)}

    async def _insert(self, series: Series, candles: Sequence[CandleData]) -> int:
        return await self._open(series).write(candles)

    async def _delete_range(self, series: Series, start: int | None, end: int | None) -> int:
        return await self._open(series).delete(start, end)

    def _open(self, series: Series) -> "_SeriesFiles":
        return _SeriesFiles(self._files, series)


class _SeriesFiles:
    """The files of the candles of one series."""

    def __init__(self, files: JsonStore[CandleContext, CandleRow], series: Series) -> None:
        self.step = series.step
        self._series = series
        self._folder = files.folder(series.parts())

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
        times = [
            at for at in await self._stored_times() if (start is None or start <= at) and (end is None or at < end)
        ]
        return await self._folder.delete([str(at) for at in sorted(times)])

    async def _stored_times(self) -> set[int]:
        found = [_LAYOUT.parse_name(name) for name in await self._folder.names()]
        return {fields["timestamp"] for fields in found if fields is not None}

    async def times(self, window: range) -> list[int]:
        """List the opening times in a window that are stored, in order."""
        return sorted(at for at in await self._stored_times() if at in window)

    def candle(self, timestamp: int, stored: Stored) -> CandleData:
        """Return the candle of a file; `InvalidPayloadError` for a damaged one."""
        try:
            candle = checked_candle(self._series, stored.value, lambda: True)
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
