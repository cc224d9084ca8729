"""The floor: the commands that the package sends, by the bare drivers, without rows or checks of ours."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
from bson import ObjectId
from pymongo import ReturnDocument, UpdateOne

from backtest_persist import Container
from tests.bench.baseline import plain_redis

__all__ = ("Floor",)


class Floor:
    """Sends for `n` callers at once what the package would send for them."""

    def __init__(self, container: Container) -> None:
        database = container.mongo_service.client.get_database(container.mongo_service.database.name)
        concern = container.mongo_service.database.write_concern
        self.signals: Any = database.get_collection("signal-items", write_concern=concern)
        self.candles: Any = database.get_collection("candle-items", write_concern=concern)
        self.redis: Any = plain_redis(container)
        self.prefix = container.redis_service.key_prefix

    async def read(self, symbols: Sequence[str], strategy: str, exchange: str) -> int:
        keys = [f"{self.prefix}signal_cache:{exchange}:{strategy}:{symbol}" for symbol in symbols]
        if len(keys) == 1:
            id = await self.redis.get(keys[0])
            return int(await self.signals.find_one({"_id": ObjectId(id.decode())}) is not None)
        ids = [ObjectId(id.decode()) for id in await self.redis.mget(keys)]
        return len(await self.signals.find({"_id": {"$in": ids}}).to_list(None))

    async def write(self, symbols: Sequence[str], strategy: str, exchange: str, payload: dict[str, Any]) -> int:
        update = {"$set": {"payload": payload, "updatedDate": datetime.now(UTC)}, "$setOnInsert": {"__v": 0}}
        contexts = [{"symbol": symbol, "strategyName": strategy, "exchangeName": exchange} for symbol in symbols]
        if len(contexts) == 1:
            document = await self.signals.find_one_and_update(
                contexts[0], update, upsert=True, return_document=ReturnDocument.AFTER
            )
            key = f"{self.prefix}signal_cache:{exchange}:{strategy}:{symbols[0]}"
            await self.redis.set(key, str(document["_id"]))
        else:
            await self.signals.bulk_write(
                [UpdateOne(context, update, upsert=True) for context in contexts], ordered=False
            )
            await self.read(symbols, strategy, exchange)
        return len(contexts)

    async def read_candles(self, symbol: str, exchange: str, since: int, until: int) -> int:
        window = {"exchangeName": exchange, "symbol": symbol, "interval": "1m"}
        window |= {"timestamp": {"$gte": since, "$lt": until}}
        return len(await self.candles.find(window).sort("timestamp", 1).to_list(None))

    async def read_columns(self, symbol: str, exchange: str, since: int, until: int) -> int:
        """Read a window as columns, of documents that all have the fields, types and order of the first."""
        names = ("timestamp", "open", "high", "low", "close", "volume")
        window = {"exchangeName": exchange, "symbol": symbol, "interval": "1m"}
        window |= {"timestamp": {"$gte": since, "$lt": until}}
        found = self.candles.find_raw_batches(window, {"_id": 0, **dict.fromkeys(names, 1)}).sort("timestamp", 1)
        documents = b"".join([batch async for batch in found])
        length = int.from_bytes(documents[:4], "little")
        first = documents[:length]
        offsets = [first.index(name.encode() + b"\0") + len(name) + 1 for name in names]
        formats = ["<i8", *["<f8"] * 5]
        layout = np.dtype({"names": names, "formats": formats, "offsets": offsets, "itemsize": length})
        fields = np.frombuffer(documents, layout)
        return len({name: fields[name].copy() for name in names}["timestamp"])

    async def write_candles(self, symbol: str, exchange: str, candles: Sequence[dict[str, Any]]) -> int:
        series = {"exchangeName": exchange, "symbol": symbol, "interval": "1m"}
        documents = [{**series, **candle} for candle in candles]
        for start in range(0, len(documents), 2500):
            await self.candles.insert_many(documents[start : start + 2500], ordered=False)
        keys = [f"{self.prefix}candle_cache:{exchange}:{symbol}:1m:{document['timestamp']}" for document in documents]
        for start in range(0, len(keys), 1000):
            part = slice(start, start + 1000)
            ids = (str(document["_id"]) for document in documents[part])
            await self.redis.mset(dict(zip(keys[part], ids, strict=True)))
        return len(documents)

    async def fill(self, symbols: Sequence[str], payload: dict[str, Any]) -> None:
        """Make a collection large: documents and ids as the package would have left them."""
        now = datetime.now(UTC)
        rest = {"strategyName": "trend", "exchangeName": "binance", "payload": payload}
        dates = {"createDate": now, "updatedDate": now, "__v": 0}
        documents: list[dict[str, Any]] = [{"symbol": symbol, **rest, **dates} for symbol in symbols]
        await self.signals.insert_many(documents, ordered=False)
        prefix = f"{self.prefix}signal_cache:binance:trend"
        await self.redis.mset({f"{prefix}:{document['symbol']}": str(document["_id"]) for document in documents})
