"""`rebuild`: the ids in Redis set from the documents in MongoDB."""

import time
from collections.abc import Collection
from contextlib import aclosing
from dataclasses import dataclass, field

from backtest_persist.container import Container
from backtest_persist.errors import SettingsError
from backtest_persist.operations.cache.collection import CachedCollection, cached_collections
from backtest_persist.operations.cache.ids import CachedIds
from backtest_persist.operations.progress import NoProgress, Progress

__all__ = ("Rebuilt", "rebuild")


@dataclass
class Rebuilt:
    """The report of `rebuild`."""

    domains: dict[str, int] = field(default_factory=dict[str, int])
    """The number of ids that were set."""
    seconds: float = 0.0


async def rebuild(container: Container, *, domains: Collection[str] = (), progress: Progress | None = None) -> Rebuilt:
    """Set the id of every document in Redis, of all domains or of the named ones; other keys are left alone.

    Candles are left out when ``CC_CANDLE_CACHE`` is off, unless they are named. Running it again changes nothing.

    `SettingsError` for an unknown name, `StoreUnavailableError` when one of the servers does not answer.
    """
    started = time.perf_counter()
    progress = progress or NoProgress()
    ids = CachedIds(container.redis_service)
    collections = _select(container, domains)
    report = Rebuilt()
    await ids.ping()
    progress.begin(sum([await collection.count() for collection in collections]))
    for collection in collections:
        report.domains[collection.name] = 0
        async with aclosing(collection.documents({})) as batches:
            async for batch in batches:
                found = collection.ids_by_key(batch)
                await ids.store(found)
                report.domains[collection.name] += len(found)
                progress.advance(len(batch))
    report.seconds = time.perf_counter() - started
    return report


def _select(container: Container, names: Collection[str]) -> list[CachedCollection]:
    """Return the collections of the named domains; without names, of all whose ids are meant to be in Redis."""
    collections = cached_collections(container)
    if not names:
        return [collection for collection in collections if collection.is_cached]
    unknown = sorted(set(names) - {collection.name for collection in collections})
    if unknown:
        known = ", ".join(collection.name for collection in collections)
        raise SettingsError(f"There is no domain {', '.join(unknown)}; the domains are {known}.")
    return [collection for collection in collections if collection.name in names]
