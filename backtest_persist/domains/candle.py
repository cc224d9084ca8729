"""Candles: OHLCV of one symbol, interval and exchange; immutable, the first write wins."""

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Any, Literal, Protocol, TypedDict, cast, get_args

from bson.int64 import Int64
from pydantic import BaseModel
from pymongo import ASCENDING

from backtest_persist.connections import aggregate
from backtest_persist.core.base_map import base_map
from backtest_persist.core.db_service import DbService
from backtest_persist.core.keys import Name, Timestamp, checked_limit, checked_name, checked_timestamp, join_key
from backtest_persist.core.payload import PayloadInput
from backtest_persist.core.persist_instance import PersistInstance
from backtest_persist.core.row import Context, Row, utc_now
from backtest_persist.errors import BacktestPersistError, InvalidKeyError, InvalidPayloadError

__all__ = (
    "CandleCacheService",
    "CandleContext",
    "CandleData",
    "CandleDbService",
    "CandleInterval",
    "CandleRow",
    "CandleServices",
    "PersistCandleInstance",
    "interval_step_ms",
)

CandleInterval = Literal["1m", "3m", "5m", "15m", "30m", "1h", "2h", "4h", "6h", "8h", "1d"]

_UNIT_MS = {"m": 60_000, "h": 3_600_000, "d": 86_400_000}
_STEP_MS: Mapping[str, int] = {name: int(name[:-1]) * _UNIT_MS[name[-1]] for name in get_args(CandleInterval)}


class CandleData(TypedDict):
    """One candle: its opening time in ms UTC, prices, and volume."""

    timestamp: int
    open: float
    high: float
    low: float
    close: float
    volume: float


def interval_step_ms(interval: str) -> int:
    """Length of an interval in ms; `InvalidKeyError` for one that is not stored."""
    step = _STEP_MS.get(checked_name(interval, "interval"))
    if step is None:
        raise InvalidKeyError(f"interval must be one of {' '.join(_STEP_MS)}, not {interval!r:.40}.")
    return step


class CandleContext(Context):
    """Identifies one candle; `timestamp` is its opening time in ms UTC."""

    exchange_name: Name
    symbol: Name
    interval: Name
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

    async def has_candle_id(self, symbol: str, interval: str, exchange_name: str, timestamp: int) -> bool:
        """Whether Redis knows an id for this context."""
        return await self.has(_context(symbol, interval, exchange_name, timestamp).cache_key)

    async def get_candle_id(self, symbol: str, interval: str, exchange_name: str, timestamp: int) -> str | None:
        """The id that Redis knows for this context, or None."""
        return await self.get(_context(symbol, interval, exchange_name, timestamp).cache_key)

    async def set_candle_id(self, row: CandleRow) -> str:
        """Remember the id of a row; returns it."""
        await self.set(row.cache_key, row.id)
        return row.id


class CandleDbService(DbService[CandleContext, CandleRow]):
    """Reads and writes ``candle-items``; there is no `upsert`, because a closed candle never changes."""

    collection = "candle-items"
    default_sort = (("timestamp", ASCENDING),)
    context_type = CandleContext
    row_type = CandleRow

    async def create(self, symbol: str, interval: str, exchange_name: str, candle: PayloadInput) -> CandleRow:
        """Store one candle and return what is stored: an earlier candle of that time stays as it is.

        Raises `InvalidPayloadError` for a candle that cannot be real (see `create_many`).
        """
        context, fields = _checked_candle(symbol, interval, exchange_name, candle)
        now = utc_now()
        update = {"$setOnInsert": {**fields, "createDate": now, "updatedDate": now, "__v": 0}}
        row = await self._find_and_update(context, update, upsert=True)
        return cast("CandleRow", row)

    async def create_many(self, symbol: str, interval: str, exchange_name: str, candles: Iterable[PayloadInput]) -> int:
        """Store candles in unordered bulks; returns how many were new. Of two at one time the first stands.

        Every candle is checked before any is sent. `InvalidPayloadError` for a timestamp that is not a multiple of the
        interval, a number that is not finite, a high or low inside the body, a negative volume. Prices may be
        negative, as some futures have been.
        """
        writes: dict[int, tuple[CandleContext, dict[str, Any]]] = {}
        for candle in candles:
            context, fields = _checked_candle(symbol, interval, exchange_name, candle)
            writes.setdefault(context.timestamp, (context, fields))
        settings = self._mongo.settings
        return await self._write_many(
            list(writes.values()), replace=False, chunk_size=settings.candle_chunk_size, remember=settings.candle_cache
        )

    async def find_by_context(self, symbol: str, interval: str, exchange_name: str, timestamp: int) -> CandleRow | None:
        """The row of this context, or None."""
        return await self._find(_context(symbol, interval, exchange_name, timestamp))

    async def find_range(
        self, symbol: str, interval: str, exchange_name: str, since: int, limit: int
    ) -> list[CandleRow]:
        """What is stored of the window of `limit` candles from `since` (ms UTC) on: one query, oldest first."""
        until = checked_timestamp(since, "since") + checked_limit(limit) * interval_step_ms(interval)
        if until == since:
            return []
        return await self.find_all(_range_filter(symbol, interval, exchange_name, since, until))

    async def find_gaps(
        self, symbol: str, interval: str, exchange_name: str, since: int, until: int
    ) -> list[tuple[int, int]]:
        """The holes in [since, until), each as (first missing opening time, opening time after the hole), in ms UTC."""
        step = interval_step_ms(interval)
        start, end = _ceil(checked_timestamp(since, "since"), step), _ceil(checked_timestamp(until, "until"), step)
        if start >= end:
            return []
        pipeline = [
            {"$match": _range_filter(symbol, interval, exchange_name, start, end)},
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
        collection = await self._prepared()
        gaps: list[tuple[int, int]] = []
        seen = False
        with self._errors("find gaps"):
            async for document in aggregate(collection, pipeline):
                timestamp, following = int(document["timestamp"]), int(document["next"])
                if not seen and timestamp > start:
                    gaps.append((start, timestamp))
                seen = True
                if following > timestamp + step:
                    gaps.append((timestamp + step, following))
        return gaps if seen else [(start, end)]

    async def has_candle(self, symbol: str, interval: str, exchange_name: str, timestamp: int) -> bool:
        """Whether MongoDB holds the candle."""
        return await self.find_by_context(symbol, interval, exchange_name, timestamp) is not None


class CandleServices(Protocol):
    """What the adapter needs of a container."""

    @property
    def candle_db_service(self) -> CandleDbService:
        """The db service of this domain."""
        ...


class PersistCandleInstance(PersistInstance[CandleServices]):
    """Keeps the candles of one symbol, interval and exchange."""

    def __init__(
        self, symbol: str, interval: CandleInterval, exchange_name: str, *, ioc: CandleServices | None = None
    ) -> None:
        super().__init__(ioc)
        self.symbol = symbol
        self.interval: CandleInterval = interval
        self.exchange_name = exchange_name

    async def wait_for_init(self, initial: bool) -> None:
        """Verify the indexes of this domain when `initial`; may be called again, also after a failure."""
        if initial:
            await self._services.candle_db_service.wait_for_init()

    async def read_candles_data(
        self, limit: int, since_timestamp: int, until_timestamp: int | None = None
    ) -> list[CandleData] | None:
        """The window of `limit` candles from `since_timestamp` (ms UTC) on, or None when any of them is missing.

        A candle that closes after `until_timestamp` (ms UTC) counts as missing: its prices lie in the future.
        Raises `InvalidKeyError` for a negative limit, or a start that is not a multiple of the interval.
        """
        step = interval_step_ms(self.interval)
        since = checked_timestamp(since_timestamp, "since_timestamp")
        if since % step:
            raise InvalidKeyError(
                f"since_timestamp {since} is not the start of a {self.interval} candle; "
                f"the one around it starts at {since - since % step}."
            )
        count = checked_limit(limit)
        if until_timestamp is not None and since + count * step > checked_timestamp(until_timestamp, "until_timestamp"):
            return None
        rows = await self._services.candle_db_service.find_range(
            self.symbol, self.interval, self.exchange_name, since, count
        )
        if len(rows) != count:
            return None
        return [row.data() for row in rows]

    async def write_candles_data(self, candles: Sequence[PayloadInput]) -> None:
        """Store candles; those that have not closed yet by this machine's clock are skipped."""
        step = interval_step_ms(self.interval)
        now = int(time.time() * 1000)
        closed = [candle for candle in candles if _timestamp(_members(candle)) + step <= now]
        await self._services.candle_db_service.create_many(self.symbol, self.interval, self.exchange_name, closed)


def _context(symbol: str, interval: str, exchange_name: str, timestamp: int) -> CandleContext:
    interval_step_ms(interval)
    return CandleContext(symbol=symbol, interval=interval, exchange_name=exchange_name, timestamp=timestamp)


def _range_filter(symbol: str, interval: str, exchange_name: str, since: int, until: int) -> dict[str, Any]:
    return {
        "exchangeName": checked_name(exchange_name, "exchange_name"),
        "symbol": checked_name(symbol, "symbol"),
        "interval": interval,
        "timestamp": {"$gte": Int64(since), "$lt": Int64(until)},
    }


def _ceil(timestamp: int, step: int) -> int:
    return -(-timestamp // step) * step


def _members(candle: PayloadInput) -> Mapping[str, Any]:
    if isinstance(candle, BaseModel):
        return candle.model_dump()
    if isinstance(candle, Mapping):
        return candle
    raise InvalidPayloadError(f"A candle is a mapping or a pydantic model, not {type(candle).__name__}.")


def _timestamp(members: Mapping[str, Any]) -> int:
    try:
        return checked_timestamp(members["timestamp"], "timestamp")
    except (KeyError, BacktestPersistError):
        raise InvalidPayloadError("A candle needs a 'timestamp': its opening time as int, in ms UTC.") from None


def _checked_candle(
    symbol: str, interval: str, exchange_name: str, candle: PayloadInput
) -> tuple[CandleContext, dict[str, Any]]:
    members = _members(candle)
    timestamp = _timestamp(members)
    context = _context(symbol, interval, exchange_name, timestamp)
    what = f"candle-items ({context.describe()})"
    step = interval_step_ms(interval)
    if timestamp % step:
        raise InvalidPayloadError(
            f"{what}: {timestamp} is not the start of a {interval} candle; the one around it starts at "
            f"{timestamp - timestamp % step}."
        )
    values = {name: _number(members, name, what) for name in ("open", "high", "low", "close", "volume")}
    if values["high"] < max(values["open"], values["close"], values["low"]):
        raise InvalidPayloadError(f"{what}: high is below open, close or low.")
    if values["low"] > min(values["open"], values["close"]):
        raise InvalidPayloadError(f"{what}: low is above open or close.")
    if values["volume"] < 0:
        raise InvalidPayloadError(f"{what}: volume is negative.")
    return context, values


def _number(members: Mapping[str, Any], name: str, what: str) -> float:
    value = members.get(name)
    if isinstance(value, bool) or (not isinstance(value, int | float | Decimal) and not hasattr(value, "__float__")):
        raise InvalidPayloadError(f"{what}: {name} must be a number, not {type(value).__name__}.")
    number = float(cast("float", value))
    if not math.isfinite(number):
        raise InvalidPayloadError(f"{what}: {name} must be finite.")
    return number
