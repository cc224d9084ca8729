"""Candles: OHLCV of one symbol, interval and exchange; immutable, the first write wins."""

import math
import time
from collections.abc import Awaitable, Collection, Iterable, Mapping, Sequence
from contextlib import aclosing
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, cast

from bson.decimal128 import Decimal128
from bson.int64 import Int64
from pydantic import BeforeValidator, ValidationInfo
from pymongo import ASCENDING

from backtest_persist.connections import Collection as MongoCollection
from backtest_persist.connections import aggregate, aggregate_raw
from backtest_persist.contracts import CandleData, CandleInterval, PayloadInput, When
from backtest_persist.core.base_map import base_map
from backtest_persist.core.db_service import DbService
from backtest_persist.core.domain import Domain, Family, FileLayout
from backtest_persist.core.instants import EarlyTimes, checked_int64
from backtest_persist.core.keys import STORED, Name, Timestamp, checked_limit, checked_name, checked_timestamp, join_key
from backtest_persist.core.listing import Batches
from backtest_persist.core.mongo_store import Restored, as_operation
from backtest_persist.core.ohlcv import (
    COLUMNS,
    NUMBERS,
    candle_columns,
    checked_candle,
    checked_window,
    closed_candles,
    import_numpy,
    interval_step_ms,
)
from backtest_persist.core.payload import checked_entries
from backtest_persist.core.persist_instance import PersistInstance, Services
from backtest_persist.core.row import Context, Row, utc_now
from backtest_persist.core.write_queue import by_unique_index

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

_NAMES = dict.fromkeys(COLUMNS).keys()
_COLUMNS_LAYOUT = [
    ("length", "V4"),
    *(
        column
        for name in COLUMNS
        # type and name of the field, then its eight bytes
        for column in ((f"{name} header", f"V{len(name) + 2}"), (name, "<i8" if name == "timestamp" else "<f8"))
    ),
    ("end", "V1"),
]
"""A document of int64 and doubles in BSON (https://bsonspec.org), as fields of a numpy dtype."""
_NUMBER_TYPES = ("double", "int", "long")


class _Series:
    """The candles of one symbol, interval and exchange; `InvalidKeyError` for a part that cannot be."""

    def __init__(self, symbol: str, interval: str, exchange_name: str) -> None:
        self.symbol = checked_name(symbol, "symbol")
        self.interval = checked_name(interval, "interval")
        self.step = interval_step_ms(interval)
        self.exchange_name = checked_name(exchange_name, "exchange_name")

    def filter(self) -> dict[str, Any]:
        return {"exchangeName": self.exchange_name, "symbol": self.symbol, "interval": self.interval}

    def window(self, since: int, until: int) -> dict[str, Any]:
        return {**self.filter(), "timestamp": {"$gte": Int64(since), "$lt": Int64(until)}}

    def cache_key(self, timestamp: int) -> str:
        return join_key(self.exchange_name, self.symbol, self.interval, timestamp)


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
        return CandleData(
            timestamp=self.timestamp,
            open=self.open,
            high=self.high,
            low=self.low,
            close=self.close,
            volume=self.volume,
        )


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

    async def create(self, symbol: str, interval: str, exchange_name: str, candle: PayloadInput) -> CandleRow:
        """Store one candle and return what is stored: an earlier candle of that time stays as it is.

        Raises `InvalidPayloadError` for a candle that cannot be real (see `create_many`).
        """
        checked = checked_candle(symbol, interval, exchange_name, candle, self.store.allows_early_times)
        context = self._context(symbol, interval, exchange_name, checked["timestamp"])
        now = utc_now()
        update = {
            "$setOnInsert": {
                **{name: checked[name] for name in NUMBERS},
                "createDate": now,
                "updatedDate": now,
                "__v": 0,
            }
        }
        row = await self.mongo_store.update(context, update, upsert=True)
        return cast("CandleRow", row)

    async def create_many(self, symbol: str, interval: str, exchange_name: str, candles: Iterable[PayloadInput]) -> int:
        """Store candles in unordered bulks; returns how many were new. Of two at one time the first wins.

        Every candle is checked before any is sent. `InvalidPayloadError` for a timestamp that is not a multiple of the
        interval, a number that is not finite, a high or low inside the body, a negative volume. Prices may be
        negative, as some futures have been.
        """
        series = _Series(symbol, interval, exchange_name)
        unique: dict[int, CandleData] = {}
        for candle in checked_entries(candles, self.collection):
            checked = checked_candle(symbol, interval, exchange_name, candle, self.store.allows_early_times)
            unique.setdefault(checked["timestamp"], checked)
        stored = await self._find_series(series, unique, fields=("timestamp",))
        return await self._insert_series(series, [candle for at, candle in unique.items() if at not in stored])

    async def restore_series(
        self, symbol: str, interval: str, exchange_name: str, candles: Sequence[CandleData], *, dry_run: bool = False
    ) -> list[Restored]:
        """Restore candles of one series that `checked_candle` has passed; see `MongoStore.restore`."""
        series = _Series(symbol, interval, exchange_name)
        stored = await self._find_series(
            series, [candle["timestamp"] for candle in candles], fields=tuple(NUMBERS), prepare=not dry_run
        )
        if not dry_run:
            await self._insert_series(series, [candle for candle in candles if candle["timestamp"] not in stored])
        return [
            Restored.NEW
            if (document := stored.get(candle["timestamp"])) is None
            else Restored.SAME
            if all(document.get(name) == candle[name] for name in NUMBERS)
            else Restored.DIFFERENT
            for candle in candles
        ]

    async def find_by_context(
        self, symbol: str, interval: str, exchange_name: str, timestamp: When
    ) -> CandleRow | None:
        """Return the row of this context, or None."""
        return await self.store.find(self._context(symbol, interval, exchange_name, timestamp))

    async def find_range(
        self, symbol: str, interval: str, exchange_name: str, since: When, limit: int
    ) -> list[CandleRow]:
        """Find what is stored of the window of `limit` candles from `since` (ms UTC) on: one query, oldest first."""
        series = _Series(symbol, interval, exchange_name)
        return CandleRow.from_documents(await self._window(series, since, limit, None))

    async def find_data(
        self, symbol: str, interval: str, exchange_name: str, since: When, limit: int
    ) -> list[CandleData]:
        """Find the same as `find_range`, as plain data: no row is built, and context and dates stay in the server."""
        series = _Series(symbol, interval, exchange_name)
        documents = await self._window(series, since, limit, {"_id": 0, **dict.fromkeys(COLUMNS, 1)})
        for document in documents:
            if not _is_usual(document):
                return [row.data() for row in await self.find_range(symbol, interval, exchange_name, since, limit)]
            document["timestamp"] = int(document["timestamp"])
        return cast("list[CandleData]", documents)

    @as_operation("find")
    async def _window(
        self, series: "_Series", since: When, limit: int, projection: Mapping[str, int] | None
    ) -> list[dict[str, Any]]:
        start = checked_timestamp(since, "since", self.store.allows_early_times)
        end = checked_int64(start + checked_limit(limit) * series.step, "the end of the window")
        if end == start:
            return []
        collection = await self.mongo_store.prepared()
        self.stats.reads += 1
        order = [("timestamp", ASCENDING)]
        query = series.window(start, end)
        async with aclosing(
            Batches(
                collection,
                query,
                projection=projection,
                sort=order,
                batch_size=limit + 1,
                background=self.mongo_store.mongo.background,
            )
        ) as found:
            return [document async for batch in found for document in batch]

    async def find_columns(
        self, symbol: str, interval: str, exchange_name: str, since: When, limit: int
    ) -> "dict[str, NDArray[Any]]":
        """Find the same as `find_range`, as numpy arrays by field: `timestamp` int64 (ms UTC), the others float64.

        No object is built for a candle. Needs numpy; `SettingsError` without it.
        """
        numpy = import_numpy()
        found = numpy.frombuffer(
            await self._columns(_Series(symbol, interval, exchange_name), since, limit),
            dtype=numpy.dtype(_COLUMNS_LAYOUT),
        )
        if any(numpy.isnan(found[name]).any() for name in NUMBERS):
            rows = await self.find_range(symbol, interval, exchange_name, since, limit)  # or the error that names it
            return candle_columns([row.data() for row in rows])
        return {name: numpy.ascontiguousarray(found[name]) for name in COLUMNS}

    @as_operation("find")
    async def _columns(self, series: "_Series", since: When, limit: int) -> bytes:
        """The documents of a window in the layout of the columns; with NaN for what is no number."""
        start = checked_timestamp(since, "since", self.store.allows_early_times)
        end = checked_int64(start + checked_limit(limit) * series.step, "the end of the window")
        is_number: dict[str, Any] = {name: {"$in": [{"$type": f"${name}"}, _NUMBER_TYPES]} for name in COLUMNS}
        is_time = {"$cond": [is_number["timestamp"], {"$eq": [{"$trunc": "$timestamp"}, "$timestamp"]}, False]}
        time = {"$cond": [is_number["timestamp"], {"$toLong": "$timestamp"}, Int64(0)]}
        is_number["open"] = {"$and": [is_number["open"], is_time]}
        numbers = {name: {"$cond": [is_number[name], {"$toDouble": f"${name}"}, math.nan]} for name in NUMBERS}
        pipeline = [
            {"$match": series.window(start, end)},
            {"$sort": {"timestamp": 1}},
            {"$project": {"_id": 0, "timestamp": time, **numbers}},
        ]
        collection = await self.mongo_store.prepared()
        self.stats.reads += 1
        return b"".join([batch async for batch in aggregate_raw(collection, pipeline)])

    @as_operation("find gaps")
    async def find_gaps(
        self, symbol: str, interval: str, exchange_name: str, since: When, until: When
    ) -> list[tuple[int, int]]:
        """Return the holes in [since, until), each as (first missing opening time, time after the hole), in ms UTC."""
        series = _Series(symbol, interval, exchange_name)
        step = series.step
        early = self.store.allows_early_times
        start = checked_int64(_ceil(checked_timestamp(since, "since", early), step), "since")
        end = checked_int64(_ceil(checked_timestamp(until, "until", early), step), "until")
        if start >= end:
            return []
        window = series.window(start, end)
        window["timestamp"]["$mod"] = [step, 0]  # what another program stored in between closes no gap
        pipeline = [
            {"$match": window},
            {"$project": {"_id": 0, "timestamp": 1}},
            {
                "$setWindowFields": {
                    "sortBy": {"timestamp": 1},
                    "output": {
                        "next": {"$shift": {"output": "$timestamp", "by": 1, "default": Int64(end)}},
                        "first": {"$min": "$timestamp", "window": {"documents": ["unbounded", "unbounded"]}},
                    },
                }
            },
            {
                "$match": {
                    "$expr": {
                        "$or": [
                            {"$ne": ["$next", {"$add": ["$timestamp", Int64(step)]}]},
                            {"$eq": ["$timestamp", "$first"]},
                        ]
                    }
                }
            },
        ]
        collection = await self.mongo_store.prepared()
        gaps: list[tuple[int, int]] = []
        covered, seen = start, False
        async for document in aggregate(collection, pipeline):
            timestamp, following = _whole(document["timestamp"]), _whole(document["next"])
            if timestamp is not None:
                if timestamp > start and not seen:
                    gaps.append((start, timestamp))
                covered = timestamp + step
            if following is not None and following > covered:
                gaps.append((covered, following))
            seen = True
        return gaps if seen else [(start, end)]

    @as_operation("find")
    async def _find_series(
        self, series: "_Series", timestamps: Collection[int], *, fields: tuple[str, ...], prepare: bool = True
    ) -> dict[int, Mapping[str, Any]]:
        """Find these fields of the candles stored at these times; the timestamp alone is answered by the index."""
        if not timestamps:
            return {}
        first, last = min(timestamps), max(timestamps)
        dense = last - first < 2 * len(timestamps) * series.step
        filter = {**series.filter(), "timestamp": {"$gte": Int64(first), "$lte": Int64(last)}}
        if not dense:
            filter["timestamp"] = {"$in": [Int64(timestamp) for timestamp in timestamps]}
        projection = {"_id": 0, "timestamp": 1, **dict.fromkeys(fields, 1)}

        def find(collection: MongoCollection, hint: Mapping[str, int] | None) -> Awaitable[list[dict[str, Any]]]:
            return collection.find(filter, projection, hint=hint, batch_size=len(timestamps) + 1).to_list(None)

        if prepare:
            store = self.mongo_store
            state = await store.ready()
            indexed = partial(find, store.schema.of(state), store.schema.unique_index)
            documents = await by_unique_index(store.schema, state, indexed)
        else:
            documents = await find(self.mongo_store.mongo.collection(self.collection), None)
        times = [_whole(document["timestamp"]) for document in documents]
        return {time: document for time, document in zip(times, documents, strict=True) if time is not None}

    async def _insert_series(self, series: "_Series", candles: Sequence[CandleData]) -> int:
        settings, fields = self.mongo_store.mongo.settings, series.filter()
        return await self.mongo_store.insert_many(
            [(series.cache_key(candle["timestamp"]), {**fields, **candle}) for candle in candles],
            chunk_size=settings.candle_chunk_size,
            remember=settings.candle_cache,
        )

    async def has_candle(self, symbol: str, interval: str, exchange_name: str, timestamp: When) -> bool:
        """Whether MongoDB holds the candle."""
        return await self.find_by_context(symbol, interval, exchange_name, timestamp) is not None

    def _context(self, symbol: str, interval: str, exchange_name: str, timestamp: When) -> CandleContext:
        return _context(symbol, interval, exchange_name, timestamp, self.store.allows_early_times)


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
        on_grid = columns["timestamp"] % window.step == 0  # another program may have stored some in between
        if not on_grid.all():
            columns = {name: column[on_grid] for name, column in columns.items()}
        return columns if len(columns["timestamp"]) == len(window) else None

    def _window(self, limit: int, since: When, until: When | None) -> range | None:
        return checked_window(self.interval, limit, since, until, self.db.store.allows_early_times)

    async def write_candles_data(self, candles: Sequence[PayloadInput]) -> None:
        """Store candles; those that have not closed yet by this machine's clock are skipped."""
        early = self.db.store.allows_early_times
        closed = closed_candles(self.interval, candles, int(time.time() * 1000), early)
        await self.db.create_many(self.symbol, self.interval, self.exchange_name, closed)


def _whole(stored: Any) -> int | None:
    """A stored number as int; None for one that is not whole, which $mod of a query cuts off."""
    number = stored.to_decimal() if isinstance(stored, Decimal128) else stored
    return int(number) if number == int(number) else None


def _is_usual(document: Mapping[str, Any]) -> bool:
    """Whether a document holds all numbers of a candle in the types that this package stores."""
    return (
        document.keys() == _NAMES
        and type(document["timestamp"]) is Int64
        and all(type(document[name]) is float for name in NUMBERS)
    )


def _ceil(timestamp: int, step: int) -> int:
    return -(-timestamp // step) * step


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
)
