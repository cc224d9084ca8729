"""The literal algorithm: one command after the other for every read, write and candle, as the protocol states it.

It keeps the same promises for one document (a verified read, an atomic upsert, the id in Redis after the write), with
rows validated as the package validates them, and coalesces nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from bson import ObjectId
from pymongo import ReturnDocument
from redis.asyncio import Redis

from backtest_persist import CandleRow, Container, RiskRow, SignalRow, StateRow, StorageRow

__all__ = ("CANDLE", "RISK", "SIGNAL", "STATE", "STORAGE", "Baseline", "Domain", "plain_redis")


@dataclass(frozen=True)
class Domain:
    """Where a domain is kept, and what its rows are."""

    collection: str
    namespace: str
    row: type[Any]


CANDLE = Domain("candle-items", "candle_cache", CandleRow)
RISK = Domain("risk-items", "risk_cache", RiskRow)
SIGNAL = Domain("signal-items", "signal_cache", SignalRow)
STATE = Domain("state-items", "state_cache", StateRow)
STORAGE = Domain("storage-items", "storage_cache", StorageRow)


def plain_redis(container: Container) -> Any:
    """A client as redis-py makes it, for the server of a container."""
    url = container.mongo_service.settings.redis_url
    assert url is not None, "the benchmarks run on embedded servers"
    return Redis.from_url(url.get_secret_value(), max_connections=1000)  # pyright: ignore[reportUnknownMemberType]


class Baseline:
    """Reads and writes single documents on a container's servers."""

    def __init__(self, container: Container) -> None:
        self.collection = container.mongo_service.collection
        self.redis: Any = plain_redis(container)
        self.prefix = container.redis_service.key_prefix

    async def read(self, domain: Domain, key: str, context: dict[str, Any]) -> Any:
        name, collection = f"{self.prefix}{domain.namespace}:{key}", self.collection(domain.collection)
        id = await self.redis.get(name)
        document = None if id is None else await collection.find_one({"_id": ObjectId(id.decode())})
        if document is None or any(document[field] != value for field, value in context.items()):
            document = await collection.find_one(context)
            if document is None:
                return None
            await self.redis.set(name, str(document["_id"]))
        return domain.row.model_validate(document)

    async def write(
        self, domain: Domain, key: str, context: dict[str, Any], fields: dict[str, Any], *, replace: bool = True
    ) -> Any:
        now = datetime.now(UTC)
        created = {"createDate": now, "__v": 0}
        update = {"$set": {**fields, "updatedDate": now}, "$setOnInsert": created}
        document: Any = await self.collection(domain.collection).find_one_and_update(
            context,
            update if replace else {"$setOnInsert": {**fields, **created, "updatedDate": now}},
            upsert=True,
            return_document=ReturnDocument.AFTER,
        )
        await self.redis.set(f"{self.prefix}{domain.namespace}:{key}", str(document["_id"]))
        return domain.row.model_validate(document)

    async def read_candles(self, symbol: str, exchange: str, timestamps: Sequence[int]) -> list[CandleRow]:
        series = {"exchangeName": exchange, "symbol": symbol, "interval": "1m"}
        return [
            await self.read(CANDLE, f"{exchange}:{symbol}:1m:{at}", {**series, "timestamp": at}) for at in timestamps
        ]

    async def write_candles(self, symbol: str, exchange: str, candles: Sequence[dict[str, Any]]) -> None:
        series = {"exchangeName": exchange, "symbol": symbol, "interval": "1m"}
        for candle in candles:
            key, context = f"{exchange}:{symbol}:1m:{candle['timestamp']}", {**series, "timestamp": candle["timestamp"]}
            numbers = {name: value for name, value in candle.items() if name != "timestamp"}
            await self.write(CANDLE, key, context, numbers, replace=False)
