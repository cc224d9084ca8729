"""Candles: OHLCV of one symbol, interval and exchange; immutable, the first write wins."""

import time
from collections.abc import AsyncIterator, Awaitable, Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

from bson.decimal128 import Decimal128
from bson.int64 import Int64
from pydantic import BeforeValidator, ValidationInfo
from pymongo import ASCENDING, DESCENDING

from backtest_persist.connections import Collection as MongoCollection
from backtest_persist.connections import Document, aggregate, aggregate_raw
from backtest_persist.contracts import CandleData, CandleInterval, CandlesInput, When
from backtest_persist.core.base_map import base_map
from backtest_persist.core.candle_input import CheckedCandles, check_candles
from backtest_persist.core.db_service import DbService
from backtest_persist.core.domain import Domain, Family, FileLayout
from backtest_persist.core.instants import EarlyTimes, checked_int64
from backtest_persist.core.keys import STORED, Name, Timestamp, checked_limit, checked_name, checked_timestamp, join_key
from backtest_persist.core.listing import Batches
from backtest_persist.core.mongo_store import MongoStore, Restored, as_operation
from backtest_persist.core.ohlcv import (
    COLUMNS,
    NUMBERS,
    Series,
    candle_columns,
    checked_window,
    interval_step_ms,
)
from backtest_persist.core.persist_instance import PersistInstance, Services
from backtest_persist.core.raw_columns import CONVERSION, converted_columns, joined_columns, raw_columns
from backtest_persist.core.row import Context, Row, utc_now
from backtest_persist.core.store import Store
from backtest_persist.core.write_queue import by_unique_index
from backtest_persist.errors import InvalidPayloadError
from backtest_persist.logger import LoggerService

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = (
    "CANDLE",
    "CandleCacheService",
    "CandleContext",
    "CandleDbService",
    "CandleReport",
    "CandleRow",
    "PersistCandleInstance",
)

PART = 50_000
"""Candles that one command reads; each has its own deadline."""
DELETED_PART = 5000
"""Candles that are deleted in one turn among the writes, which has its own deadline."""
_NAMES = dict.fromkeys(COLUMNS).keys()
_PROJECTION = {"_id": 0, **dict.fromkeys(COLUMNS, 1)}


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


@dataclass
class CandleReport:
    """The result of one call of `CandleDbService.store`; times are opening times in ms UTC, in order."""

    new: int = 0
    """How many candles are newly stored."""
    same: int = 0
    """How many were stored already with the same numbers, or were given more than once."""
    different: list[int] = field(default_factory=list[int])
    """The times of those that are stored with other numbers, which were kept."""
    open: list[int] = field(default_factory=list[int])
    """The times of those that had not closed at `as_of`, and were not stored."""
    invalid: list[tuple[int, str]] = field(default_factory=list[tuple[int, str]])
    """The positions of those that cannot be stored, each with what is wrong with it."""
    ignored: tuple[str, ...] = ()
    """The names of the fields or columns that a stored candle does not have."""
    rounded: list[int] = field(default_factory=list[int])
    """The times of those with a number of more digits than a float holds, which is stored as the nearest float."""
    widened: list[int] = field(default_factory=list[int])
    """The times of those whose high or low missed the body by a rounding error, and was set to it."""

    @classmethod
    def of(cls, checked: CheckedCandles) -> "CandleReport":
        """Begin the report on checked candles."""
        return cls(
            same=checked.repeated,
            open=sorted(checked.open),
            invalid=checked.invalid,
            ignored=tuple(sorted(checked.ignored)),
            rounded=sorted(checked.rounded),
            widened=sorted(checked.widened),
        )


class CandleDbService(DbService[CandleContext, CandleRow]):
    """Reads and writes ``candle-items``; there is no `upsert`, because a closed candle never changes."""

    collection = "candle-items"
    default_sort = tuple((name, ASCENDING) for name in ("timestamp", "exchangeName", "symbol", "interval"))
    """In one series by its unique index, so that the server need not sort."""

    def __init__(self, store: Store[CandleContext, CandleRow]) -> None:
        super().__init__(store)
        self._told: set[tuple[Series, tuple[str, ...]]] = set()
        """The fields that are not stored and of which the log has told."""

    # --- writing ---

    @property
    def remembers_ids(self) -> bool:
        """Whether Redis is told the ids of new candles: ``CC_CANDLE_CACHE``."""
        return isinstance(self._store, MongoStore) and self._store.mongo.settings.candle_cache

    async def create(self, symbol: str, interval: str, exchange_name: str, candle: Any) -> CandleRow:
        """Store one candle and return what is stored: an earlier candle of that time stays as it is.

        Raises `InvalidPayloadError` for a candle that has not closed yet, or cannot be real; see `store`.
        """
        series = Series(symbol, interval, exchange_name)
        checked = self._checked(series, [candle])
        if checked.open:
            raise series.error("the candle has not closed yet and may still change", checked.open[0])
        (data,) = checked.valid.values()
        row = await self._create(series, data)
        report = CandleReport.of(checked)
        if row.data() != data:
            report.different.append(row.timestamp)
        self._tell(series, report)
        return row

    async def _create(self, series: Series, candle: CandleData) -> CandleRow:
        context = self._context(series.symbol, series.interval, series.exchange_name, candle["timestamp"])
        now = utc_now()
        dates = {"createDate": now, "updatedDate": now, "__v": 0}
        update = {"$setOnInsert": {**{name: candle[name] for name in NUMBERS}, **dates}}
        row = await self.mongo_store.update(context, update, upsert=True)
        return cast("CandleRow", row)

    async def create_many(self, symbol: str, interval: str, exchange_name: str, candles: CandlesInput) -> int:
        """Store closed candles, of which the first write of a time wins; returns how many were new. See `store`."""
        return (await self.store(symbol, interval, exchange_name, candles)).new

    async def store(  # pyright: ignore[reportIncompatibleMethodOverride]  # a name of the API; rows are in `_store`
        self,
        symbol: str,
        interval: str,
        exchange_name: str,
        candles: CandlesInput,
        *,
        as_of: When | None = None,
        errors: Literal["raise", "skip"] = "raise",
    ) -> CandleReport:
        """Store the candles that had closed at `as_of`, and tell what became of each; the first write of a time wins.

        For the shapes of `candles` see `contracts.CandlesInput`. `as_of` is when the exchange was asked: a candle that
        was open then is not stored, even if it has closed since. The default, and the latest that counts, is now.

        All candles are checked before any is stored. Those that cannot be real are an `InvalidPayloadError` that names
        five of them, or with ``errors="skip"`` entries of the report: a time that is no multiple of the interval, a
        number that is not finite, a high or low inside the body, a negative volume, and different candles of one time.
        Prices may be negative, as some futures have been. A high or low that misses the body by no more than 1e-9 of
        the price is set to it.
        """
        series = Series(symbol, interval, exchange_name)
        if errors not in ("raise", "skip"):
            raise InvalidPayloadError(f"errors must be 'raise' or 'skip', not {errors!r:.40}.")
        checked = self._checked(series, candles, as_of, skip=errors == "skip")
        report = CandleReport.of(checked)
        await self._store_candles(series, checked.valid, report)
        self._tell(series, report)
        return report

    async def replace_range(
        self,
        symbol: str,
        interval: str,
        exchange_name: str,
        since: When,
        until: When,
        candles: CandlesInput,
        *,
        as_of: When | None = None,
    ) -> CandleReport:
        """Replace what is stored in [since, until) by these candles, such as after a split or a wrong import.

        They are checked first, as by `store`, and lie in that range. What is stored is deleted before they are stored,
        so that a reader meanwhile, or after a failure, finds the range incomplete, but never a mixture.
        """
        series = Series(symbol, interval, exchange_name)
        start, end = self._instant(since, "since"), self._instant(until, "until")
        checked = self._checked(series, candles, as_of)
        if outside := [at for at in checked.valid if not start <= at < end]:
            raise series.error(
                f"{len(outside)} candles lie outside of the range [{start}, {end}), such as {outside[0]}"
            )
        report = CandleReport.of(checked)
        await self._delete_range(series, start, end)
        await self._store_candles(series, checked.valid, report)
        self._tell(series, report)
        return report

    async def delete_range(
        self,
        symbol: str,
        interval: str,
        exchange_name: str,
        since: When | None = None,
        until: When | None = None,
    ) -> int:
        """Delete what is stored in [since, until), without bounds the whole series; returns how many candles."""
        series = Series(symbol, interval, exchange_name)
        start = None if since is None else self._instant(since, "since")
        return await self._delete_range(series, start, None if until is None else self._instant(until, "until"))

    async def restore_series(
        self, symbol: str, interval: str, exchange_name: str, candles: Sequence[CandleData], *, dry_run: bool = False
    ) -> list[Restored]:
        """Restore candles of one series that `checked_candle` has passed; see `MongoStore.restore`."""
        series = Series(symbol, interval, exchange_name)
        stored: dict[int, Mapping[str, Any]] = {}
        for times in _parts(sorted(candle["timestamp"] for candle in candles)):
            stored |= await self._find_numbers(series, times, prepare=not dry_run)
        if not dry_run:
            await self._insert(series, [candle for candle in candles if candle["timestamp"] not in stored])
        return [
            Restored.NEW
            if (document := stored.get(candle["timestamp"])) is None
            else Restored.SAME
            if _is_same(document, candle)
            else Restored.DIFFERENT
            for candle in candles
        ]

    def _checked(
        self, series: Series, candles: CandlesInput, as_of: When | None = None, *, skip: bool = False
    ) -> CheckedCandles:
        now = _now()
        asked = now if as_of is None else min(now, self._instant(as_of, "as_of"))
        checked = check_candles(series, candles, as_of=asked, early=self.allows_early_times)
        if checked.invalid and not skip:
            raise checked.error(series)
        return checked

    async def _store_candles(self, series: Series, candles: Mapping[int, CandleData], report: CandleReport) -> None:
        missing: list[CandleData] = []
        for times in _parts(sorted(candles)):
            stored = await self._find_numbers(series, times)
            missing += [candles[at] for at in times if at not in stored]
            self._compare(candles, stored, report)
        report.new = await self._insert(series, missing)
        if report.new < len(missing):  # others have stored some of them since
            for times in _parts([candle["timestamp"] for candle in missing]):
                self._compare(candles, await self._find_numbers(series, times), report)
            report.different.sort()
            report.same -= report.new

    def _compare(
        self, candles: Mapping[int, CandleData], stored: Mapping[int, Mapping[str, Any]], report: CandleReport
    ) -> None:
        different = sorted(
            at for at, document in stored.items() if at in candles and not _is_same(document, candles[at])
        )
        report.different += different
        report.same += len(stored.keys() & candles.keys()) - len(different)

    def _tell(self, series: Series, report: CandleReport) -> None:
        """Log by one line what was not stored as it was given; of fields that are left out once for each series."""
        counts = {name: len(getattr(report, name)) for name in ("different", "open", "invalid", "rounded")}
        fields: dict[str, Any] = {name: count for name, count in counts.items() if count}
        if report.ignored and (series, report.ignored) not in self._told:
            self._told.add((series, report.ignored))
            fields["ignored"] = ",".join(report.ignored)
        for name in ("different", "open", "rounded"):
            if times := getattr(report, name):
                fields[f"first_{name}"] = times[0]
        if report.invalid:
            fields["first_invalid"] = report.invalid[0][0]
        if fields:
            log = self._logger.info if fields.keys() == {"open", "first_open"} else self._logger.warning
            log("candles.not_as_given", **series.parts(), **fields)

    # --- reading ---

    async def find_by_context(
        self, symbol: str, interval: str, exchange_name: str, timestamp: When
    ) -> CandleRow | None:
        """Return the row of this context, or None."""
        return await self._store.find(self._context(symbol, interval, exchange_name, timestamp))

    async def has_candle(self, symbol: str, interval: str, exchange_name: str, timestamp: When) -> bool:
        """Whether MongoDB holds the candle."""
        return await self.find_by_context(symbol, interval, exchange_name, timestamp) is not None

    async def find_range(
        self, symbol: str, interval: str, exchange_name: str, since: When, limit: int
    ) -> list[CandleRow]:
        """Find what is stored of the window of `limit` candles from `since` on, oldest first."""
        series = Series(symbol, interval, exchange_name)
        rows: list[CandleRow] = []
        async for documents in self._window(series, since, limit):
            rows += CandleRow.from_documents(documents)
        return rows

    async def find_data(
        self, symbol: str, interval: str, exchange_name: str, since: When, limit: int
    ) -> list[CandleData]:
        """Find the same as `find_range`, as plain data: no row is built, and context and dates stay in the server."""
        series = Series(symbol, interval, exchange_name)
        candles: list[CandleData] = []
        async for documents in self._window(series, since, limit, _PROJECTION):
            if not all(map(_is_usual, documents)):
                return [row.data() for row in await self.find_range(symbol, interval, exchange_name, since, limit)]
            candles += map(_to_data, documents)
        return candles

    async def find_last(
        self, symbol: str, interval: str, exchange_name: str, limit: int, until: When | None = None
    ) -> list[CandleRow]:
        """Find the last `limit` stored candles that have closed by `until`, by default now, oldest first.

        Missing ones are passed over, such as those of days without a session or minutes without a trade.
        """
        series = Series(symbol, interval, exchange_name)
        return CandleRow.from_documents(await self._last(series, limit, until))

    async def find_last_data(
        self, symbol: str, interval: str, exchange_name: str, limit: int, until: When | None = None
    ) -> list[CandleData]:
        """Find the same as `find_last`, as plain data."""
        series = Series(symbol, interval, exchange_name)
        documents = await self._last(series, limit, until, _PROJECTION)
        if not all(map(_is_usual, documents)):
            return [row.data() for row in await self.find_last(symbol, interval, exchange_name, limit, until)]
        return [_to_data(document) for document in documents]

    async def find_columns(
        self, symbol: str, interval: str, exchange_name: str, since: When, limit: int
    ) -> "dict[str, NDArray[Any]]":
        """Find the same as `find_range`, as numpy arrays by field: `timestamp` int64 (ms UTC), the others float64.

        No object is built for a candle. Needs numpy; `SettingsError` without it.
        """
        series = Series(symbol, interval, exchange_name)
        start, end = self._bounds(series, since, limit)
        parts = [candle_columns([])]
        while start < end:
            query = series.window(start, end)
            found = raw_columns(await self._find_raw(query)) or converted_columns(await self._convert(query))
            if found is None:
                rows = await self.find_range(
                    symbol, interval, exchange_name, since, limit
                )  # or the error that names it
                return candle_columns([row.data() for row in rows])
            times = found["timestamp"]
            start = int(times[-1]) + 1 if len(times) == PART else end
            parts.append(found)
        return joined_columns(parts)

    async def find_gaps(
        self, symbol: str, interval: str, exchange_name: str, since: When, until: When
    ) -> list[tuple[int, int]]:
        """Return the holes in [since, until), each as (first missing opening time, time after the hole), in ms UTC."""
        series = Series(symbol, interval, exchange_name)
        step = series.step
        covered = checked_int64(_ceil(self._instant(since, "since"), step), "since")
        end = checked_int64(_ceil(self._instant(until, "until"), step), "until")
        gaps: list[tuple[int, int]] = []
        query = series.window(covered, end)
        query["timestamp"]["$mod"] = [step, 0]  # what another program stored in between closes no gap
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

    def _bounds(self, series: Series, since: When, limit: int) -> tuple[int, int]:
        start = self._instant(since, "since")
        return start, checked_int64(start + checked_limit(limit) * series.step, "the end of the window")

    async def _window(
        self, series: Series, since: When, limit: int, projection: Mapping[str, int] | None = None
    ) -> AsyncIterator[list[Document]]:
        """Iterate over the documents of a window, part by part."""
        start, end = self._bounds(series, since, limit)
        while start < end:
            documents = await self._find_part(series.window(start, end), ASCENDING, PART, projection)
            yield documents
            start = int(documents[-1]["timestamp"]) + 1 if len(documents) == PART else end

    async def _last(
        self, series: Series, limit: int, until: When | None, projection: Mapping[str, int] | None = None
    ) -> list[Document]:
        """Find the last documents of a series that have closed by `until`, oldest first."""
        remaining = checked_limit(limit)
        latest = (_now() if until is None else self._instant(until, "until")) - series.step
        documents: list[Document] = []
        while remaining:
            query = {**series.filter(), "timestamp": {"$lte": Int64(latest), "$mod": [series.step, 0]}}
            found = await self._find_part(query, DESCENDING, min(PART, remaining), projection)
            documents += found
            remaining = remaining - len(found) if len(found) == PART else 0
            latest = found[-1]["timestamp"] - 1 if found else latest
        return documents[::-1]

    def _context(self, symbol: str, interval: str, exchange_name: str, timestamp: When) -> CandleContext:
        return _context(symbol, interval, exchange_name, timestamp, self.allows_early_times)

    def _instant(self, value: When, what: str) -> int:
        return checked_timestamp(value, what, self.allows_early_times)

    def default_until(self) -> int | None:
        """Return the instant, in ms UTC, that a reader who names none may see: that of the bar in a run, or none."""
        return self._store.default_when()

    # --- what a backend does differently ---

    @property
    def _logger(self) -> LoggerService:
        return self.mongo_store.mongo.logger

    @as_operation("find")
    async def _find_numbers(
        self, series: Series, times: Sequence[int], *, prepare: bool = True
    ) -> dict[int, Mapping[str, Any]]:
        """Find the numbers of the candles that are stored at these times, in order."""
        if not times:
            return {}
        first, last = times[0], times[-1]
        filter = {**series.filter(), "timestamp": {"$gte": Int64(first), "$lte": Int64(last)}}
        if last - first >= 2 * len(times) * series.step:
            filter["timestamp"] = {"$in": [Int64(at) for at in times]}
        projection = {"_id": 0, **dict.fromkeys(COLUMNS, 1)}

        def find(collection: MongoCollection, hint: Mapping[str, int] | None) -> Awaitable[list[dict[str, Any]]]:
            return collection.find(filter, projection, hint=hint, batch_size=2 * len(times) + 1).to_list(None)

        if prepare:
            store = self.mongo_store
            state = await store.ready()
            indexed = partial(find, store.schema.of(state), store.schema.unique_index)
            documents = await by_unique_index(store.schema, state, indexed)
        else:
            documents = await find(self.mongo_store.mongo.collection(self.collection), None)
        whole = [_whole(document["timestamp"]) for document in documents]
        return {at: document for at, document in zip(whole, documents, strict=True) if at is not None}

    async def _insert(self, series: Series, candles: Sequence[CandleData]) -> int:
        """Store candles where none is stored yet; returns how many."""
        settings, fields = self.mongo_store.mongo.settings, series.filter()
        return await self.mongo_store.insert_many(
            [(series.cache_key(candle["timestamp"]), {**fields, **candle}) for candle in candles],
            chunk_size=settings.candle_chunk_size,
            remember=settings.candle_cache,
        )

    async def _delete_range(self, series: Series, start: int | None, end: int | None) -> int:
        """Delete what is stored from `start` on and before `end`, in its turn among the writes, part by part."""
        deleted = 0
        while True:
            bounds = {"$gte": None if start is None else Int64(start), "$lt": None if end is None else Int64(end)}
            filter = series.filter()
            if times := {name: bound for name, bound in bounds.items() if bound is not None}:
                filter["timestamp"] = times
            following = await self._find_nth(filter, DELETED_PART)
            if following is not None:
                filter["timestamp"] = {**times, "$lt": following}
            deleted += await self.mongo_store.delete(filter)
            if following is None:
                return deleted

    @as_operation("find")
    async def _find_nth(self, filter: Mapping[str, Any], number: int) -> Any:
        """Return the time of the n-th candle, counted from 0, that a filter finds, or None."""
        collection = await self.mongo_store.prepared()
        options: Any = {"sort": [("timestamp", ASCENDING)], "skip": number}
        found = await collection.find_one(filter, {"_id": 0, "timestamp": 1}, **options)
        return None if found is None else found["timestamp"]

    @as_operation("find")
    async def _find_part(
        self, query: Mapping[str, Any], direction: int, limit: int, projection: Mapping[str, int] | None
    ) -> list[Document]:
        collection = await self.mongo_store.prepared()
        self.stats.reads += 1
        async with aclosing(self._batches(collection, query, direction, limit, projection)) as found:
            return [document async for batch in found for document in batch]

    @as_operation("find")
    async def _find_raw(self, query: Mapping[str, Any]) -> bytes:
        """Find the numbers of a part of a window, oldest first, in BSON."""
        collection = await self.mongo_store.prepared()
        self.stats.reads += 1
        found: list[bytes] = []
        async with aclosing(self._batches(collection, query, ASCENDING, PART, _PROJECTION)) as batches:
            while (batch := await batches.read()) is not None:
                found.append(batch)
        return b"".join(found)

    def _batches(
        self,
        collection: MongoCollection,
        query: Mapping[str, Any],
        direction: int,
        limit: int,
        projection: Mapping[str, int] | None,
    ) -> Batches:
        options: Any = {"sort": [("timestamp", direction)], "limit": limit, "batch_size": limit + 1}
        background = self.mongo_store.mongo.background
        return Batches(collection, query, background=background, projection=projection, **options)

    @as_operation("find")
    async def _convert(self, query: Mapping[str, Any]) -> bytes:
        """Find the same as `_find_raw`, with numbers of other types converted by the server."""
        pipeline = [
            {"$match": query},
            {"$sort": {"timestamp": 1}},
            {"$limit": PART},
            {"$project": CONVERSION},
        ]
        collection = await self.mongo_store.prepared()
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
            {"$setWindowFields": {"sortBy": {"timestamp": 1}, "output": numbered}},
            {"$match": {"$expr": {"$or": [{"$not": is_followed}, {"$eq": ["$timestamp", "$first"]}]}}},
        ]
        collection = await self.mongo_store.prepared()
        return [document async for document in aggregate(collection, pipeline)]


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

    async def read_last_candles(self, limit: int, until: When | None = None) -> list[CandleData]:
        """Return the last `limit` stored candles that have closed by `until`, by default now, oldest first.

        Missing ones are passed over, such as those of days without a session or minutes without a trade.
        """
        return await self.db.find_last_data(self.symbol, self.interval, self.exchange_name, limit, until)

    async def write_candles_data(self, candles: CandlesInput, *, as_of: When | None = None) -> None:
        """Store candles; those that had not closed at `as_of`, when the exchange was asked, are skipped.

        The default, and the latest that counts, is now.
        """
        await self.db.store(self.symbol, self.interval, self.exchange_name, candles, as_of=as_of)

    def _window(self, limit: int, since: When, until: When | None) -> range | None:
        until = self.db.default_until() if until is None else until
        return checked_window(self.interval, limit, since, until, self.db.allows_early_times)


def _whole(stored: Any) -> int | None:
    """A stored number as int; None for None and for one that is not whole, which $mod of a query cuts off."""
    if stored is None:
        return None
    number = stored.to_decimal() if isinstance(stored, Decimal128) else stored
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


def _is_same(document: Mapping[str, Any], candle: Mapping[str, Any]) -> bool:
    return all(document.get(name) == candle[name] for name in NUMBERS)


def _parts(times: Sequence[int]) -> Iterator[Sequence[int]]:
    return (times[start : start + PART] for start in range(0, len(times), PART))


def _now() -> int:
    return int(time.time() * 1000)


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
    deletes=True,
)
