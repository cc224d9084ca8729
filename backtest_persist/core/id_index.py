"""The id index: which document holds a context, as Redis remembers it; a hint that every reader verifies."""

from collections.abc import Sequence
from functools import partial

from bson import ObjectId

from backtest_persist.connections import RedisService
from backtest_persist.core.base_map import BaseMap
from backtest_persist.core.keys import to_object_id

__all__ = ("IdIndex",)

_IDS_AT_ONCE = 1000


class IdIndex:
    """Maps cache keys to ids through the cache service of a domain; a fault of Redis is a miss, never an error."""

    def __init__(self, redis: RedisService, cache: BaseMap) -> None:
        self._redis = redis
        self._cache = cache

    def check(self) -> None:
        """Raise a `SettingsError` if Redis cannot be reached by these settings at all; sends nothing."""
        self._redis.check()

    async def get_many(self, keys: Sequence[str]) -> list[ObjectId | None]:
        """Return the ids of several keys by one command, None for each that is unknown or malformed."""
        cached = await self._redis.attempt("GET", lambda: self._cache.get_many(keys), [None] * len(keys))
        return [to_object_id(value) for value in cached]

    async def remember(self, key: str, id: ObjectId) -> None:
        """Remember one id."""
        await self._redis.attempt("SET", lambda: self._cache.set(key, str(id)), None)

    async def remember_many(self, ids: Sequence[tuple[str, ObjectId]]) -> None:
        """Remember several ids, a thousand in each round trip."""
        if len(ids) == 1:
            await self.remember(*ids[0])
            return
        for start in range(0, len(ids), _IDS_AT_ONCE):
            batch = [(key, str(id)) for key, id in ids[start : start + _IDS_AT_ONCE]]
            await self._redis.attempt("SET", partial(self._cache.set_many, batch), None)
