"""Redis compared with MongoDB, and filled from it, in batches: memory stays flat on millions of ids."""

import time
from collections import defaultdict
from collections.abc import AsyncGenerator, Collection, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from enum import Enum

from bson import ObjectId

from backtest_persist.container import Container
from backtest_persist.core.base_map import SeenKeys
from backtest_persist.core.keys import to_object_id
from backtest_persist.errors import SettingsError, StoreUnavailableError
from backtest_persist.operations.ids import BATCH, Domain, Ids, open_domains
from backtest_persist.operations.transfer.dump import Progress

__all__ = ("Count", "Rebuilt", "Sampled", "Verified", "rebuild", "sample", "verify")

SAMPLE_STEPS = 100
"""Steps of SCAN that a sample takes at most."""


@dataclass
class Count:
    """What was found of one domain."""

    right: int = 0
    """Ids in Redis that lead to the document of their context."""
    stale: int = 0
    """Ids in Redis of documents that are gone."""
    foreign: int = 0
    """Entries in Redis with the id of another context's document, or with anything but an id."""
    missing: int = 0
    """Documents whose context has no entry in Redis."""
    fixed: int = 0
    """How many of the last three were put right."""

    @property
    def wrong(self) -> int:
        """Found, and not fixed."""
        return self.stale + self.foreign + self.missing - self.fixed


@dataclass
class Verified:
    """The report of `verify`."""

    domains: dict[str, Count]
    seconds: float = 0.0

    @property
    def wrong(self) -> int:
        """Found, and not fixed."""
        return sum(count.wrong for count in self.domains.values())


@dataclass
class Rebuilt:
    """The report of `rebuild`."""

    domains: dict[str, int] = field(default_factory=dict[str, int])
    """Ids that were set."""
    seconds: float = 0.0


@dataclass
class Sampled:
    """What a sample of the ids is like."""

    count: Count = field(default_factory=Count)
    expiring: int | None = 0
    """Ids that expire; None if the server does not tell."""


class _Verdict(Enum):
    RIGHT = "right"
    STALE = "stale"
    FOREIGN = "foreign"


async def verify(container: Container, *, fix: bool = False, progress: Progress | None = None) -> Verified:
    """Compare every id in Redis with MongoDB, and every document with Redis; with `fix`, put right what is wrong.

    A wrong entry gets the id of its context's document, or is removed when there is none; a missing one is added.
    Candles may be missing when ``CC_CANDLE_CACHE`` is off. Without `fix` nothing is written, no index either. A runner
    may be at work meanwhile: an id that it is just about to set can count as missing.

    `StoreUnavailableError` when one of the servers is.
    """
    started = time.perf_counter()
    ids = Ids(container.redis_service)
    domains = open_domains(container)
    counts = {domain.name: Count() for domain in domains}
    checked = 0
    async with aclosing(_entries(ids, domains)) as entries:
        async for domain, names in entries:
            await _check_entries(domain, ids, names, counts[domain.name], fix=fix)
            checked += len(names)
            _advance(progress, len(names))
    chosen = _chosen(container, domains)
    if progress is not None:
        progress.begin(checked + sum([await domain.count() for domain in chosen]))
    for domain in chosen:
        async with aclosing(domain.documents({})) as batches:
            async for batch in batches:
                missing = await _missing(ids, domain.named(batch))
                counts[domain.name].missing += len(missing)
                if fix:
                    await ids.store(missing)
                    counts[domain.name].fixed += len(missing)
                _advance(progress, len(batch))
    return Verified(counts, time.perf_counter() - started)


async def rebuild(container: Container, *, domains: Collection[str] = (), progress: Progress | None = None) -> Rebuilt:
    """Set the id of every document in Redis, of all domains or those named; other keys are left alone.

    Candles are left out when ``CC_CANDLE_CACHE`` is off, unless they are named. Running it again changes nothing.

    `SettingsError` for an unknown name, `StoreUnavailableError` when one of the servers is.
    """
    started = time.perf_counter()
    ids = Ids(container.redis_service)
    chosen = _chosen(container, open_domains(container), domains)
    report = Rebuilt()
    await ids.ping()
    if progress is not None:
        progress.begin(sum([await domain.count() for domain in chosen]))
    for domain in chosen:
        report.domains[domain.name] = 0
        async with aclosing(domain.documents({})) as batches:
            async for batch in batches:
                found = domain.named(batch)
                await ids.store(found)
                report.domains[domain.name] += len(found)
                _advance(progress, len(batch))
    report.seconds = time.perf_counter() - started
    return report


async def sample(container: Container, size: int) -> Sampled:
    """Compare up to `size` entries and the newest `size` documents of each domain; writes nothing."""
    ids = Ids(container.redis_service)
    domains = open_domains(container)
    sampled = Sampled()
    names: dict[str, list[bytes]] = defaultdict(list)
    async with aclosing(_entries(ids, domains, steps=SAMPLE_STEPS)) as entries:
        async for domain, batch in entries:
            names[domain.name] += batch[: size - len(names[domain.name])]
    for domain in domains:
        await _check_entries(domain, ids, names[domain.name], sampled.count, fix=False)
    for domain in _chosen(container, domains):
        async with aclosing(domain.documents({}, sort=[("_id", -1)], limit=size)) as batches:
            async for batch in batches:
                sampled.count.missing += len(await _missing(ids, domain.named(batch)))
    try:
        left = await ids.each("ttl", [name for batch in names.values() for name in batch])
        sampled.expiring = sum(seconds >= 0 for seconds in left)
    except StoreUnavailableError:
        sampled.expiring = None
    return sampled


def _chosen(container: Container, domains: Sequence[Domain], names: Collection[str] = ()) -> list[Domain]:
    """The domains with these names; without any, all whose ids are meant to be in Redis."""
    unknown = sorted(set(names) - {domain.name for domain in domains})
    if unknown:
        known = ", ".join(domain.name for domain in domains)
        raise SettingsError(f"There is no domain {', '.join(unknown)}; the domains are {known}.")
    if names:
        return [domain for domain in domains if domain.name in names]
    return [domain for domain in domains if domain.name != "candle" or container.settings.candle_cache]


async def _entries(
    ids: Ids, domains: Sequence[Domain], *, steps: int | None = None
) -> AsyncGenerator[tuple[Domain, list[bytes]]]:
    """Iterate over the names of keys in Redis, each once, in batches of one domain."""
    owners = {domain.namespace: domain for domain in domains}
    waiting: dict[bytes, list[bytes]] = defaultdict(list)
    seen = SeenKeys()
    done = 0
    async with aclosing(ids.scan()) as scan:
        async for names in scan:
            for name in names:
                namespace = name[: name.find(b":", len(ids.prefix)) + 1]
                if namespace in owners and seen.add(name):
                    waiting[namespace].append(name)
            for namespace, batch in waiting.items():
                while len(batch) >= BATCH:
                    yield owners[namespace], batch[:BATCH]
                    del batch[:BATCH]
            done += 1
            if done == steps:
                break
    for namespace, batch in waiting.items():
        if batch:
            yield owners[namespace], batch


async def _check_entries(domain: Domain, ids: Ids, names: Sequence[bytes], count: Count, *, fix: bool) -> None:
    verdicts = await _judge(domain, ids, names)
    wrong = [name for name, verdict in verdicts.items() if verdict is not _Verdict.RIGHT]
    count.right += len(verdicts) - len(wrong)
    count.stale += sum(verdict is _Verdict.STALE for verdict in verdicts.values())
    count.foreign += sum(verdict is _Verdict.FOREIGN for verdict in verdicts.values())
    if fix:
        contexts = [context for name in wrong if (context := domain.context_of(name)) is not None]
        right = await domain.by_context(contexts)
        await ids.store(right)
        await ids.remove([name for name in wrong if name not in right])
        count.fixed += len(wrong)


async def _judge(domain: Domain, ids: Ids, names: Sequence[bytes]) -> dict[bytes, _Verdict]:
    """What each entry is worth, by the check that a read makes; one that is gone meanwhile is left out."""
    values = dict(zip(names, await ids.values(names), strict=True))
    others = await ids.present([name for name, value in values.items() if value is None])
    known = {name: id for name, value in values.items() if (id := _to_id(value)) is not None}
    documents = await domain.by_id(list(set(known.values())))
    verdicts: dict[bytes, _Verdict] = {}
    for name, value in values.items():
        context, id = domain.context_of(name), known.get(name)
        if value is None and name not in others:
            continue
        if context is None or id is None:
            verdicts[name] = _Verdict.FOREIGN
        elif id not in documents:
            verdicts[name] = _Verdict.STALE
        else:
            verdicts[name] = _Verdict.RIGHT if context.matches(documents[id]) else _Verdict.FOREIGN
    return verdicts


async def _missing(ids: Ids, documents: Mapping[bytes, ObjectId]) -> dict[bytes, ObjectId]:
    """Those of the documents, by full Redis key, that have no entry of any kind."""
    values = zip(documents, await ids.values(list(documents)), strict=True)
    absent = [name for name, value in values if value is None]
    others = await ids.present(absent)
    return {name: documents[name] for name in absent if name not in others}


def _to_id(value: bytes | None) -> ObjectId | None:
    return None if value is None else to_object_id(value.decode(errors="replace"))


def _advance(progress: Progress | None, done: int) -> None:
    if progress is not None:
        progress.advance(done)
