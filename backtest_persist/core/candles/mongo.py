"""MongoCandleStore: candles in MongoDB, of which ranges of any size are read part by part."""

from collections.abc import AsyncIterator, Awaitable, Mapping, Sequence
from contextlib import aclosing
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar, cast

from bson.int64 import Int64
from pymongo import ASCENDING, DESCENDING

from backtest_persist.connections import Collection, Document, aggregate, aggregate_raw
from backtest_persist.contracts import CandleData
from backtest_persist.core.candles.mongo_series import MongoSeries, stored_number
from backtest_persist.core.candles.ohlcv import COLUMNS, NUMBERS, Series, candle_columns, plain_candle
from backtest_persist.core.candles.raw_columns import CONVERSION, converted_columns, joined_columns, raw_columns
from backtest_persist.core.candles.series_summary import SeriesSummary
from backtest_persist.core.candles.store import PART
from backtest_persist.core.frames.row_list import RowList
from backtest_persist.core.instants import INT64_MAX, INT64_MIN
from backtest_persist.core.listing import Batches
from backtest_persist.core.mongo_store import MongoStore, as_operation
from backtest_persist.core.row import Context, Row, utc_now
from backtest_persist.core.write_queue import by_unique_index
from backtest_persist.logger import LoggerService

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ("MongoCandleStore",)

C = TypeVar("C", bound=Context)
R = TypeVar("R", bound=Row)

DELETED_PART = 5000
"""Candles that are deleted in one turn among the writes, which has its own deadline."""
_NAMES = dict.fromkeys(COLUMNS).keys()
_PROJECTION = {"_id": 0, **dict.fromkeys(COLUMNS, 1)}


class MongoCandleStore(MongoStore[C, R]):
    """Keeps candles in MongoDB; implements `core.candle_store.CandleStore`."""

    @property
    def logger(self) -> LoggerService:
        """The logger of the container."""
        return self.mongo.logger

    @property
    def remembers_ids(self) -> bool:
        """Whether Redis is told the ids of new candles: ``CC_CANDLE_CACHE``."""
        return self.mongo.settings.candle_cache

    # --- reading ---

    async def find_rows(self, series: Series, start: int, end: int) -> RowList[R]:
        """Find what is stored in [start, end)."""
        rows: RowList[R] = RowList((), self.schema.row_type)
        async for documents in self._window(series, start, end):
            rows += self.schema.row_type.from_documents(documents)
        return rows

    async def find_data(self, series: Series, start: int, end: int) -> list[CandleData]:
        """Find the same as plain data: no row is built, and context and dates stay in the server."""
        candles: list[CandleData] = []
        async for documents in self._window(series, start, end, _PROJECTION):
            if not all(map(_is_usual, documents)):
                return [plain_candle(row) for row in await self.find_rows(series, start, end)]
            candles += map(_to_data, documents)
        return candles

    async def find_columns(self, series: Series, start: int | None, end: int | None) -> "dict[str, NDArray[Any]]":
        """Find the same as numpy arrays; no object is built for a candle. None is no bound."""
        start, end = INT64_MIN if start is None else start, INT64_MAX if end is None else end
        parts = [candle_columns([])]
        since = start
        while since < end:
            query = series.window(since, end)
            found = raw_columns(await self._find_raw(query)) or converted_columns(await self._convert(query))
            if found is None:  # the rows, or the error that names the one that is none
                return candle_columns([plain_candle(row) for row in await self.find_rows(series, start, end)])
            times = found["timestamp"]
            since = int(times[-1]) + 1 if len(times) == PART else end
            parts.append(found)
        return joined_columns(parts)

    async def find_last_rows(self, series: Series, limit: int, latest: int) -> RowList[R]:
        """Find the last `limit` candles that open at `latest` or before."""
        documents = await self._last(series, limit, latest)
        return RowList(self.schema.row_type.from_documents(documents), self.schema.row_type)

    async def find_last_data(self, series: Series, limit: int, latest: int) -> list[CandleData]:
        """Find the same as plain data."""
        documents = await self._last(series, limit, latest, _PROJECTION)
        if not all(map(_is_usual, documents)):
            return [plain_candle(row) for row in await self.find_last_rows(series, limit, latest)]
        return [_to_data(document) for document in documents]

    async def find_gaps(self, series: Series, start: int, end: int) -> list[tuple[int, int]]:
        """Find the gaps in [start, end); what another program has stored at other times closes none."""
        step, covered = series.step, start
        gaps: list[tuple[int, int]] = []
        query = series.window(start, end)
        query["timestamp"]["$mod"] = [step, 0]
        while covered < end and (documents := await self._find_edges(query, step)):
            for position, document in enumerate(documents):
                at, following = _whole(document["timestamp"]), _whole(document.get("next"))
                if at is not None:
                    if at > covered and not position:
                        gaps.append((covered, at))
                    covered = at + step
                if following is not None and following > covered:
                    gaps.append((covered, following))
            query["timestamp"] = {**query["timestamp"], "$gt": documents[-1]["timestamp"]}
        return [*gaps, (covered, end)] if covered < end else gaps

    async def find_bounds(self, series: Series, since: int | None = None) -> tuple[int, int] | None:
        """Find the first and the last time that is stored, of those from `since` on; None when nothing is."""
        return await MongoSeries(self).bounds(series, since)

    async def list_series(self, names: Mapping[str, str]) -> list[SeriesSummary]:
        """Summarise each series whose names, by the fields of the context, are these."""
        return await MongoSeries(self).summarise(names)

    @as_operation("find")
    async def find_numbers(
        self, series: Series, times: Sequence[int], *, prepare: bool = True
    ) -> dict[int, Mapping[str, Any]]:
        """Find the numbers of the candles that are stored at these times, which are in order."""
        if not times:
            return {}
        first, last = times[0], times[-1]
        filter = series.window(first, last + 1)
        if last - first >= 2 * len(times) * series.step:
            filter["timestamp"] = {"$in": [Int64(at) for at in times]}

        def find(collection: Collection, hint: Mapping[str, int] | None) -> Awaitable[list[dict[str, Any]]]:
            return collection.find(filter, _PROJECTION, hint=hint, batch_size=2 * len(times) + 1).to_list(None)

        if prepare:
            state = await self.ready()
            indexed = partial(find, self.schema.of(state), self.schema.unique_index)
            documents = await by_unique_index(self.schema, state, indexed)
        else:
            documents = await find(self.mongo.collection(self.schema.collection), None)
        whole = [_whole(document["timestamp"]) for document in documents]
        return {at: document for at, document in zip(whole, documents, strict=True) if at is not None}

    # --- writing ---

    async def create_candle(self, context: C, candle: CandleData) -> R:
        """Store a candle, unless one is stored in its context; returns the row of that which is stored then."""
        now = utc_now()
        dates = {"createDate": now, "updatedDate": now, "__v": 0}
        update = {"$setOnInsert": {**{name: candle[name] for name in NUMBERS}, **dates}}
        return cast("R", await self.update(context, update, upsert=True))

    async def insert_candles(self, series: Series, candles: Sequence[CandleData]) -> int:
        """Store candles where none is stored yet; returns how many."""
        fields = series.filter()
        return await self.insert_many(
            [(series.cache_key(candle["timestamp"]), {**fields, **candle}) for candle in candles],
            chunk_size=self.mongo.settings.candle_chunk_size,
            remember=self.remembers_ids,
        )

    async def delete_range(self, series: Series, start: int | None, end: int | None) -> int:
        """Delete what is stored from `start` on and before `end`, in its turn among the writes, part by part."""
        deleted = 0
        while True:
            filter = series.window(start, end)
            following = await self._find_nth(filter, DELETED_PART)
            if following is not None:
                filter["timestamp"] = {**filter.get("timestamp", {}), "$lt": following}
            deleted += await self.delete(filter)
            if following is None:
                return deleted

    # --- the parts of a range ---

    async def _window(
        self, series: Series, start: int, end: int, projection: Mapping[str, int] | None = None
    ) -> AsyncIterator[list[Document]]:
        """Iterate over the documents in [start, end), part by part."""
        while start < end:
            documents = await self._find_part(series.window(start, end), ASCENDING, PART, projection)
            yield documents
            start = int(documents[-1]["timestamp"]) + 1 if len(documents) == PART else end

    async def _last(
        self, series: Series, limit: int, latest: int, projection: Mapping[str, int] | None = None
    ) -> list[Document]:
        """Find the last documents that open at `latest` or before, oldest first."""
        documents: list[Document] = []
        while limit:
            query = {**series.filter(), "timestamp": {"$lte": Int64(latest), "$mod": [series.step, 0]}}
            found = await self._find_part(query, DESCENDING, min(PART, limit), projection)
            documents += found
            limit = limit - len(found) if len(found) == PART else 0
            latest = found[-1]["timestamp"] - 1 if found else latest
        return documents[::-1]

    @as_operation("find")
    async def _find_nth(self, filter: Mapping[str, Any], number: int) -> Any:
        """Return the time of the n-th candle, counted from 0, that a filter finds, or None."""
        collection = await self.prepared()
        options: Any = {"sort": [("timestamp", ASCENDING)], "skip": number}
        found = await collection.find_one(filter, {"_id": 0, "timestamp": 1}, **options)
        return None if found is None else found["timestamp"]

    @as_operation("find")
    async def _find_part(
        self, query: Mapping[str, Any], direction: int, limit: int, projection: Mapping[str, int] | None
    ) -> list[Document]:
        collection = await self.prepared()
        self.stats.reads += 1
        async with aclosing(self._batches(collection, query, direction, limit, projection)) as found:
            return [document async for batch in found for document in batch]

    @as_operation("find")
    async def _find_raw(self, query: Mapping[str, Any]) -> bytes:
        """Find the numbers of a part of a range, oldest first, in BSON."""
        collection = await self.prepared()
        self.stats.reads += 1
        found: list[bytes] = []
        async with aclosing(self._batches(collection, query, ASCENDING, PART, _PROJECTION)) as batches:
            while (batch := await batches.read()) is not None:
                found.append(batch)
        return b"".join(found)

    def _batches(
        self,
        collection: Collection,
        query: Mapping[str, Any],
        direction: int,
        limit: int,
        projection: Mapping[str, int] | None,
    ) -> Batches:
        options: Any = {"sort": [("timestamp", direction)], "limit": limit, "batch_size": limit + 1}
        return Batches(collection, query, background=self.mongo.background, projection=projection, **options)

    @as_operation("find")
    async def _convert(self, query: Mapping[str, Any]) -> bytes:
        """Find the same as `_find_raw`, with numbers of other types converted by the server."""
        pipeline = [
            {"$match": query},
            {"$sort": {"timestamp": 1}},
            {"$limit": PART},
            {"$project": CONVERSION},
        ]
        collection = await self.prepared()
        self.stats.reads += 1
        return b"".join([batch async for batch in aggregate_raw(collection, pipeline)])

    @as_operation("find gaps")
    async def _find_edges(self, query: Mapping[str, Any], step: int) -> list[Document]:
        """Find the first and the last candle of a part of a series, and each that is not followed by its successor.

        Each comes with the time of the `next` one in the part.
        """
        numbered = {
            "next": {"$shift": {"output": "$timestamp", "by": 1}},
            "first": {"$min": "$timestamp", "window": {"documents": ["unbounded", "unbounded"]}},
        }
        is_followed = {"$eq": ["$next", {"$add": ["$timestamp", Int64(step)]}]}
        pipeline = [
            {"$match": query},
            {"$sort": {"timestamp": 1}},
            {"$limit": PART},
            {"$project": {"_id": 0, "timestamp": 1}},
            {"$match": {"timestamp": {"$not": {"$type": "array"}}}},  # after the index has found the part by itself
            {"$setWindowFields": {"sortBy": {"timestamp": 1}, "output": numbered}},
            {"$match": {"$expr": {"$or": [{"$not": is_followed}, {"$eq": ["$timestamp", "$first"]}]}}},
        ]
        collection = await self.prepared()
        return [document async for document in aggregate(collection, pipeline)]


def _whole(stored: Any) -> int | None:
    """A stored number as int; None for None and for one that is not whole, which $mod of a query cuts off."""
    if stored is None:
        return None
    number = stored_number(stored)
    return int(number) if number == int(number) else None


def _is_usual(document: Mapping[str, Any]) -> bool:
    """Whether a document holds all numbers of a candle in the types that this package stores."""
    return (
        document.keys() == _NAMES
        and type(document["timestamp"]) is Int64
        and all(type(document[name]) is float for name in NUMBERS)
    )


def _to_data(document: Document) -> CandleData:
    """Turn a usual document into plain data."""
    document["timestamp"] = int(document["timestamp"])
    return cast("CandleData", document)
