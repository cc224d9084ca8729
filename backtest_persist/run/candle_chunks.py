"""Candle chunks: candles of many series as columns in memory; what was used least recently is evicted first."""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from backtest_persist.contracts import CandleData
from backtest_persist.core.candles.ohlcv import COLUMNS, Series, candle_columns, import_numpy, on_grid
from backtest_persist.core.candles.raw_columns import joined_columns

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = (
    "CANDLE_BYTES",
    "CHUNK_BYTES",
    "SLOTS",
    "CandleChunks",
    "Columns",
    "Part",
    "SeriesChunks",
    "columns_of",
    "is_whole",
    "merged_columns",
    "rows_of",
    "to_rows",
    "up_to",
)

Columns = dict[str, "NDArray[Any]"]
"""Candles by field, in the order of their times: `timestamp` int64 (ms UTC), the others float64."""

SLOTS = 2048
"""The opening times of a chunk."""
CANDLE_BYTES = 8 * len(COLUMNS)
_OVERHEAD = 2048
"""The bytes of the objects of a chunk beside its candles."""
CHUNK_BYTES = SLOTS * CANDLE_BYTES + _OVERHEAD
"""The bytes of a full chunk."""


_ROW_BYTES = 448
"""The bytes of a candle as plain data."""
_ROW_READS = 16
"""The reads of a chunk as plain data after which all its candles are kept so; it takes about as long as they did."""


class Chunk:
    """The candles that are known of `SLOTS` opening times of a series."""

    __slots__ = (
        "columns",
        "count",
        "first",
        "index",
        "is_damaged",
        "is_dense",
        "nbytes",
        "prefetch_from",
        "reads",
        "rows",
        "series",
    )

    def __init__(self, series: "SeriesChunks", index: int) -> None:
        self.series = series
        self.index = index
        """The number of its first opening time, counted in chunks from the epoch."""
        self.is_damaged = False
        """Whether the store holds something among its times that cannot be read."""
        self.prefetch_from: float = index * series.span + series.span // 2
        """The opening time from which on the next chunk is worth loading; infinite once that was begun."""
        self._set(candle_columns([]))

    def _set(self, columns: Columns) -> None:
        times = columns["timestamp"]
        self.columns = columns
        self.count = len(times)
        self.first = int(times[0]) if self.count else 0
        self.is_dense = self.count == 0 or int(times[-1]) - self.first == (self.count - 1) * self.series.step
        """Whether no candle is missing between its first and its last."""
        self.nbytes = self.count * CANDLE_BYTES + _OVERHEAD
        self.rows: list[CandleData] | None = None
        """The same candles as plain data, if they are kept so."""
        self.reads = 0
        """How often some of them were read as plain data since they are not kept so."""

    def keep_rows(self) -> None:
        """Keep the candles as plain data as well."""
        self.rows = to_rows(self.columns)
        self.nbytes += self.count * _ROW_BYTES

    def drop_rows(self) -> None:
        """Keep the candles as columns alone."""
        self._set(self.columns)

    def copied_rows(self, start: int, stop: int) -> list[CandleData]:
        """Copy the candles from one position on and before another as plain data."""
        if self.rows is None:
            self.reads += 1
            if self.reads >= _ROW_READS:
                self.series.owner.keep_rows(self)
        if self.rows is None:
            return _to_rows([column[start:stop].tolist() for column in self.columns.values()])
        return [row.copy() for row in self.rows[start:stop]]

    def add(self, columns: Columns) -> None:
        """Add candles of its times; one that is known already stays as it is."""
        self._set(merged_columns(self.columns, columns))

    def count_up_to(self, timestamp: int) -> int:
        """Return how many of its candles open at that time or before."""
        if self.is_dense:
            return min(max((timestamp - self.first) // self.series.step + 1, 0), self.count)
        return int(self.columns["timestamp"].searchsorted(timestamp, "right"))

    def time_at(self, position: int) -> int:
        """Return the opening time of the candle at a position."""
        return self.first + position * self.series.step if self.is_dense else int(self.columns["timestamp"][position])


Part = tuple[Chunk, int, int]
"""The candles of a chunk from one position on and before another."""


class SeriesChunks:
    """The chunks of one series."""

    def __init__(self, owner: "CandleChunks", series: Series) -> None:
        self.owner = owner
        self.key = (series.symbol, series.interval, series.exchange_name)
        self.step = series.step
        self.span = SLOTS * self.step
        """The length of a chunk in ms."""
        self.chunks: dict[int, Chunk] = {}

    def last(self, newest: int, limit: int) -> list[Part]:
        """Return where the last `limit` known candles up to the opening time `newest` are, the newest part first."""
        parts: list[Part] = []
        if not limit:
            return parts
        for chunk in self._descending(newest // self.span):
            stop = chunk.count_up_to(newest)
            if stop:
                start = stop - limit if stop > limit else 0
                parts.append((chunk, start, stop))
                limit -= stop - start
                if not limit:
                    break
        return parts

    def _descending(self, index: int) -> Iterator[Chunk]:
        while (chunk := self.chunks.get(index)) is not None:
            yield chunk
            index -= 1
        for older in sorted((known for known in self.chunks if known < index), reverse=True):
            yield self.chunks[older]

    def gap_end(self, timestamp: int) -> int:
        """Return where the gap at an opening time ends: at the next known candle, or at the end of its chunk.

        Where something is damaged, the gap is this one opening time.
        """
        index = timestamp // self.span
        chunk = self.chunks.get(index)
        if chunk is None:
            return (index + 1) * self.span
        if chunk.is_damaged:
            return timestamp + self.step
        following = chunk.count_up_to(timestamp)
        return chunk.time_at(following) if following < chunk.count else (index + 1) * self.span

    def add(self, columns: Columns, *, loaded: Sequence[int] = ()) -> Columns:
        """Add candles, and evict what there is no more room for; returns those whose times are of the interval.

        A candle that is known already stays as it is. Chunks that were `loaded` are kept also if they are empty.
        """
        for index in loaded:
            self._chunk(index)
        columns = merged_columns(on_grid(columns, self.step), candle_columns([]))
        times = columns["timestamp"]
        start = 0
        while start < len(times):
            index = int(times[start]) // self.span
            stop = int(times.searchsorted((index + 1) * self.span))
            chunk = self._chunk(index)
            self.owner.nbytes -= chunk.nbytes
            chunk.add({name: column[start:stop] for name, column in columns.items()})
            self.owner.nbytes += chunk.nbytes
            start = stop
        self.owner.evict()
        return columns

    def mark_damaged(self, index: int) -> None:
        """Note that the store holds something among the times of a chunk that cannot be read."""
        self._chunk(index).is_damaged = True
        self.owner.evict()

    def _chunk(self, index: int) -> Chunk:
        chunk = self.chunks.get(index)
        if chunk is None:
            chunk = self.chunks[index] = Chunk(self, index)
            self.owner.nbytes += chunk.nbytes
        self.owner.touch(chunk)
        return chunk


class CandleChunks:
    """The chunks of all series, which hold no more than `max_bytes` together."""

    def __init__(self, max_bytes: int) -> None:
        self.nbytes = 0
        self._max_bytes = max_bytes
        self._series: dict[tuple[str, str, str], SeriesChunks] = {}
        self._by_use: OrderedDict[Chunk, None] = OrderedDict()
        self._with_rows: dict[Chunk, None] = {}

    def series(self, symbol: str, interval: str, exchange_name: str) -> SeriesChunks:
        """Return the chunks of a series; `InvalidKeyError` for a part that no series has."""
        try:
            return self._series[symbol, interval, exchange_name]
        except (KeyError, TypeError):
            added = SeriesChunks(self, Series(symbol, interval, exchange_name))
            return self._series.setdefault(added.key, added)

    def touch(self, chunk: Chunk) -> None:
        """Note that a chunk is in use, so that others are evicted before it."""
        self._by_use[chunk] = None
        self._by_use.move_to_end(chunk)

    def evict(self) -> None:
        """Forget what was used least recently until the rest is within the bound."""
        while self.nbytes > self._max_bytes:
            chunk, _ = self._by_use.popitem(last=False)
            del chunk.series.chunks[chunk.index]
            self._with_rows.pop(chunk, None)
            self.nbytes -= chunk.nbytes

    def keep_rows(self, chunk: Chunk) -> None:
        """Keep the candles of a chunk as plain data as well, which of all chunks take half of the bytes at most."""
        self._with_rows = {other: None for other in self._with_rows if other.rows is not None}
        count = chunk.count + sum(other.count for other in self._with_rows)
        while self._with_rows and 2 * count * _ROW_BYTES > self._max_bytes:
            oldest = next(iter(self._with_rows))
            del self._with_rows[oldest]
            count -= oldest.count
            self.nbytes -= oldest.nbytes
            oldest.drop_rows()
            self.nbytes += oldest.nbytes
        if 2 * count * _ROW_BYTES <= self._max_bytes:
            self.nbytes -= chunk.nbytes
            chunk.keep_rows()
            self.nbytes += chunk.nbytes
            self._with_rows[chunk] = None
            self.evict()

    def has_room_ahead(self) -> bool:
        """Whether each series can keep a chunk and the next one."""
        count = sum(1 for series in self._series.values() if series.chunks)
        return 2 * CHUNK_BYTES * count <= self._max_bytes


def is_whole(parts: Sequence[Part], newest: int, limit: int) -> bool:
    """Whether parts hold the window of `limit` candles up to the opening time `newest` without a gap.

    The parts are what `SeriesChunks.last` returns, so none of their candles opens later.
    """
    if not parts:
        return not limit
    chunk, start, stop = parts[-1]
    count = stop - start if len(parts) == 1 else sum(stop - start for _, start, stop in parts)
    return count == limit and chunk.time_at(start) == newest - (limit - 1) * chunk.series.step


def columns_of(parts: Sequence[Part]) -> Columns:
    """Copy the candles of parts, which come the newest first."""
    if len(parts) == 1:
        ((chunk, start, stop),) = parts
        return {name: column[start:stop].copy() for name, column in chunk.columns.items()}
    ascending = [
        {name: column[start:stop] for name, column in chunk.columns.items()} for chunk, start, stop in parts[::-1]
    ]
    return joined_columns(ascending) if ascending else candle_columns([])


def rows_of(parts: Sequence[Part]) -> list[CandleData]:
    """Return the candles of parts, which come the newest first, as plain data."""
    if len(parts) == 1:
        ((chunk, start, stop),) = parts
        return chunk.copied_rows(start, stop)
    return [row for chunk, start, stop in parts[::-1] for row in chunk.copied_rows(start, stop)]


def to_rows(columns: Columns) -> list[CandleData]:
    """Return columns as plain data."""
    return _to_rows([column.tolist() for column in columns.values()])


def _to_rows(values: Sequence[list[Any]]) -> list[CandleData]:
    return [
        {"timestamp": timestamp, "open": open, "high": high, "low": low, "close": close, "volume": volume}
        for timestamp, open, high, low, close, volume in zip(*values, strict=True)
    ]


def merged_columns(known: Columns, added: Columns) -> Columns:
    """Copy the candles of both in order; of two of one time, the known one."""
    columns = joined_columns([known, added])
    times = columns["timestamp"]
    if (times[1:] > times[:-1]).all():
        return columns
    _, places = import_numpy().unique(times, return_index=True)  # the first place of each time
    return {name: column[places] for name, column in columns.items()}


def up_to(columns: Columns, newest: int, limit: int) -> Columns:
    """Copy the last `limit` candles of ordered columns up to the opening time `newest`."""
    stop = int(columns["timestamp"].searchsorted(newest, "right"))
    return {name: column[max(stop - limit, 0) : stop].copy() for name, column in columns.items()}
