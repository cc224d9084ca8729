"""The comparison of ids in Redis with documents in MongoDB, in batches: memory stays flat on millions of ids."""

from collections import Counter, defaultdict
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from enum import Enum

from bson import ObjectId

from backtest_persist.connections import Document
from backtest_persist.core.base_map import SeenKeys
from backtest_persist.core.keys import to_object_id
from backtest_persist.operations.cache.collection import BATCH, CachedCollection
from backtest_persist.operations.cache.ids import CachedIds

__all__ = ("IdCounts", "check_keys", "iterate_keys", "missing_ids")

_MOST_IGNORED = 100
_OTHERS = "others"
"""Stands for further namespaces, of which there can be any number."""


@dataclass
class IdCounts:
    """The result of a comparison, of one domain or of a sample."""

    right: int = 0
    """Ids in Redis that lead to the document of their context."""
    stale: int = 0
    """Ids in Redis of documents that are gone."""
    foreign: int = 0
    """Keys in Redis with the id of another context's document, or with a value that is not an id."""
    missing: int = 0
    """Documents whose context has no key in Redis."""
    fixed: int = 0
    """The number of stale, foreign and missing ids that were corrected."""

    @property
    def wrong(self) -> int:
        """The number of stale, foreign and missing ids that were not corrected."""
        return self.stale + self.foreign + self.missing - self.fixed


class _Verdict(Enum):
    RIGHT = "right"
    STALE = "stale"
    FOREIGN = "foreign"


async def iterate_keys(
    ids: CachedIds,
    collections: Sequence[CachedCollection],
    *,
    ignored: Counter[str],
    steps: int | None = None,
) -> AsyncGenerator[tuple[CachedCollection, list[bytes]]]:
    """Iterate over the keys in Redis, each once, in batches of one collection; with `steps`, over a part of them.

    Keys that belong to no collection are left out; those of other cache services are counted in `ignored`, by their
    namespace. `steps` is the largest number of SCAN commands.
    """
    owners = {collection.namespace: collection for collection in collections}
    pending: dict[bytes, list[bytes]] = defaultdict(list)
    seen = SeenKeys()
    scanned = 0
    async with aclosing(ids.scan()) as scan:
        async for keys in scan:
            for key in keys:
                namespace = key[: key.find(b":", len(ids.prefix)) + 1]
                if namespace in owners:
                    if seen.add(key):
                        pending[namespace].append(key)
                elif namespace.endswith(b"_cache:") and seen.add(key):
                    name = namespace[len(ids.prefix) : -1].decode(errors="replace")
                    ignored[name if name in ignored or len(ignored) < _MOST_IGNORED else _OTHERS] += 1
            for namespace, batch in pending.items():
                while len(batch) >= BATCH:
                    yield owners[namespace], batch[:BATCH]
                    del batch[:BATCH]
            scanned += 1
            if scanned == steps:
                break
    for namespace, batch in pending.items():
        if batch:
            yield owners[namespace], batch


async def check_keys(
    collection: CachedCollection, ids: CachedIds, keys: Sequence[bytes], counts: IdCounts, *, fix: bool
) -> None:
    """Add the verdicts on these keys to `counts`; with `fix`, correct or remove the keys that are wrong."""
    verdicts = await _judge(collection, ids, keys)
    wrong = [key for key, verdict in verdicts.items() if verdict is not _Verdict.RIGHT]
    counts.right += len(verdicts) - len(wrong)
    counts.stale += sum(verdict is _Verdict.STALE for verdict in verdicts.values())
    counts.foreign += sum(verdict is _Verdict.FOREIGN for verdict in verdicts.values())
    if fix:
        right = await collection.by_key(wrong)
        await ids.store(right)
        await ids.remove([key for key in wrong if key not in right])
        counts.fixed += len(wrong)


async def missing_ids(
    collection: CachedCollection, ids: CachedIds, documents: Sequence[Document]
) -> dict[bytes, ObjectId]:
    """Return the ids of those documents to which no key leads, by full Redis key.

    A key that exists is not missing, even if it is wrong; one of the framework's spelling has to have the right id.
    """
    by_key = collection.ids_by_key(documents)
    values = zip(by_key, await ids.values(list(by_key)), strict=True)
    without_string = [key for key, value in values if value is None]
    existing = await ids.existing(without_string)
    missing = {key: by_key[key] for key in without_string if key not in existing}
    plain = collection.ids_by_key(documents, collection.plain_key_of)
    plain = {key: id for key, id in plain.items() if key not in by_key and id in set(missing.values())}
    found = {id for id, value in zip(plain.values(), await ids.values(list(plain)), strict=True) if _to_id(value) == id}
    return {key: id for key, id in missing.items() if id not in found}


async def _judge(collection: CachedCollection, ids: CachedIds, keys: Sequence[bytes]) -> dict[bytes, _Verdict]:
    """Judge each key by the check that a read makes; a key that was removed meanwhile is left out."""
    values = dict(zip(keys, await ids.values(keys), strict=True))
    existing = await ids.existing([key for key, value in values.items() if value is None])
    known = {key: id for key, value in values.items() if (id := _to_id(value)) is not None}
    documents = await collection.by_id(list(set(known.values())))
    verdicts: dict[bytes, _Verdict] = {}
    for key, value in values.items():
        context, id = collection.context_of(key), known.get(key)
        if value is None and key not in existing:
            continue
        if id is None:
            verdicts[key] = _Verdict.FOREIGN
        elif id not in documents:
            verdicts[key] = _Verdict.STALE if collection.readings_of(key) else _Verdict.FOREIGN
        elif context is not None and context.matches(documents[id]):
            verdicts[key] = _Verdict.RIGHT
        else:
            named = collection.context_in(documents[id])
            plain = named is not None and collection.plain_key_of(named) == key
            verdicts[key] = _Verdict.RIGHT if plain else _Verdict.FOREIGN
    return verdicts


def _to_id(value: bytes | None) -> ObjectId | None:
    return None if value is None else to_object_id(value.decode(errors="replace"))
