"""The golden wire format: one row per domain, every Redis key and document spelled out by hand."""

from dataclasses import dataclass
from typing import Any

from bson.int64 import Int64

__all__ = ("ADAPTER_CONTEXTS", "CASES", "PAYLOAD", "WHEN", "Case")


@dataclass(frozen=True)
class Case:
    """One domain, as it has to be stored in Redis and in MongoDB."""

    domain: str
    collection: str
    context: dict[str, Any]
    """Arguments of the context, in the order of the signature."""
    index: tuple[str, ...]
    """Fields of the unique index, in index order."""
    redis_key: str
    document: dict[str, Any]
    """The stored document without _id and dates."""
    written: tuple[Any, ...]
    """Arguments of `upsert` after the context (for candles, of `create`)."""
    foreign: dict[str, Any]
    """The same document as a TypeScript writer may store it, with int32, int64 and double mixed."""

    def __str__(self) -> str:
        return self.domain

    @property
    def args(self) -> tuple[Any, ...]:
        return tuple(self.context.values())


PAYLOAD: dict[str, Any] = {"id": "s-1", "priceOpen": 42000.5, "note": None, "levels": [10, 20], "at": {"x": True}}
WHEN = 1_700_000_000_000
SSE = {"symbol": "BTC/USDT:USDT", "strategy_name": "trend:v2", "exchange_name": "binance"}
SSE_WIRE = {"symbol": "BTC/USDT:USDT", "strategyName": "trend:v2", "exchangeName": "binance"}
SSE_INDEX = ("symbol", "strategyName", "exchangeName")

CASES = (
    Case(
        domain="candle",
        collection="candle-items",
        context={
            "symbol": "BTC/USDT:USDT",
            "interval": "1m",
            "exchange_name": "binance",
            "timestamp": 1_699_999_980_000,
        },
        index=("exchangeName", "symbol", "interval", "timestamp"),
        redis_key="candle_cache:binance:BTC/USDT%3AUSDT:1m:1699999980000",
        document={
            "exchangeName": "binance",
            "symbol": "BTC/USDT:USDT",
            "interval": "1m",
            "timestamp": 1_699_999_980_000,
            "open": 1.0,
            "high": 3.0,
            "low": 0.5,
            "close": 2.0,
            "volume": 10.0,
            "__v": 0,
        },
        written=({"timestamp": 1_699_999_980_000, "open": 1.0, "high": 3.0, "low": 0.5, "close": 2.0, "volume": 10.0},),
        foreign={
            "exchangeName": "binance",
            "symbol": "BTC/USDT:USDT",
            "interval": "1m",
            "timestamp": 1_699_999_980_000.0,
            "open": 1,
            "high": Int64(3),
            "low": 0.5,
            "close": 2,
            "volume": Int64(10),
            "__v": 0,
        },
    ),
    Case(
        domain="signal",
        collection="signal-items",
        context=SSE,
        index=SSE_INDEX,
        redis_key="signal_cache:binance:trend%3Av2:BTC/USDT:USDT",
        document={**SSE_WIRE, "payload": PAYLOAD, "__v": 0},
        written=(PAYLOAD,),
        foreign={**SSE_WIRE, "payload": PAYLOAD, "__v": 0.0},
    ),
    Case(
        domain="schedule",
        collection="schedule-items",
        context=SSE,
        index=SSE_INDEX,
        redis_key="schedule_cache:binance:trend%3Av2:BTC/USDT:USDT",
        document={**SSE_WIRE, "payload": PAYLOAD, "__v": 0},
        written=(PAYLOAD,),
        foreign={**SSE_WIRE, "payload": PAYLOAD, "__v": Int64(0)},
    ),
    Case(
        domain="risk",
        collection="risk-items",
        context={"risk_name": "max:2", "exchange_name": "binance"},
        index=("riskName", "exchangeName"),
        redis_key="risk_cache:binance:max:2",
        document={
            "riskName": "max:2",
            "exchangeName": "binance",
            "positions": [["BTCUSDT", {"openTimestamp": 1}]],
            "when": WHEN,
            "__v": 0,
        },
        written=([["BTCUSDT", {"openTimestamp": 1}]], WHEN),
        foreign={
            "riskName": "max:2",
            "exchangeName": "binance",
            "positions": [["BTCUSDT", {"openTimestamp": 1.0}]],
            "when": float(WHEN),
            "__v": 0,
        },
    ),
    Case(
        domain="partial",
        collection="partial-items",
        context={**SSE, "signal_id": "s:1"},
        index=(*SSE_INDEX, "signalId"),
        redis_key="partial_cache:binance:trend%3Av2:BTC/USDT%3AUSDT:s:1",
        document={**SSE_WIRE, "signalId": "s:1", "payload": PAYLOAD, "when": WHEN, "__v": 0},
        written=(PAYLOAD, WHEN),
        foreign={**SSE_WIRE, "signalId": "s:1", "payload": PAYLOAD, "when": float(WHEN), "__v": 0},
    ),
    Case(
        domain="breakeven",
        collection="breakeven-items",
        context={**SSE, "signal_id": "s:1"},
        index=(*SSE_INDEX, "signalId"),
        redis_key="breakeven_cache:binance:trend%3Av2:BTC/USDT%3AUSDT:s:1",
        document={**SSE_WIRE, "signalId": "s:1", "payload": PAYLOAD, "when": WHEN, "__v": 0},
        written=(PAYLOAD, WHEN),
        foreign={**SSE_WIRE, "signalId": "s:1", "payload": PAYLOAD, "when": float(WHEN), "__v": 0},
    ),
    Case(
        domain="storage",
        collection="storage-items",
        context={"backtest": True, "signal_id": "s-1"},
        index=("backtest", "signalId"),
        redis_key="storage_cache:backtest:s-1",
        document={"backtest": True, "signalId": "s-1", "payload": PAYLOAD, "__v": 0},
        written=(PAYLOAD,),
        foreign={"backtest": True, "signalId": "s-1", "payload": PAYLOAD, "__v": 0},
    ),
    Case(
        domain="notification",
        collection="notification-items",
        context={"backtest": False, "notification_id": "s-1"},
        index=("backtest", "notificationId"),
        redis_key="notification_cache:live:s-1",
        document={"backtest": False, "notificationId": "s-1", "payload": PAYLOAD, "__v": 0},
        written=(PAYLOAD,),
        foreign={"backtest": False, "notificationId": "s-1", "payload": PAYLOAD, "__v": 0},
    ),
    Case(
        domain="log",
        collection="log-items",
        context={"entry_id": "s-1"},
        index=("entryId",),
        redis_key="log_cache:s-1",
        document={"entryId": "s-1", "payload": PAYLOAD, "__v": 0},
        written=(PAYLOAD,),
        foreign={"entryId": "s-1", "payload": PAYLOAD, "__v": 0},
    ),
    Case(
        domain="measure",
        collection="measure-items",
        context={"bucket": "llm:news", "entry_key": "BTC 100%"},
        index=("bucket", "entryKey"),
        redis_key="measure_cache:llm%3Anews:BTC 100%",
        document={"bucket": "llm:news", "entryKey": "BTC 100%", "payload": PAYLOAD, "removed": False, "__v": 0},
        written=(PAYLOAD,),
        foreign={"bucket": "llm:news", "entryKey": "BTC 100%", "payload": PAYLOAD, "removed": False, "__v": 0},
    ),
    Case(
        domain="interval",
        collection="interval-items",
        context={"bucket": "50%", "entry_key": "2024-01"},
        index=("bucket", "entryKey"),
        redis_key="interval_cache:50%25:2024-01",
        document={"bucket": "50%", "entryKey": "2024-01", "payload": PAYLOAD, "removed": False, "when": WHEN, "__v": 0},
        written=(PAYLOAD, WHEN),
        foreign={
            "bucket": "50%",
            "entryKey": "2024-01",
            "payload": PAYLOAD,
            "removed": False,
            "when": float(WHEN),
            "__v": 0,
        },
    ),
    Case(
        domain="memory",
        collection="memory-items",
        context={"signal_id": "s:1", "bucket_name": "notes", "memory_id": "m-1"},
        index=("signalId", "bucketName", "memoryId"),
        redis_key="memory_cache:s%3A1:notes:m-1",
        document={
            "signalId": "s:1",
            "bucketName": "notes",
            "memoryId": "m-1",
            "payload": PAYLOAD,
            "removed": False,
            "when": WHEN,
            "__v": 0,
        },
        written=(PAYLOAD, WHEN),
        foreign={
            "signalId": "s:1",
            "bucketName": "notes",
            "memoryId": "m-1",
            "payload": PAYLOAD,
            "removed": False,
            "when": float(WHEN),
            "__v": 0,
        },
    ),
    Case(
        domain="recent",
        collection="recent-items",
        context={**SSE, "frame_name": "2024", "backtest": True},
        index=(*SSE_INDEX, "frameName", "backtest"),
        redis_key="recent_cache:backtest:binance:trend%3Av2:2024:BTC/USDT:USDT",
        document={**SSE_WIRE, "frameName": "2024", "backtest": True, "payload": PAYLOAD, "when": WHEN, "__v": 0},
        written=(PAYLOAD, WHEN),
        foreign={**SSE_WIRE, "frameName": "2024", "backtest": True, "payload": PAYLOAD, "when": float(WHEN), "__v": 0},
    ),
    Case(
        domain="state",
        collection="state-items",
        context={"signal_id": "s:1", "bucket_name": "a:b"},
        index=("signalId", "bucketName"),
        redis_key="state_cache:s%3A1:a:b",
        document={"signalId": "s:1", "bucketName": "a:b", "payload": PAYLOAD, "when": WHEN, "__v": 0},
        written=(PAYLOAD, WHEN),
        foreign={"signalId": "s:1", "bucketName": "a:b", "payload": PAYLOAD, "when": 5, "__v": 0},
    ),
    Case(
        domain="session",
        collection="session-items",
        context={
            "strategy_name": "trend:v2",
            "exchange_name": "binance",
            "frame_name": "2024",
            "symbol": "BTC/USDT:USDT",
            "backtest": False,
        },
        index=("strategyName", "exchangeName", "frameName", "symbol", "backtest"),
        redis_key="session_cache:binance:trend%3Av2:2024:BTC/USDT%3AUSDT:live",
        document={**SSE_WIRE, "frameName": "2024", "backtest": False, "payload": PAYLOAD, "when": WHEN, "__v": 0},
        written=(PAYLOAD, WHEN),
        foreign={**SSE_WIRE, "frameName": "2024", "backtest": False, "payload": PAYLOAD, "when": float(WHEN), "__v": 0},
    ),
    Case(
        domain="strategy",
        collection="strategy-items",
        context=SSE,
        index=SSE_INDEX,
        redis_key="strategy_cache:binance:trend%3Av2:BTC/USDT:USDT",
        document={**SSE_WIRE, "payload": PAYLOAD, "__v": 0},
        written=(PAYLOAD,),
        foreign={**SSE_WIRE, "payload": PAYLOAD, "__v": 0.0},
    ),
    Case(
        domain="dictionary",
        collection="dictionary-items",
        context={"signal_id": "s:1", "dictionary_name": "a:b"},
        index=("signalId", "dictionaryName"),
        redis_key="dictionary_cache:s%3A1:a:b",
        document={"signalId": "s:1", "dictionaryName": "a:b", "payload": PAYLOAD, "when": WHEN, "__v": 0},
        written=(PAYLOAD, WHEN),
        foreign={"signalId": "s:1", "dictionaryName": "a:b", "payload": PAYLOAD, "when": float(WHEN), "__v": 0},
    ),
)

ADAPTER_CONTEXTS: dict[str, tuple[Any, ...]] = {
    "breakeven": ("s", "t", "e"),
    "candle": ("s", "1m", "e"),
    "dictionary": ("sig", "d"),
    "interval": ("b",),
    "log": (),
    "measure": ("b",),
    "memory": ("sig", "b"),
    "notification": (True,),
    "partial": ("s", "t", "e"),
    "recent": ("s", "t", "e", "f", True),
    "risk": ("r", "e"),
    "schedule": ("s", "t", "e"),
    "session": ("t", "e", "f", "s", True),
    "signal": ("s", "t", "e"),
    "state": ("sig", "b"),
    "storage": (True,),
    "strategy": ("s", "t", "e"),
}
"""Arguments for each entry of a registry."""
