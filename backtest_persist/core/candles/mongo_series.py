"""MongoSeries: the series in a collection of candles, found and counted by its unique index, not by their documents."""

import math
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from typing import Any, NamedTuple, Protocol

from bson.decimal128 import Decimal128
from bson.int64 import Int64
from pymongo import ASCENDING, DESCENDING

from backtest_persist.connections import Collection, Document
from backtest_persist.core.candles.ohlcv import INTERVALS, Series, interval_step_ms
from backtest_persist.core.candles.series_summary import Gaps, SeriesSummary, known_series
from backtest_persist.core.candles.store import PART
from backtest_persist.core.instants import INT64_MAX
from backtest_persist.core.mongo_store import as_operation
from backtest_persist.core.row import to_wire

__all__ = ("MongoSeries", "stored_number")

_FIELDS = ("exchangeName", "symbol", "interval")
_NO_ARRAY = {"$not": {"$type": "array"}}
"""MongoDB takes an array for each of its items."""
_NAME = {"$gt": "", **_NO_ARRAY}
_LATEST = INT64_MAX - 2 * PART * max(map(interval_step_ms, INTERVALS))
_TIME = {"$gt": Int64(-_LATEST), "$lt": Int64(_LATEST)}
"""What may be the time of a candle: the bounds of the parts that follow it fit 64 bits."""
_SINGLE_TIME = {**_TIME, **_NO_ARRAY}
"""The same without arrays, which the index alone does not tell apart, so that counts include them."""
_FEW = 1000
"""Candles among which gaps are as quickly found as counted."""
_MAX_HALVES = 16
"""How many halves of a part are counted: enough for two gaps among 50,000 candles, and in vain where there are many."""
_ORDER = [(name, ASCENDING) for name in (*_FIELDS, "timestamp")]


class _Candles(Protocol):
    """The part of `MongoCandleStore` that is needed here."""

    def operation(self, verb: str, *, write: bool = False) -> AbstractAsyncContextManager[None]: ...

    async def prepared(self) -> Collection: ...

    async def find_gaps(self, series: Series, start: int, end: int) -> list[tuple[int, int]]: ...


class MongoSeries:
    """Lists the series of a collection; each command has its own deadline, and reads keys of the index alone."""

    def __init__(self, candles: _Candles) -> None:
        self._candles = candles

    def operation(self, verb: str, *, write: bool = False) -> AbstractAsyncContextManager[None]:
        """Begin one operation of the collection."""
        return self._candles.operation(verb, write=write)

    async def summarise(self, names: Mapping[str, str]) -> list[SeriesSummary]:
        """Summarise each series whose names, by the fields of the context, are these."""
        wanted = {to_wire(name): value for name, value in names.items()}
        found = [await self._summary(first) async for first in self._first_documents(wanted)]
        if not names and await self._count_all() == sum(summary.count for summary in found):
            return found
        return [replace(one, misaligned=await self._count_misaligned(one)) for one in found]

    async def bounds(self, series: Series, since: int | None = None) -> tuple[int, int] | None:
        """Return the first and the last time of a series, of those from `since` on; None when nothing is stored."""
        query = _of_times(series.window(since, None))
        first, last = await self._find_time(query, ASCENDING), await self._find_time(query, DESCENDING)
        return None if first is None or last is None else (first, last)

    async def _first_documents(self, names: Mapping[str, str]) -> AsyncIterator[Document]:
        """Iterate over the first candle of each series: the first key, and then each next one of another series."""
        wanted = {name: {"$eq": value, **_NO_ARRAY} for name, value in names.items()}
        any_name: dict[str, Any] = {**dict.fromkeys(_FIELDS, _NAME), **wanted}
        document = await self._find_one({**any_name, "timestamp": _SINGLE_TIME}, _ORDER)
        while document is not None:
            yield document
            later = [
                {
                    **any_name,
                    **{before: document[before] for before in _FIELDS[:place]},
                    name: {**_NAME, "$gt": document[name]},
                    "timestamp": _SINGLE_TIME,
                }
                for place, name in enumerate(_FIELDS)
                if name not in names
            ]
            document = await self._find_one({"$or": later}, _ORDER) if later else None

    async def _summary(self, document: Document) -> SeriesSummary:
        """Summarise the series of its first document, without what is misaligned."""
        names = {name: document[name] for name in _FIELDS}
        first = _floor(document["timestamp"])
        last = await self._find_time({**names, "timestamp": _TIME}, DESCENDING)
        last = first if last is None else last
        parts = (names["symbol"], names["interval"], names["exchangeName"])
        series = known_series(*parts)
        if series is None:
            count = await self._count({**names, "timestamp": _TIME})
            return SeriesSummary(*parts, first, last, count, None, None)
        step = series.step
        start = await self._find_time(_aligned(series), ASCENDING) if first % step else first
        stop = await self._find_time(_aligned(series), DESCENDING) if last % step else last
        count, gaps = 0, Gaps(step)
        while start is not None and stop is not None:
            end = min(start + PART * step, stop + step)
            number = await self._count(_aligned(series, start, end))
            await self._add_gaps(series, _Part(start, end, number), gaps)
            count += number
            start = await self._find_time(_aligned(series, end), ASCENDING) if end <= stop else None
            gaps.add(end, end if start is None else start)
        return SeriesSummary(*parts, first, last, count, gaps.missing, gaps.count)

    async def _add_gaps(self, series: Series, part: "_Part", gaps: Gaps) -> None:
        """Add the gaps of a part; what is complete, or holds nothing, is found by counting halves."""
        parts = [part]
        for _ in range(_MAX_HALVES):
            place = max(range(len(parts)), key=lambda at: parts[at].uncertain(series.step))
            if parts[place].uncertain(series.step) <= _FEW:
                break
            start, end, number = parts[place]
            middle = start + (end - start) // series.step // 2 * series.step
            half = await self._count(_aligned(series, start, middle))
            parts[place : place + 1] = _Part(start, middle, half), _Part(middle, end, number - half)
        for one in parts:
            if one.uncertain(series.step):
                for gap in await self._candles.find_gaps(series, one.start, one.end):
                    gaps.add(*gap)
            elif not one.number:
                gaps.add(one.start, one.end)

    async def _count_misaligned(self, summary: SeriesSummary) -> int:
        series = known_series(summary.symbol, summary.interval, summary.exchange_name)
        if series is None:
            return 0
        stored, start = 0, summary.first
        while start is not None and start <= summary.last:
            end = start + PART * series.step
            stored += await self._count(series.window(start, end))
            start = await self._find_time(_of_times(series.window(end, None)), ASCENDING)
        return max(0, stored - summary.count)

    async def _find_time(self, query: Mapping[str, Any], direction: int) -> int | None:
        """Return the first or the last time in one series."""
        single = {**query, "timestamp": {**query["timestamp"], **_NO_ARRAY}}
        found = await self._find_one(single, [("timestamp", direction)])
        return None if found is None else _floor(found["timestamp"])

    @as_operation("list series")
    async def _find_one(self, query: Mapping[str, Any], order: Sequence[tuple[str, int]]) -> Document | None:
        collection = await self._candles.prepared()
        projection = {"_id": 0, **dict.fromkeys((*_FIELDS, "timestamp"), 1)}
        options: Any = {"sort": order}
        return await collection.find_one(query, projection, **options)

    @as_operation("count")
    async def _count(self, query: Mapping[str, Any]) -> int:
        collection = await self._candles.prepared()
        return await collection.count_documents(query)

    @as_operation("count")
    async def _count_all(self) -> int:
        return await (await self._candles.prepared()).estimated_document_count()


class _Part(NamedTuple):
    """A part of a series, of the opening times in [start, end), and how many candles are stored there."""

    start: int
    end: int
    number: int

    def uncertain(self, step: int) -> int:
        """Return how many candles the part can have, or 0 if none or all of them are stored."""
        size = (self.end - self.start) // step
        return size if 0 < self.number < size else 0


def _aligned(series: Series, start: int | None = None, end: int | None = None) -> dict[str, Any]:
    """Return the query for what is stored in [start, end) at times at which a candle begins."""
    query = _of_times(series.window(start, end))
    query["timestamp"]["$mod"] = [series.step, 0]
    return query


def _of_times(query: Mapping[str, Any]) -> dict[str, Any]:
    """Return a query for the part of what it finds that is stored at times that a candle can have."""
    return {**query, "timestamp": {**_TIME, **query.get("timestamp", {})}}


def _floor(stored: Any) -> int:
    """Return a stored time in whole ms."""
    return math.floor(stored_number(stored))


def stored_number(stored: Any) -> Any:
    """Return a number as it is stored, a decimal as `Decimal`."""
    return stored.to_decimal() if isinstance(stored, Decimal128) else stored
