"""Redis with every kind of damage, and with keys that belong to nobody."""

from typing import Any

from bson import ObjectId

from backtest_persist import Container
from backtest_persist.operations import IdCounts
from tests.support.cases import CASES
from tests.support.documents import fill, key_of

__all__ = ("DAMAGED_COUNTS", "damage_ids", "write_unrelated_keys")

DAMAGED_COUNTS = IdCounts(right=2, stale=2, foreign=4, missing=1)
"""The state of each domain after `damage_ids`."""


async def damage_ids(container: Container) -> None:
    """Write eight documents of every domain, and then each kind of wrong key."""
    await fill(container, 8)
    redis: Any = container.redis_service.client
    for case in CASES:
        key = [key_of(container, case, n) for n in range(8)]
        ids = [await redis.get(name) for name in key]
        collection = container.mongo_service.collection(case.collection)
        await collection.delete_one({"_id": ObjectId(ids[1].decode())})  # stale; 0 and 3 stay right
        await redis.set(key[2], ids[3])  # foreign: the id of another context
        await redis.delete(key[4])  # missing
        await redis.set(key[5], "junk")  # foreign
        await redis.delete(key[6])
        await redis.rpush(key[6], "a", "list")  # foreign
        await redis.set(key[7], str(ObjectId()))  # stale, while the document exists
        namespace = key[0][: key[0].index(b"_cache:") + len(b"_cache:")]
        await redis.set(namespace + b"\xff", ids[0])  # foreign: no context has this key


async def write_unrelated_keys(container: Container) -> None:
    """Write keys that resemble those of the domains and do not belong to them."""
    prefix = container.settings.redis_key_prefix
    redis: Any = container.redis_service.client
    await redis.mset(dict.fromkeys((f"{prefix}other_cache:x", f"{prefix}x:log_cache:y", f"{prefix}log_cache"), "mine"))
    await redis.hset(f"{prefix}signal", "a", "b")
