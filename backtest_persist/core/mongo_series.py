"""MongoSeries: the series in a collection of candles, found and counted by its unique index, not by their documents."""

import math
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

from bson.decimal128 import Decimal128
from bson.int64 import Int64
from pymongo import ASCENDING, DESCENDING

from backtest_persist.connections import Collection, Document
from backtest_persist.core.candle_store import PART
from backtest_persist.core.mongo_store import as_operation
from backtest_persist.core.ohlcv import Series
from backtest_persist.core.row import to_wire
from backtest_persist.core.series_summary import Gaps, SeriesSummary, known_series

__all__ = ("MongoSeries",)

_FIELDS = ("exchangeName", "symbol", "interval")
_NO_ARRAY = {"$not": {"$type": "array"}}
"""MongoDB takes an array for each of its items."""
_NAME = {"$gt": "", **_NO_ARRAY}
_TIME = {"$gt": -math.inf, "$lt": math.inf}
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
        return [await self._summary(first) async for first in self._first_documents(wanted)]

    async def _first_documents(self, names: Mapping[str, str]) -> AsyncIterator[Document]:
        """Iterate over the first candle of each series: the first key, and then each next one of another series."""
        wanted = {name: {"$eq": value, **_NO_ARRAY} for name, value in names.items()}
        any_name: dict[str, Any] = {**dict.fromkeys(_FIELDS, _NAME), **wanted}
        document = await self._find_one({**any_name, "timestamp": _TIME}, _ORDER)
        while document is not None:
            yield document
            later = [
                {
                    **any_name,
                    **{before: document[before] for before in _FIELDS[:place]},
                    name: {**_NAME, "$gt": document[name]},
                    "timestamp": _TIME,
                }
                for place, name in enumerate(_FIELDS)
                if name not in names
            ]
            document = await self._find_one({"$or": later}, _ORDER) if later else None

    async def _summary(self, document: Document) -> SeriesSummary:
        names = {name: document[name] for name in _FIELDS}
        first = _floor(document["timestamp"])
        last = await self._find_time({**names, "timestamp": _TIME}, DESCENDING)
        bounds = (first, first if last is None else last)
        parts = (names["symbol"], names["interval"], names["exchangeName"])
        series = known_series(*parts)
        if series is None:
            return SeriesSummary(*parts, *bounds, await self._count({**names, "timestamp": _TIME}), None, None)
        aligned = {**names, "timestamp": {**_TIME, "$mod": [series.step, 0]}}
        start = await self._find_time(aligned, ASCENDING)
        if start is None:
            misaligned = await self._count({**names, "timestamp": _TIME})
            return SeriesSummary(*parts, *bounds, 0, 0, 0, misaligned)
        stop = (await self._find_time(aligned, DESCENDING) or start) + series.step
        stored = await self._count_range(series, bounds[0], start) + await self._count_range(
            series, stop, bounds[1] + 1
        )
        count, gaps = 0, Gaps(series.step)
        while start < stop:
            end = min(start + PART * series.step, stop)
            number = await self._count_range(series, start, end, step=series.step)
            if not number:  # on to the next candle, however far that is
                later = {**_TIME, "$gte": Int64(end), "$mod": [series.step, 0]}
                end = await self._find_time({**names, "timestamp": later}, ASCENDING) or stop
                gaps.add(start, end)
            elif number < (end - start) // series.step:
                for gap in await self._candles.find_gaps(series, start, end):
                    gaps.add(*gap)
            stored += await self._count_range(series, start, end)
            count += number
            start = end
        return SeriesSummary(*parts, *bounds, count, gaps.missing, gaps.count, max(0, stored - count))

    async def _count_range(self, series: Series, start: int, end: int, *, step: int | None = None) -> int:
        """Count what is stored in [start, end), at multiples of `step` alone if it is given."""
        if start >= end:
            return 0
        query = series.window(start, end)
        if step is not None:
            query["timestamp"]["$mod"] = [step, 0]
        return await self._count(query)

    async def _find_time(self, query: Mapping[str, Any], direction: int) -> int | None:
        """Return the first or the last time in one series."""
        found = await self._find_one(query, [("timestamp", direction)])
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


def _floor(stored: Any) -> int:
    """Return a stored time in whole ms."""
    return math.floor(stored.to_decimal() if isinstance(stored, Decimal128) else stored)
