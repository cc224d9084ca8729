"""`verify`: what it finds and corrects, on real servers with real damage."""

import tracemalloc
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from bson import ObjectId

from backtest_persist import Container, Settings
from backtest_persist.operations import IdCounts, examine, rebuild, verify
from backtest_persist.operations.cache.ids import CachedIds
from tests.support.cases import CASES
from tests.support.containers import open_container
from tests.support.damage import DAMAGED_COUNTS, damage_ids, write_unrelated_keys
from tests.support.diagnoses import values
from tests.support.documents import find, key_of, keys, stored, write


async def test_verify_tells_each_kind_of_damage_apart_and_touches_nothing(
    container: Container, settings: Settings
) -> None:
    """Right, stale, foreign and missing are counted in every domain; both servers hold what they held."""
    await damage_ids(container)
    before = await stored(settings)
    report = await verify(container)
    assert report.domains == {case.domain: DAMAGED_COUNTS for case in CASES}
    assert report.wrong == 7 * len(CASES)
    assert await stored(settings) == before


async def test_fixing_puts_right_what_is_wrong_and_nothing_else(container: Container, settings: Settings) -> None:
    """Afterwards each document's id is there and nothing more, other keys stay, and a second run finds nothing."""
    await damage_ids(container)
    await write_unrelated_keys(container)
    documents, before = await stored(settings)
    report = await verify(container, fix=True)
    assert report.ignored == {"other_cache": 1}
    assert values(await examine(container))["cache.ignored"] == {"names": ["other_cache"]}
    assert report.domains == {case.domain: IdCounts(right=2, stale=2, foreign=4, missing=1, fixed=7) for case in CASES}
    assert report.wrong == 0

    now, after = await stored(settings)
    assert now == documents
    present = {key_of(container, case, n) for case in CASES for n in range(8) if n != 1}
    others = {name for name in before if b"_cache:" not in name or b"other_cache:" in name or b"x:log" in name}
    assert set(after) == present | others
    assert {name: after[name] for name in others} == {name: before[name] for name in others}
    assert (await verify(container, fix=True)).domains == {case.domain: IdCounts(right=7) for case in CASES}
    for case in CASES:
        service: Any = getattr(container, f"{case.domain}_db_service")
        hits = service.stats.hits
        assert [await find(container, case, n) is None for n in range(8)] == [n == 1 for n in range(8)]
        assert service.stats.hits == hits + 7


async def test_many_ids_are_counted_exactly(container: Container) -> None:
    """Batches end anywhere: 1,301 documents are right, or missing, or fixed, to the last one."""
    redis: Any = container.redis_service.client
    await container.log_db_service.create_many([{"id": f"{n}"} for n in range(1301)])
    await container.log_cache_service.clear()
    assert (await verify(container)).domains["log"] == IdCounts(missing=1301)
    assert (await verify(container, fix=True)).domains["log"] == IdCounts(missing=1301, fixed=1301)
    assert (await verify(container)).domains["log"] == IdCounts(right=1301)
    await container.mongo_service.collection("log-items").delete_many({})
    assert (await verify(container, fix=True)).domains["log"] == IdCounts(stale=1301, fixed=1301)
    assert await container.log_cache_service.size() == 0
    assert await redis.ping()


async def test_an_id_counts_once_when_redis_repeats_it(container: Container, monkeypatch: pytest.MonkeyPatch) -> None:
    """SCAN may return a key again when the hash table shrinks under it; here it returns every batch twice."""
    scan = CachedIds.scan

    async def repeating(self: CachedIds) -> AsyncGenerator[list[bytes]]:
        async for batch in scan(self):
            yield batch
            yield batch

    monkeypatch.setattr(CachedIds, "scan", repeating)
    await container.log_db_service.create_many([{"id": f"{n}"} for n in range(1301)])
    assert (await verify(container)).domains["log"] == IdCounts(right=1301)


async def test_candles_without_an_id_are_no_fault_when_they_have_none(container: Container, settings: Settings) -> None:
    """With CC_CANDLE_CACHE off their absence is not counted, and not filled; an id that is there is judged."""
    candle = next(case for case in CASES if case.domain == "candle")
    for n in range(2):
        await write(container, candle, n)
    redis: Any = container.redis_service.client
    await redis.delete(key_of(container, candle, 0))
    await redis.set(key_of(container, candle, 1), "junk")
    async with open_container(settings, candle_cache=False) as other:
        assert (await verify(other, fix=True)).domains["candle"] == IdCounts(foreign=1, fixed=1)
        assert (await rebuild(other)).domains.get("candle") is None
        assert (await verify(other)).domains["candle"] == IdCounts(right=1)
        assert (await rebuild(other, domains=["candle"])).domains == {"candle": 2}
    assert (await verify(container)).domains["candle"] == IdCounts(right=2)


async def test_a_document_that_no_look_up_finds_needs_no_id(container: Container, settings: Settings) -> None:
    """One that lacks a part of its context, or has an id of another type, is neither missing nor cached."""
    items = container.mongo_service.collection("session-items")
    await items.insert_many([{"symbol": "s"}, {"symbol": ["s"], "backtest": 1}])
    await container.mongo_service.collection("log-items").insert_one({"_id": "text", "entryId": "e"})
    assert (await verify(container, fix=True)).wrong == 0
    assert set((await rebuild(container)).domains.values()) == {0}
    assert await keys(settings) == {}


async def test_a_document_that_lists_leave_out_is_named(container: Container) -> None:
    """The report has its collection, its id and what is wrong with it; the ids in Redis are right all the same."""
    await container.storage_db_service.upsert_many(True, [{"id": "a"}, {"id": "b"}])
    items = container.mongo_service.collection("storage-items")
    await items.update_one({"signalId": "a"}, {"$unset": {"createDate": ""}})
    damaged = await items.find_one({"signalId": "a"})
    assert damaged is not None
    report = await verify(container)
    assert report.wrong == 0
    ((name, why),) = report.unreadable.items()
    assert name == f"storage-items {damaged['_id']}"
    assert "is no StorageRow: see createDate" in why
    await container.storage_db_service.upsert(True, "a", {"id": "a"})
    assert (await verify(container)).unreadable == {}


async def test_a_session_without_a_frame_has_an_id(container: Container, settings: Settings) -> None:
    """The original leaves the frame empty in live trading; such an id is right, and filled in."""
    session = {"strategyName": "t", "exchangeName": "e", "frameName": "", "symbol": "s", "backtest": False}
    await container.mongo_service.collection("session-items").insert_one(session)
    assert (await rebuild(container)).domains["session"] == 1
    assert list(await keys(settings)) == [f"{settings.redis_key_prefix}session_cache:e:t::s:live".encode()]
    assert (await verify(container)).domains["session"] == IdCounts(right=1)


async def test_keys_as_the_framework_spells_them_are_right(container: Container, settings: Settings) -> None:
    """It joins names as they are. Such a key is right for its document, is set right if need be, and stays."""
    redis: Any = container.redis_service.client
    database, prefix = container.mongo_service.database, settings.redis_key_prefix
    ours = {case.domain: f"{prefix}{case.redis_key}" for case in CASES}
    plain = {domain: key.replace("%3A", ":") for domain, key in ours.items()}
    ids = {case.domain: (await database[case.collection].insert_one(dict(case.document))).inserted_id for case in CASES}
    await redis.mset({plain[domain]: str(id) for domain, id in ids.items()})
    odd = {name: f"100%:{name}" for name in ("symbol", "strategyName", "exchangeName")}
    id = (await database["strategy-items"].insert_one({**odd, "payload": None})).inserted_id
    await redis.set(f"{prefix}strategy_cache:100%:exchangeName:100%:strategyName:100%:symbol", str(id))
    before = await keys(settings)
    for fix in (False, True):
        report = await verify(container, fix=fix)
        assert report.domains == {domain: IdCounts(right=1 + (domain == "strategy")) for domain in ids}
        assert await keys(settings) == before
    assert values(await examine(container))["cache"] == {"right": 1 + len(ids), "stale": 0, "foreign": 0, "missing": 0}

    differing = [domain for domain in ids if plain[domain] != ours[domain]]
    assert len(differing) > 8
    await redis.mset({plain[domain]: str(ObjectId()) for domain in differing})
    assert (await verify(container)).domains["signal"] == IdCounts(stale=1, missing=1)
    assert (await verify(container, fix=True)).domains["signal"] == IdCounts(stale=1, fixed=1)
    assert {domain: await redis.get(key) for domain, key in plain.items()} == {
        domain: str(id).encode() for domain, id in ids.items()
    }
    await container.mongo_service.collection("signal-items").delete_many({})
    assert (await verify(container, fix=True)).domains["signal"] == IdCounts(stale=1, fixed=1)
    assert await redis.get(plain["signal"]) is None  # it led to nothing


async def test_the_key_prefix_is_no_pattern(container: Container, settings: Settings) -> None:
    """With glob characters in CC_REDIS_KEY_PREFIX only keys of that very prefix are looked at."""
    base = settings.redis_key_prefix
    redis: Any = container.redis_service.client
    await redis.set(f"{base}ab:signal_cache:e:t:s", "junk")
    await redis.set(f"{base}a[b]*:signal_cache:e:t:s", "junk")
    async with open_container(settings, redis_key_prefix=f"{base}a[b]*:") as other:
        assert (await verify(other, fix=True)).domains["signal"] == IdCounts(foreign=1, fixed=1)
    assert list(await keys(settings)) == [f"{base}ab:signal_cache:e:t:s".encode()]


async def test_memory_stays_flat(container: Container) -> None:
    """Verifying and filling 10,000 ids needs no more than a few batches of them at once."""
    candle = {"open": 1, "high": 1, "low": 1, "close": 1, "volume": 0}
    candles = [{"timestamp": -n * 60_000, **candle} for n in range(10_000)]
    await container.candle_db_service.create_many("BTCUSDT", "1m", "binance", candles)
    await verify(container)
    tracemalloc.start()
    try:
        assert (await verify(container)).domains["candle"] == IdCounts(right=10_000)
        assert (await rebuild(container)).domains["candle"] == 10_000
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2_000_000
