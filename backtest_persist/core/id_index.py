"""The id index: which document holds a context, as this process and Redis remember it; hints that readers verify."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

from bson import ObjectId

from backtest_persist.connections import RedisService
from backtest_persist.core.base_map import BaseMap
from backtest_persist.core.id_memory import IdMemory
from backtest_persist.core.keys import to_object_id

__all__ = ("IdIndex",)

_IDS_AT_ONCE = 1000


class IdIndex:
    """Maps cache keys to ids: by the memory of this process, and by Redis through the cache service of a domain.

    Redis is told of an id unless it was seen to hold it. It may have lost what it held before its epoch has changed, so
    that it is then told again by the next write. A fault of Redis is a miss, never an error. `memory_size` returns how
    many ids are kept in the process.
    """

    def __init__(self, redis: RedisService, cache: BaseMap, memory_size: Callable[[], int]) -> None:
        self._redis = redis
        self._cache = cache
        self._memory = IdMemory(memory_size)
        cache.on_change = self._memory.forget

    def check(self) -> None:
        """Raise a `SettingsError` if Redis cannot be reached by these settings at all; sends nothing."""
        self._redis.check()

    def recall(self, keys: Iterable[str]) -> dict[str, ObjectId]:
        """Return the ids of those keys that this process knows."""
        return self._memory.recall(keys)

    async def get_many(self, keys: Sequence[str]) -> dict[str, ObjectId]:
        """Return the ids of those keys that Redis knows, by one command, without malformed ones."""
        if not keys:  # nor is Redis asked: its silence would count as an answer
            return {}
        epoch = self._redis.epoch
        cached = await self._redis.attempt("GET", lambda: self._cache.get_many(keys), [None] * len(keys))
        found = {key: id for key, value in zip(keys, cached, strict=True) if (id := to_object_id(value)) is not None}
        self._memory.put(found.items(), epoch)
        return found

    def drop(self, ids: Mapping[str, ObjectId]) -> None:
        """Drop ids from the memory of this process, as they have led to the wrong documents or to none."""
        for key, id in ids.items():
            self._memory.drop(key, id)

    async def remember(self, key: str, id: ObjectId) -> None:
        """Remember one id."""
        epoch = self._redis.epoch
        if not self._memory.is_in_redis(key, id, epoch):
            is_told = await self._redis.attempt("SET", partial(self._tell, key, id), False)
            self._memory.put([(key, id)], epoch if is_told else None)

    async def remember_many(self, ids: Iterable[tuple[str, ObjectId]]) -> None:
        """Remember several ids, a thousand in each round trip."""
        epoch = self._redis.epoch
        new = [(key, id) for key, id in ids if not self._memory.is_in_redis(key, id, epoch)]
        if len(new) == 1:
            await self.remember(*new[0])
            return
        for start in range(0, len(new), _IDS_AT_ONCE):
            batch = new[start : start + _IDS_AT_ONCE]
            is_told = await self._redis.attempt("SET", partial(self._tell_many, batch), False)
            self._memory.put(batch, epoch if is_told else None)

    async def _tell(self, key: str, id: ObjectId) -> bool:
        await self._cache.set(key, str(id))
        return True

    async def _tell_many(self, ids: Sequence[tuple[str, ObjectId]]) -> bool:
        await self._cache.set_many([(key, str(id)) for key, id in ids])
        return True
