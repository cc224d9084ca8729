"""`sample`: the comparison of Redis with MongoDB on a few ids of each domain."""

from collections import Counter, defaultdict
from contextlib import aclosing
from dataclasses import dataclass, field

from backtest_persist.container import Container
from backtest_persist.errors import StoreUnavailableError
from backtest_persist.operations.cache.collection import cached_collections
from backtest_persist.operations.cache.comparison import IdCounts, check_keys, iterate_keys, missing_ids
from backtest_persist.operations.cache.ids import CachedIds

__all__ = ("Sampled", "sample")

SCAN_STEPS = 100
"""The largest number of SCAN commands that a sample sends."""


@dataclass
class Sampled:
    """The report of `sample`."""

    counts: IdCounts = field(default_factory=IdCounts)
    expiring: int | None = 0
    """The number of sampled ids that expire; None when the server does not say."""
    ignored: Counter[str] = field(default_factory=Counter[str])
    """The namespaces of cache services that belong to no domain, and the number of their keys that were seen."""


async def sample(container: Container, size: int) -> Sampled:
    """Compare up to `size` ids in Redis and the `size` newest documents of each domain; writes nothing.

    `StoreUnavailableError` when one of the servers does not answer, or Redis does not let this user scan its keys.
    """
    ids = CachedIds(container.redis_service)
    collections = cached_collections(container)
    sampled = Sampled()
    keys: dict[str, list[bytes]] = defaultdict(list)
    async with aclosing(iterate_keys(ids, collections, ignored=sampled.ignored, steps=SCAN_STEPS)) as batches_of_keys:
        async for collection, batch in batches_of_keys:
            keys[collection.name] += batch[: size - len(keys[collection.name])]
    for collection in collections:
        await check_keys(collection, ids, keys[collection.name], sampled.counts, fix=False)
    for collection in collections:
        if collection.is_cached:
            async with aclosing(collection.documents({}, sort=[("_id", -1)], limit=size)) as batches:
                async for batch in batches:
                    sampled.counts.missing += len(await missing_ids(collection, ids, batch))
    try:
        lifetimes = await ids.for_each("ttl", [key for batch in keys.values() for key in batch])
        sampled.expiring = sum(seconds >= 0 for seconds in lifetimes)
    except StoreUnavailableError:
        sampled.expiring = None
    return sampled
