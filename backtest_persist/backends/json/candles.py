"""Candles in files: windows are read by the names of their files, and every candle is checked."""

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, cast

from backtest_persist.backends.json.codec import dumps
from backtest_persist.backends.json.layout import Layout
from backtest_persist.backends.json.rows import to_row
from backtest_persist.backends.json.store import JsonStore
from backtest_persist.backends.json.value_file import Stored, Write
from backtest_persist.contracts import CandleData, PayloadInput, When
from backtest_persist.core.instants import checked_int64
from backtest_persist.core.keys import checked_limit, checked_name, checked_timestamp
from backtest_persist.core.ohlcv import candle_columns, checked_candle, interval_step_ms
from backtest_persist.core.payload import checked_entries
from backtest_persist.domains.candle import CANDLE, CandleContext, CandleDbService, CandleRow
from backtest_persist.errors import InvalidPayloadError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ("JsonCandleDbService",)

_MAX_MISSING = 100
"""How many candles of a window may be missing before its directory is listed, which takes long for a large one."""

_LAYOUT = Layout(CANDLE)


class JsonCandleDbService(CandleDbService):
    """Keeps candles in files; answers everything but queries by a filter."""

    def __init__(self, store: JsonStore[CandleContext, CandleRow]) -> None:
        super().__init__(store)
        self._files = store

    async def create(self, symbol: str, interval: str, exchange_name: str, candle: PayloadInput) -> CandleRow:
        """Store one candle and return what is stored: an earlier candle of that time stays as it is."""
        checked = checked_candle(symbol, interval, exchange_name, candle, self.store.allows_early_times)
        series = self._series(symbol, interval, exchange_name)
        await series.write([checked])
        return cast("CandleRow", await series.find(checked["timestamp"]))

    async def create_many(self, symbol: str, interval: str, exchange_name: str, candles: Iterable[PayloadInput]) -> int:
        """Store candles; returns how many were new. Of two at one time the first is stored.

        All candles are checked before the first is stored; see `CandleDbService.create_many`.
        """
        given = checked_entries(candles, self.collection)
        early = self.store.allows_early_times
        checked = [checked_candle(symbol, interval, exchange_name, candle, early) for candle in given]
        return await self._series(symbol, interval, exchange_name).write(checked)

    async def find_by_context(
        self, symbol: str, interval: str, exchange_name: str, timestamp: When
    ) -> CandleRow | None:
        """Return the row of this context, or None."""
        series = self._series(symbol, interval, exchange_name)
        return await series.find(self._instant(timestamp, "timestamp"))

    async def find_range(
        self, symbol: str, interval: str, exchange_name: str, since: When, limit: int
    ) -> list[CandleRow]:
        """Return the stored candles of the window of `limit` candles from `since` (ms UTC) on, oldest first."""
        series = self._series(symbol, interval, exchange_name)
        return [series.row(at, stored) for at, stored in await series.read(self._instant(since, "since"), limit)]

    async def find_data(
        self, symbol: str, interval: str, exchange_name: str, since: When, limit: int
    ) -> list[CandleData]:
        """Return what `find_range` finds, as plain data."""
        series = self._series(symbol, interval, exchange_name)
        return [series.candle(at, stored) for at, stored in await series.read(self._instant(since, "since"), limit)]

    async def find_columns(
        self, symbol: str, interval: str, exchange_name: str, since: When, limit: int
    ) -> "dict[str, NDArray[Any]]":
        """Return what `find_range` finds, as numpy arrays by field: `timestamp` int64, the others float64."""
        return candle_columns(await self.find_data(symbol, interval, exchange_name, since, limit))

    async def find_gaps(
        self, symbol: str, interval: str, exchange_name: str, since: When, until: When
    ) -> list[tuple[int, int]]:
        """Return the gaps in [since, until), each as (first missing opening time, opening time after it), in ms UTC."""
        series = self._series(symbol, interval, exchange_name)
        window = series.window(self._instant(since, "since"), self._instant(until, "until"))
        bounds = [window.start - series.step, *await series.times(window), window.stop]
        return [(before + series.step, after) for before, after in pairwise(bounds) if after > before + series.step]

    def _instant(self, value: When, what: str) -> int:
        return checked_timestamp(value, what, self.store.allows_early_times)

    def _series(self, symbol: str, interval: str, exchange_name: str) -> "_Series":
        return _Series(self._files, symbol, interval, exchange_name)


class _Series:
    """The candles of one symbol, interval and exchange; `InvalidKeyError` for a part that no series has."""

    def __init__(
        self, files: JsonStore[CandleContext, CandleRow], symbol: str, interval: str, exchange_name: str
    ) -> None:
        self.step = interval_step_ms(interval)
        self._parts = {
            "exchange_name": checked_name(exchange_name, "exchange_name"),
            "symbol": checked_name(symbol, "symbol"),
            "interval": interval,
        }
        self._folder = files.folder(self._parts)

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

    async def read(self, since: int, limit: int) -> list[tuple[int, Stored]]:
        """Read the stored values of a window of `limit` candles, each with its opening time."""
        end = checked_int64(since + checked_limit(limit) * self.step, "the end of the window")
        window = self.window(since, end)
        found, count = await self._folder.read_many(map(str, window), max_missing=_MAX_MISSING)
        if count < len(window):
            times = await self.times(window[count:])
            found += (await self._folder.read_many(map(str, times), max_missing=len(times)))[0]
        return [(int(name), stored) for name, stored in found]

    async def times(self, window: range) -> list[int]:
        """List the opening times in a window that are stored, in order."""
        found = [_LAYOUT.parse_name(name) for name in await self._folder.names()]
        times = [fields["timestamp"] for fields in found if fields is not None]
        return sorted(at for at in times if at in window)

    def candle(self, timestamp: int, stored: Stored) -> CandleData:
        """Return the candle of a file; `InvalidPayloadError` for a damaged one."""
        try:
            candle = checked_candle(**self._parts, candle=stored.value, early=lambda: True)
        except InvalidPayloadError as error:
            raise InvalidPayloadError(
                f"A damaged file: {error} Repair or remove it.", collection=error.collection, context=error.context
            ) from None
        if candle["timestamp"] != timestamp:
            raise InvalidPayloadError(
                f"{self._folder.describe(str(timestamp))}: the file holds another candle. Repair or remove it.",
                collection=CANDLE.collection,
                context={**self._parts, "timestamp": timestamp},
            )
        return candle

    def row(self, timestamp: int, stored: Stored) -> CandleRow:
        """Return the row of a file; `InvalidPayloadError` for a damaged one."""
        self.candle(timestamp, stored)
        return cast("CandleRow", to_row(_LAYOUT, {**self._parts, "timestamp": timestamp}, stored))
