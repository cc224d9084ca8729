"""`verify`: every id in Redis compared with MongoDB, and every document with Redis."""

import time
from collections import Counter
from contextlib import aclosing
from dataclasses import dataclass, field

from backtest_persist.container import Container
from backtest_persist.operations.cache.collection import cached_collections
from backtest_persist.operations.cache.comparison import IdCounts, check_keys, iterate_keys, missing_ids
from backtest_persist.operations.cache.ids import CachedIds
from backtest_persist.operations.progress import NoProgress, Progress

__all__ = ("Verified", "verify")


@dataclass
class Verified:
    """The report of `verify`."""

    domains: dict[str, IdCounts]
    seconds: float = 0.0
    ignored: dict[str, int] = field(default_factory=dict[str, int])
    """The namespaces of cache services that belong to no domain, and the number of keys in each, left alone."""

    unreadable: dict[str, str] = field(default_factory=dict[str, str])
    """The documents that lists leave out, by collection and id, and why; series of candles are not examined."""

    @property
    def wrong(self) -> int:
        """The number of ids that are wrong or missing and were not corrected."""
        return sum(counts.wrong for counts in self.domains.values())


async def verify(container: Container, *, fix: bool = False, progress: Progress | None = None) -> Verified:
    """Compare every id in Redis with MongoDB, and every document with Redis; with `fix`, correct Redis.

    A wrong key gets the id of its context's document, or is removed when there is none; a missing one is added.
    Documents that cannot be read are named.
    Candles without an id are not counted when ``CC_CANDLE_CACHE`` is off. Without `fix` nothing is written, no index
    either. Strategy runners may be at work meanwhile: an id that one of them is just about to set can count as missing.

    `StoreUnavailableError` when one of the servers does not answer.
    """
    started = time.perf_counter()
    progress = progress or NoProgress()
    ids = CachedIds(container.redis_service)
    collections = cached_collections(container)
    counts = {collection.name: IdCounts() for collection in collections}
    ignored = Counter[str]()
    unreadable: dict[str, str] = {}
    checked = 0
    async with aclosing(iterate_keys(ids, collections, ignored=ignored)) as batches_of_keys:
        async for collection, keys in batches_of_keys:
            await check_keys(collection, ids, keys, counts[collection.name], fix=fix)
            checked += len(keys)
            progress.advance(len(keys))
    cached = [collection for collection in collections if collection.is_cached]
    progress.begin(checked + sum([await collection.count() for collection in cached]))
    for collection in cached:
        async with aclosing(collection.documents({}, whole=not collection.is_series)) as batches:
            async for batch in batches:
                refused = [] if collection.is_series else collection.row_type.sift(batch)[1]
                unreadable |= {f"{collection.collection} {id}": str(error) for id, error in refused}
                missing = await missing_ids(collection, ids, batch)
                counts[collection.name].missing += len(missing)
                if fix:
                    await ids.store(missing)
                    counts[collection.name].fixed += len(missing)
                progress.advance(len(batch))
    return Verified(counts, time.perf_counter() - started, dict(sorted(ignored.items())), unreadable)
