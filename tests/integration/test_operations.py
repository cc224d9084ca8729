"""The operations commands: what they find, put right and print, on real servers with real damage."""

import json
import tracemalloc
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from bson import ObjectId
from pydantic import SecretStr
from pymongo import AsyncMongoClient

from backtest_persist import Container, Settings, SettingsError
from backtest_persist.operations import Diagnosis, IdCounts, Level, examine, rebuild, verify
from backtest_persist.operations.cache.ids import CachedIds
from backtest_persist.operations.doctor import mongo as doctor_mongo
from backtest_persist.operations.doctor import redis as doctor_redis
from tests.support.cases import CASES
from tests.support.commands import Commands, monitored_client
from tests.support.documents import fill, find, key_of, keys, stored, write
from tests.support.processes import run_cli as run
from tests.support.servers import private_mongod

DAMAGED = IdCounts(right=2, stale=2, foreign=4, missing=1)
"""What `damage` leaves of each domain."""


async def damage(container: Container) -> None:
    """Eight documents of every domain, and each kind of wrong entry."""
    await fill(container, 8)
    redis: Any = container.redis_service.client
    for case in CASES:
        key = [key_of(container, case, n) for n in range(8)]
        ids = [await redis.get(name) for name in key]
        collection = container.mongo_service.collection(case.collection)
        await collection.delete_one({"_id": ObjectId(ids[1].decode())})  # stale; 0 and 3 stay right
        await redis.set(key[2], ids[3])  # foreign: another context's
        await redis.delete(key[4])  # missing
        await redis.set(key[5], "junk")  # foreign
        await redis.delete(key[6])
        await redis.rpush(key[6], "a", "list")  # foreign
        await redis.set(key[7], str(ObjectId()))  # stale, and the document is there
        namespace = key[0][: key[0].index(b"_cache:") + len(b"_cache:")]
        await redis.set(namespace + b"\xff", ids[0])  # foreign: no context has this key


async def unrelated(container: Container) -> None:
    """Keys beside those of the domains."""
    prefix = container.settings.redis_key_prefix
    redis: Any = container.redis_service.client
    await redis.mset(dict.fromkeys((f"{prefix}other_cache:x", f"{prefix}x:log_cache:y", f"{prefix}log_cache"), "mine"))
    await redis.hset(f"{prefix}signal", "a", "b")


@asynccontextmanager
async def opened(settings: Settings, **changes: Any) -> AsyncGenerator[Container]:
    """A container with other settings, and no index created."""
    container = Container(settings.model_copy(update=changes))
    try:
        yield container
    finally:
        await container.close()


def at(settings: Settings, uri: str) -> Settings:
    return settings.model_copy(update={"mongo_connection_string": SecretStr(uri)})


# --- verify ---


async def test_verify_tells_each_kind_of_damage_apart_and_touches_nothing(
    container: Container, settings: Settings
) -> None:
    """Right, stale, foreign and missing are counted in every domain; both servers hold what they held."""
    await damage(container)
    before = await stored(settings)
    report = await verify(container)
    assert report.domains == {case.domain: DAMAGED for case in CASES}
    assert report.wrong == 7 * 15
    assert await stored(settings) == before


async def test_fixing_puts_right_what_is_wrong_and_nothing_else(container: Container, settings: Settings) -> None:
    """Afterwards each document's id is there and nothing more, other keys stay, and a second run finds nothing."""
    await damage(container)
    await unrelated(container)
    documents, before = await stored(settings)
    report = await verify(container, fix=True)
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
    async with opened(settings, candle_cache=False) as other:
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


async def test_a_session_without_a_frame_has_an_id(container: Container, settings: Settings) -> None:
    """The original leaves the frame empty in live trading; such an id is right, and filled in."""
    session = {"strategyName": "t", "exchangeName": "e", "frameName": "", "symbol": "s", "backtest": False}
    await container.mongo_service.collection("session-items").insert_one(session)
    assert (await rebuild(container)).domains["session"] == 1
    assert list(await keys(settings)) == [f"{settings.redis_key_prefix}session_cache:e:t::s:live".encode()]
    assert (await verify(container)).domains["session"] == IdCounts(right=1)


async def test_the_key_prefix_is_no_pattern(container: Container, settings: Settings) -> None:
    """With glob characters in CC_REDIS_KEY_PREFIX only keys of that very prefix are looked at."""
    base = settings.redis_key_prefix
    redis: Any = container.redis_service.client
    await redis.set(f"{base}ab:signal_cache:e:t:s", "junk")
    await redis.set(f"{base}a[b]*:signal_cache:e:t:s", "junk")
    async with opened(settings, redis_key_prefix=f"{base}a[b]*:") as other:
        assert (await verify(other, fix=True)).domains["signal"] == IdCounts(foreign=1, fixed=1)
    assert list(await keys(settings)) == [f"{base}ab:signal_cache:e:t:s".encode()]


# --- rebuild ---


async def test_rebuild_fills_redis_and_leaves_other_keys_alone(container: Container, settings: Settings) -> None:
    """What is gone, junk or a list becomes the right id; other keys stay; a second run changes nothing."""
    await fill(container, 3)
    await unrelated(container)
    right = await keys(settings)
    redis: Any = container.redis_service.client
    for case in CASES:
        await redis.delete(key_of(container, case, 0), key_of(container, case, 1))
        await redis.rpush(key_of(container, case, 1), "a", "list")
        await redis.set(key_of(container, case, 2), "junk", ex=1000)
    for _ in range(2):
        assert (await rebuild(container)).domains == {case.domain: 3 for case in CASES}
        assert await keys(settings) == right


async def test_rebuild_of_named_domains_leaves_the_others(container: Container, settings: Settings) -> None:
    """Only those are filled; a name that is none is a SettingsError, and nothing is written."""
    await fill(container)
    for case in CASES:
        cache: Any = getattr(container, f"{case.domain}_cache_service")
        await cache.clear()
    with pytest.raises(SettingsError, match="no domain nope; the domains are breakeven, candle"):
        await rebuild(container, domains=["signal", "nope"])
    assert await keys(settings) == {}
    assert (await rebuild(container, domains=["signal", "risk"])).domains == {"risk": 1, "signal": 1}
    assert len(await keys(settings)) == 2


async def test_memory_stays_flat(container: Container) -> None:
    """Verifying and filling 10,000 ids needs no more than a few batches of them at once."""
    candle = {"open": 1, "high": 1, "low": 1, "close": 1, "volume": 0}
    candles = [{"timestamp": n * 60_000, **candle} for n in range(10_000)]
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


# --- doctor ---


def levels(diagnosis: Diagnosis) -> dict[str, Level]:
    """What is not ok, by check."""
    return {finding.check: finding.level for finding in diagnosis.findings if finding.level is not Level.OK}


def texts(diagnosis: Diagnosis) -> dict[str, str]:
    """What is said and advised, by check."""
    return {finding.check: f"{finding.text} {finding.advice}" for finding in diagnosis.findings}


async def test_all_is_well_with_a_filled_database(container: Container, settings: Settings) -> None:
    """Every line is ok, names what is in use, and measures clocks and latencies in ms."""
    await container.wait_for_init()
    await fill(container)
    diagnosis = await examine(container)
    assert levels(diagnosis) == {}, texts(diagnosis)
    assert diagnosis.level is Level.OK
    values = {finding.check: finding.values for finding in diagnosis.findings}
    assert values["driver"]["driver"] == settings.mongo_driver
    assert values["cache"] == {"right": 15, "stale": 0, "foreign": 0, "missing": 0}
    assert values["mongodb.topology"] == {"kind": "replica set", "members": 1}
    assert values["mongodb.write_concern"]["w"] == "majority"
    assert values["redis.key_prefix"]["prefix"] == settings.redis_key_prefix
    assert {values[f"mongodb.indexes.{case.domain}"]["state"] for case in CASES} == {"there"}
    assert abs(values["mongodb.clock"]["difference_ms"]) < 1000
    assert 0 < values["mongodb.latency"]["median_ms"] < 1000
    assert 0 < values["redis.latency"]["median_ms"] < 1000


async def test_the_doctor_writes_nothing(settings: Settings, driver: str) -> None:
    """Neither on an empty database nor on a damaged one; no command that writes is sent."""
    commands = Commands()
    client = monitored_client(settings, driver, commands)
    container = Container(settings, mongo_client=client)
    assert (await examine(container)).level is Level.OK
    assert await stored(settings) == ({}, {})
    assert set(commands.names) <= {
        *("aggregate", "buildInfo", "connectionStatus", "find", "getMore", "hello"),
        *("listCollections", "listIndexes", "ping"),
    }
    await damage(container)
    before = await stored(settings)
    await examine(container)
    assert await stored(settings) == before
    await container.close()
    closing = client.close()
    if closing is not None:
        await closing


async def test_a_new_database_is_told_from_one_without_indexes(container: Container) -> None:
    """Collections that do not exist yet are fine; one that lacks an index is a warning that names it."""
    values = {finding.check: finding.values for finding in (await examine(container)).findings}
    assert values["mongodb.indexes.signal"]["state"] == "new"
    await container.wait_for_init()
    indexes = container.mongo_service.database
    await indexes["signal-items"].drop_index("symbol_1_strategyName_1_exchangeName_1")
    await indexes["measure-items"].drop_index("bucket_1_removed_1")
    diagnosis = await examine(container)
    warned = {"mongodb.indexes.signal": Level.WARNING, "mongodb.indexes.measure": Level.WARNING}
    assert levels(diagnosis) == warned
    assert "symbol_1_strategyName_1_exchangeName_1" in texts(diagnosis)["mongodb.indexes.signal"]
    assert "bucket_1_removed_1" in texts(diagnosis)["mongodb.indexes.measure"]


async def test_an_index_in_the_way_is_a_problem_with_its_remedy(container: Container) -> None:
    """A narrow index and one that is not unique are named, with what drops them."""
    database = container.mongo_service.database
    await database["candle-items"].create_index([("symbol", 1), ("interval", 1), ("timestamp", 1)], unique=True)
    await database["risk-items"].create_index([("riskName", 1), ("exchangeName", 1)])
    diagnosis = await examine(container)
    problems = {"mongodb.indexes.candle": Level.PROBLEM, "mongodb.indexes.risk": Level.PROBLEM}
    assert levels(diagnosis) == problems
    assert diagnosis.level is Level.PROBLEM
    assert "backtest-persist migrate" in texts(diagnosis)["mongodb.indexes.candle"]
    assert "dropIndex('riskName_1_exchangeName_1')" in texts(diagnosis)["mongodb.indexes.risk"]
    values = {finding.check: finding.values for finding in diagnosis.findings}
    assert values["mongodb.indexes.candle"]["state"] == "narrow"
    assert values["mongodb.indexes.risk"]["state"] == "conflicting"


@pytest.mark.parametrize(
    ("context", "same"),
    [
        ({"symbol": "s", "strategyName": "t", "exchangeName": "e"},) * 2,
        ({"symbol": None, "strategyName": "t", "exchangeName": "e"}, {"strategyName": "t", "exchangeName": "e"}),
    ],
    ids=["equal", "null"],
)
async def test_documents_that_forbid_the_unique_index_are_a_problem(
    container: Container, context: dict[str, Any], same: dict[str, Any]
) -> None:
    """Without it the domain stores nothing, and the next process could not create it.

    To a unique index a field that is missing is null.
    """
    signals = container.mongo_service.database["signal-items"]
    await signals.insert_many([{**context}, {**context, "symbol": "another"}])
    assert levels(await examine(container)) == {"mongodb.indexes.signal": Level.WARNING, "cache": Level.WARNING}
    await signals.insert_one({**same})
    diagnosis = await examine(container)
    assert levels(diagnosis)["mongodb.indexes.signal"] is Level.PROBLEM
    assert "Group by symbol, strategyName, exchangeName" in texts(diagnosis)["mongodb.indexes.signal"]


async def test_the_doctor_does_not_wait_for_a_slow_redis(container: Container, monkeypatch: pytest.MonkeyPatch) -> None:
    """All that is asked of it has one deadline; so has the sample."""
    monkeypatch.setattr(doctor_redis, "REDIS_SECONDS", 0.0)
    diagnosis = await examine(container)
    assert levels(diagnosis) == {"redis": Level.PROBLEM}
    assert "not examined completely" in texts(diagnosis)["redis"]


async def test_a_sample_shows_a_damaged_cache(container: Container) -> None:
    """Wrong ids are a warning with the command that repairs them, and so are ids that expire."""
    await container.wait_for_init()
    await damage(container)
    redis: Any = container.redis_service.client
    await redis.expire(key_of(container, CASES[0], 0), 1000)
    diagnosis = await examine(container)
    assert levels(diagnosis) == {"cache": Level.WARNING, "cache.expiry": Level.WARNING}
    values = {finding.check: finding.values for finding in diagnosis.findings}
    assert values["cache"] == {"right": 2 * 15, "stale": 2 * 15, "foreign": 4 * 15, "missing": 15}
    assert values["cache.expiry"] == {"expiring": 1}
    assert "verify --fix" in texts(diagnosis)["cache"]


async def test_a_sample_of_many_ids_stays_small(container: Container) -> None:
    """Of 500 entries 20 are looked at, of 500 documents as many."""
    await container.log_db_service.create_many([{"id": f"{n}"} for n in range(500)])
    await container.log_cache_service.clear()
    values = {finding.check: finding.values for finding in (await examine(container)).findings}
    assert values["cache"] == {"right": 0, "stale": 0, "foreign": 0, "missing": 20}
    await rebuild(container)
    values = {finding.check: finding.values for finding in (await examine(container)).findings}
    assert values["cache"] == {"right": 20, "stale": 0, "foreign": 0, "missing": 0}


async def test_options_of_the_connection_string_are_judged(settings: Settings) -> None:
    """w=1 and a read preference are warnings, w=0 a problem."""
    uri = settings.mongo_connection_string.get_secret_value()
    async with opened(at(settings, f"{uri}&w=1&readPreference=secondaryPreferred")) as container:
        diagnosis = await examine(container)
    warned = {"mongodb.write_concern": Level.WARNING, "mongodb.read_preference": Level.WARNING}
    assert levels(diagnosis) == warned
    assert "secondaryPreferred, is ignored" in texts(diagnosis)["mongodb.read_preference"]
    async with opened(at(settings, f"{uri}&w=0")) as container:
        assert levels(await examine(container)) == {"mongodb": Level.PROBLEM}


async def test_clocks_that_differ_are_a_warning(container: Container, monkeypatch: pytest.MonkeyPatch) -> None:
    """The difference is measured in ms, with its sign."""

    class Late(doctor_mongo.datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return super().now(tz) - doctor_mongo.timedelta(seconds=5)

    monkeypatch.setattr(doctor_mongo, "datetime", Late)
    diagnosis = await examine(container)
    assert levels(diagnosis) == {"mongodb.clock": Level.WARNING}
    assert "ahead of this machine" in texts(diagnosis)["mongodb.clock"]
    (values,) = (finding.values for finding in diagnosis.findings if finding.check == "mongodb.clock")
    assert 4000 < values["difference_ms"] < 6000


async def test_an_old_mongod_is_a_warning(container: Container, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server below the oldest version that has all that is needed."""
    monkeypatch.setattr(doctor_mongo, "OLDEST_MONGODB", (99, 0))
    assert levels(await examine(container)) == {"mongodb.version": Level.WARNING}


async def test_a_standalone_mongod_with_users(settings: Settings, tmp_path: Path) -> None:
    """It is a warning that it is standalone; what each user may not do is told, and no name or password."""
    async with private_mongod(tmp_path, "--auth") as uri:
        async with AsyncMongoClient[dict[str, Any]](f"{uri}admin") as client:
            admin = client.admin
            await admin.command("createUser", "root", pwd="canary", roles=["root"])
        async with AsyncMongoClient[dict[str, Any]](f"{uri.replace('://', '://root:canary@')}admin") as client:
            admin = client.admin
            write_only = {"resource": {"db": "db", "collection": ""}, "actions": ["find", "insert", "update"]}
            listing = {"resource": {"db": "db", "collection": ""}, "actions": ["listIndexes", "listCollections"]}
            await admin.command("createRole", "narrow", privileges=[write_only, listing], roles=[])
            for name, role in {"reader": "read", "writer": "readWrite"}.items():
                await admin.command("createUser", name, pwd="canary", roles=[{"role": role, "db": "db"}])
            await admin.command("createUser", "narrow", pwd="canary", roles=["narrow"])
            elsewhere = {"role": "readWrite", "db": "other"}
            await admin.command(
                "createUser", "elsewhere", pwd="canary", roles=[elsewhere, {"role": "read", "db": "db"}]
            )

        async def seen_by(user: str) -> tuple[dict[str, Level], dict[str, str]]:
            login = uri.replace("://", f"://{user}@") if user else uri
            source = "?authSource=admin" if user else ""
            async with opened(at(settings, f"{login}db{source}")) as container:
                diagnosis = await examine(container)
            assert "canary" not in repr(diagnosis)
            return levels(diagnosis), texts(diagnosis)

        standalone = {"mongodb.topology": Level.WARNING}
        assert (await seen_by("writer:canary"))[0] == standalone
        found, said = await seen_by("narrow:canary")
        lacking = dict.fromkeys((f"mongodb.indexes.{case.domain}" for case in CASES), Level.PROBLEM)
        assert found == {**standalone, "mongodb.rights": Level.WARNING, **lacking}
        assert "remove on interval-items; only clear_bucket" in said["mongodb.rights"]
        assert "may not create them" in said["mongodb.indexes.signal"]
        assert (await seen_by("elsewhere:canary"))[0]["mongodb.rights"] is Level.PROBLEM
        found, said = await seen_by("reader:canary")
        assert found == {**standalone, "mongodb.rights": Level.PROBLEM}
        assert "may not insert on" in said["mongodb.rights"]
        assert "Grant the user readWrite on the database db" in said["mongodb.rights"]
        found, said = await seen_by("")
        assert found["mongodb.rights"] is Level.PROBLEM
        found, said = await seen_by("writer:canary-wrong")
        assert found == {"mongodb": Level.PROBLEM}
        assert "check user and password" in said["mongodb"]


async def test_a_replica_set_that_was_never_initiated(settings: Settings, tmp_path: Path) -> None:
    """It is a problem, with the command that initiates it."""
    async with (
        private_mongod(tmp_path, "--replSet", "rs0") as uri,
        opened(at(settings, f"{uri}db?directConnection=true")) as container,
    ):
        diagnosis = await examine(container)
    assert levels(diagnosis) == {"mongodb.topology": Level.PROBLEM}
    assert "backtest-persist initiate" in texts(diagnosis)["mongodb.topology"]


async def test_a_replica_set_is_initiated_once(settings: Settings, tmp_path: Path) -> None:
    """A second time it names the member that is there, not the one that was asked for."""
    async with private_mongod(tmp_path, "--replSet", "rs0") as uri:
        ours = at(settings, f"{uri}db?directConnection=true")
        member = unquote(uri.removeprefix("mongodb://").rstrip("/"))
        first = await run("initiate", "--member", member, settings=ours, cwd=tmp_path)
        again = await run("initiate", "--member", "another:27017", settings=ours, cwd=tmp_path)
    assert first.returncode == again.returncode == 0
    assert "ready" in str(first.stdout)
    assert "another:27017 is not in it" in " ".join(again.stdout.split())
    assert "not in it" not in str(first.stdout)


# --- the commands ---

GONE = "mongodb://name:canary@127.0.0.1:1/x?timeoutMS=300"
NO_REDIS = SecretStr("redis://name:canary@127.0.0.1:1")


async def test_the_doctor_exits_with_what_it_found(container: Container, settings: Settings, tmp_path: Path) -> None:
    """0 when all is well or there are warnings, 1 for a problem; --json is all of it."""
    await container.wait_for_init()
    well = await run("doctor", settings=settings, cwd=tmp_path)
    assert (well.returncode, well.stderr) == (0, "")
    assert "problem: 0" in well.stdout
    assert any(line.split()[:2] == ["ok", "mongodb.topology"] for line in well.stdout.splitlines())

    await container.mongo_service.database["signal-items"].drop_indexes()
    warned = await run("doctor", "--json", settings=settings, cwd=tmp_path)
    assert warned.returncode == 0
    report = json.loads(warned.stdout)
    assert report["level"] == "warning"
    (finding,) = (finding for finding in report["findings"] if finding["level"] != "ok")
    assert finding["check"] == "mongodb.indexes.signal"
    assert finding["values"] == {"state": "missing", "missing": ["symbol_1_strategyName_1_exchangeName_1"]}

    await container.mongo_service.database["signal-items"].create_index([("symbol", 1)], unique=True)
    bad = await run("doctor", settings=settings, cwd=tmp_path)
    assert bad.returncode == 1
    assert "problem  mongodb.indexes.signal" in bad.stdout
    assert "backtest-persist migrate" in bad.stdout


@pytest.mark.parametrize("gone", ["mongodb", "redis", "both"])
async def test_a_server_that_is_down(settings: Settings, tmp_path: Path, gone: str) -> None:
    """The doctor exits with 1 and tells of the other one; verify and rebuild-cache exit with 1 and one line."""
    changes: dict[str, Any] = {}
    if gone != "redis":
        changes["mongo_connection_string"] = SecretStr(GONE)
    if gone != "mongodb":
        changes["redis_url"] = NO_REDIS
    broken = settings.model_copy(update=changes)
    result = await run("doctor", "--json", settings=broken, cwd=tmp_path)
    assert result.returncode == 1, result.stderr
    report = json.loads(result.stdout)
    problems = [finding["check"] for finding in report["findings"] if finding["level"] == "problem"]
    assert problems == (["mongodb", "redis"] if gone == "both" else [gone])
    up = {finding["check"] for finding in report["findings"] if finding["level"] == "ok"}
    assert ("mongodb.latency" in up, "redis.latency" in up) == (gone == "redis", gone == "mongodb")
    assert "canary" not in result.stdout + result.stderr
    for command in ("verify", "rebuild-cache"):
        result = await run(command, settings=broken, cwd=tmp_path)
        assert (result.returncode, result.stdout) == (1, ""), command
        assert result.stderr.splitlines()[-1].startswith("backtest-persist: ")
        assert "Traceback" not in result.stderr
        assert "canary" not in result.stderr


async def test_a_bad_setting_is_a_finding(settings: Settings, tmp_path: Path) -> None:
    """The doctor reports it like everything else, and shows no secret."""
    broken = settings.model_copy(update={"mongo_connection_string": SecretStr("mongodb://u:can@ary@x:y/z")})
    result = await run("doctor", "--json", settings=broken, cwd=tmp_path)
    assert result.returncode == 1
    assert "CC_MONGO_CONNECTION_STRING is not usable" in json.loads(result.stdout)["findings"][1]["text"]
    assert "ary" not in result.stdout + result.stderr
    (tmp_path / ".env").write_text("CC_REDIS_TIMEOUT_MS=canary\n")
    result = await run("doctor", "--json", settings=settings, cwd=tmp_path)
    assert result.returncode == 1
    assert json.loads(result.stdout)["findings"][0]["check"] == "settings"
    assert "canary" not in result.stdout + result.stderr


async def test_verify_exits_with_3_until_all_is_fixed(container: Container, settings: Settings, tmp_path: Path) -> None:
    """3 when something is wrong, 0 when it was fixed, 0 when there is nothing; a table or JSON on standard output."""
    await damage(container)
    shown = await run("verify", settings=settings, cwd=tmp_path)
    assert shown.returncode == 3, shown.stderr
    assert "Verifying" in shown.stderr  # the progress bar
    (row,) = (line for line in shown.stdout.splitlines() if "candle" in line)
    assert row.split()[1::2] == ["candle", "2", "2", "4", "1", "0"]
    assert "--fix" in shown.stdout
    full = await run("verify", "--json", settings=settings, cwd=tmp_path)
    assert full.returncode == 3
    assert json.loads(full.stdout)["wrong"] == 7 * 15
    assert json.loads(full.stdout)["domains"]["signal"] == vars(DAMAGED)
    fixed = await run("verify", "--fix", "--json", settings=settings, cwd=tmp_path)
    assert fixed.returncode == 0, fixed.stderr
    assert json.loads(fixed.stdout)["domains"]["signal"]["fixed"] == 7
    again = await run("verify", settings=settings, cwd=tmp_path)
    assert again.returncode == 0
    assert "--fix" not in again.stdout


async def test_rebuild_cache_fills_what_is_asked_for(container: Container, settings: Settings, tmp_path: Path) -> None:
    """All domains, or those of --domain; an unknown one is a bad argument, exit status 2."""
    await fill(container)
    right = await keys(settings)
    for case in CASES:
        cache: Any = getattr(container, f"{case.domain}_cache_service")
        await cache.clear()
    refused = await run("rebuild-cache", "--domain", "nope", settings=settings, cwd=tmp_path)
    assert (refused.returncode, await keys(settings)) == (2, {})
    wanted = ("--domain", "signal", "--domain", "log")
    part = await run("rebuild-cache", "--json", *wanted, settings=settings, cwd=tmp_path)
    assert (part.returncode, json.loads(part.stdout)["domains"]) == (0, {"log": 1, "signal": 1})
    assert len(await keys(settings)) == 2
    done = await run("rebuild-cache", settings=settings, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Rebuilding" in done.stderr
    assert "15 ids in" in done.stdout
    assert await keys(settings) == right
