"""The literal algorithm: one command after the other for every read, write and candle, as the protocol states it.

It keeps the same promises for one document (a verified read, an atomic upsert, the id in Redis after the write), with
rows validated as the package validates them, and coalesces nothing.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from bson import ObjectId
from pymongo import ReturnDocument

from backtest_persist import CandleRow, Container, SignalRow

__all__ = ("Baseline",)


class Baseline:
    """Reads and writes signals and candles of a container's servers."""

    def __init__(self, container: Container) -> None:
        self.signals = container.mongo_service.collection("signal-items")
        self.candles = container.mongo_service.collection("candle-items")
        self.redis: Any = container.redis_service.client
        self.prefix = container.redis_service.key_prefix

    async def read(self, symbol: str, strategy: str, exchange: str) -> SignalRow | None:
        key = f"{self.prefix}signal_cache:{exchange}:{strategy}:{symbol}"
        context = {"symbol": symbol, "strategyName": strategy, "exchangeName": exchange}
        id = await self.redis.get(key)
        document = None if id is None else await self.signals.find_one({"_id": ObjectId(id.decode())})
        if document is None or any(document[name] != value for name, value in context.items()):
            document = await self.signals.find_one(context)
            if document is None:
                return None
            await self.redis.set(key, str(document["_id"]))
        return SignalRow.model_validate(document)

    async def write(self, symbol: str, strategy: str, exchange: str, payload: dict[str, Any]) -> SignalRow:
        context = {"symbol": symbol, "strategyName": strategy, "exchangeName": exchange}
        document = await self._upsert(self.signals, context, {"$set": {"payload": payload, "updatedDate": _now()}})
        await self.redis.set(f"{self.prefix}signal_cache:{exchange}:{strategy}:{symbol}", str(document["_id"]))
        return SignalRow.model_validate(document)

    async def read_candles(self, symbol: str, exchange: str, timestamps: Sequence[int]) -> list[CandleRow]:
        rows: list[CandleRow] = []
        for timestamp in timestamps:
            id = await self.redis.get(f"{self.prefix}candle_cache:{exchange}:{symbol}:1m:{timestamp}")
            document = await self.candles.find_one({"_id": ObjectId(id.decode())})
            assert document is not None
            assert document["timestamp"] == timestamp
            rows.append(CandleRow.model_validate(document))
        return rows

    async def write_candles(self, symbol: str, exchange: str, candles: Sequence[dict[str, Any]]) -> None:
        for candle in candles:
            context = {"exchangeName": exchange, "symbol": symbol, "interval": "1m", "timestamp": candle["timestamp"]}
            numbers = {name: value for name, value in candle.items() if name != "timestamp"}
            document = await self._upsert(self.candles, context, {"$setOnInsert": {**numbers, "updatedDate": _now()}})
            key = f"{self.prefix}candle_cache:{exchange}:{symbol}:1m:{candle['timestamp']}"
            await self.redis.set(key, str(document["_id"]))

    async def _upsert(self, collection: Any, context: dict[str, Any], update: dict[str, Any]) -> dict[str, Any]:
        on_insert = {**update.pop("$setOnInsert", {}), "createDate": _now(), "__v": 0}
        return await collection.find_one_and_update(
            context, {**update, "$setOnInsert": on_insert}, upsert=True, return_document=ReturnDocument.AFTER
        )


def _now() -> datetime:
    return datetime.now(UTC)
