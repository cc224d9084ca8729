"""Connections to MongoDB and Redis: where containers open clients, and the one place that translates driver errors.

Clients of both databases belong to one event loop. Each service therefore keeps one client per running loop and
closes it when that loop shuts down, so one process-wide container serves a notebook, pytest and any number of
`asyncio.run` calls.
"""

from backtest_persist.connections.drivers import Collection, aggregate, aggregate_raw, list_indexes
from backtest_persist.connections.mongo import MongoService, MongoState
from backtest_persist.connections.per_loop import joined, uncancelled
from backtest_persist.connections.redis import RedisService
from backtest_persist.connections.redis_connection import RedisCommands
from backtest_persist.connections.translation import (
    Operation,
    mongo_errors,
    redis_errors,
    timed_out,
)
from backtest_persist.connections.values import CODEC_OPTIONS, Document, to_plain

__all__ = (
    "CODEC_OPTIONS",
    "Collection",
    "Document",
    "MongoService",
    "MongoState",
    "Operation",
    "RedisCommands",
    "RedisService",
    "aggregate",
    "aggregate_raw",
    "joined",
    "list_indexes",
    "mongo_errors",
    "redis_errors",
    "timed_out",
    "to_plain",
    "uncancelled",
)
