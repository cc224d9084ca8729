"""`examine`: its findings on databases, users, options and clocks; it writes nothing."""

from pathlib import Path
from typing import Any

import pytest
from pymongo import AsyncMongoClient

from backtest_persist import Container, Settings
from backtest_persist.operations import Level, examine, rebuild
from backtest_persist.operations.doctor import mongo as doctor_mongo
from backtest_persist.operations.doctor import redis as doctor_redis
from tests.support.cases import CASES
from tests.support.commands import monitored_container
from tests.support.containers import open_container, with_uri
from tests.support.damage import damage_ids
from tests.support.diagnoses import levels, texts, values
from tests.support.documents import fill, key_of, stored
from tests.support.servers import private_mongod


async def test_all_is_well_with_a_filled_database(container: Container, settings: Settings) -> None:
    """Every finding is ok, names the driver and servers in use, and measures clocks and latencies in ms."""
    await container.wait_for_init()
    await fill(container)
    diagnosis = await examine(container)
    assert levels(diagnosis) == {}, texts(diagnosis)
    assert diagnosis.level is Level.OK
    measured = values(diagnosis)
    assert measured["driver"]["driver"] == settings.mongo_driver
    assert measured["cache"] == {"right": len(CASES), "stale": 0, "foreign": 0, "missing": 0}
    assert measured["mongodb.topology"] == {"kind": "replica set", "members": 1}
    assert measured["mongodb.write_concern"]["w"] == "majority"
    assert measured["redis.key_prefix"]["prefix"] == settings.redis_key_prefix
    assert {measured[f"mongodb.indexes.{case.domain}"]["state"] for case in CASES} == {"there"}
    assert abs(measured["mongodb.clock"]["difference_ms"]) < 1000
    assert 0 < measured["mongodb.latency"]["median_ms"] < 1000
    assert 0 < measured["redis.latency"]["median_ms"] < 1000


async def test_the_doctor_writes_nothing(settings: Settings, driver: str) -> None:
    """No command that writes is sent, and neither an empty nor a damaged database is changed."""
    async with monitored_container(settings, driver) as (container, commands):
        assert (await examine(container)).level is Level.OK
        assert await stored(settings) == ({}, {})
        assert set(commands.names) <= {
            *("aggregate", "buildInfo", "connectionStatus", "find", "getMore", "hello"),
            *("listCollections", "listIndexes", "ping"),
        }
        await damage_ids(container)
        before = await stored(settings)
        await examine(container)
        assert await stored(settings) == before


async def test_a_new_database_is_told_from_one_without_indexes(container: Container) -> None:
    """Collections that do not exist yet are fine; one that lacks an index is a warning that names it."""
    measured = values(await examine(container))
    assert measured["mongodb.indexes.signal"]["state"] == "new"
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
    measured = values(diagnosis)
    assert measured["mongodb.indexes.candle"]["state"] == "narrow"
    assert measured["mongodb.indexes.risk"]["state"] == "conflicting"


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
    assert "--keep newest" in texts(diagnosis)["mongodb.indexes.signal"]


async def test_the_doctor_does_not_wait_for_a_slow_redis(container: Container, monkeypatch: pytest.MonkeyPatch) -> None:
    """All checks of Redis together have one deadline."""
    monkeypatch.setattr(doctor_redis, "REDIS_SECONDS", 0.0)
    diagnosis = await examine(container)
    assert levels(diagnosis) == {"redis": Level.PROBLEM}
    assert "not examined completely" in texts(diagnosis)["redis"]


async def test_a_sample_shows_a_damaged_cache(container: Container) -> None:
    """Wrong ids are a warning with the command that corrects them, and so are ids that expire."""
    await container.wait_for_init()
    await damage_ids(container)
    redis: Any = container.redis_service.client
    await redis.expire(key_of(container, CASES[0], 0), 1000)
    diagnosis = await examine(container)
    assert levels(diagnosis) == {"cache": Level.WARNING, "cache.expiry": Level.WARNING}
    measured = values(diagnosis)
    assert measured["cache"] == {
        "right": 2 * len(CASES),
        "stale": 2 * len(CASES),
        "foreign": 4 * len(CASES),
        "missing": len(CASES),
    }
    assert measured["cache.expiry"] == {"expiring": 1}
    assert "verify --fix" in texts(diagnosis)["cache"]


async def test_a_sample_of_many_ids_stays_small(container: Container) -> None:
    """Of 500 entries 20 are looked at, of 500 documents as many."""
    await container.log_db_service.create_many([{"id": f"{n}"} for n in range(500)])
    await container.log_cache_service.clear()
    measured = values(await examine(container))
    assert measured["cache"] == {"right": 0, "stale": 0, "foreign": 0, "missing": 20}
    await rebuild(container)
    measured = values(await examine(container))
    assert measured["cache"] == {"right": 20, "stale": 0, "foreign": 0, "missing": 0}


async def test_options_of_the_connection_string_are_judged(settings: Settings) -> None:
    """w=1 and a read preference are warnings, w=0 a problem."""
    uri = settings.mongo_connection_string.get_secret_value()
    async with open_container(with_uri(settings, f"{uri}&w=1&readPreference=secondaryPreferred")) as container:
        diagnosis = await examine(container)
    warned = {"mongodb.write_concern": Level.WARNING, "mongodb.read_preference": Level.WARNING}
    assert levels(diagnosis) == warned
    assert "secondaryPreferred, is ignored" in texts(diagnosis)["mongodb.read_preference"]
    async with open_container(with_uri(settings, f"{uri}&w=0")) as container:
        assert levels(await examine(container)) == {"mongodb": Level.PROBLEM}


@pytest.mark.parametrize("driver", ["motor"], indirect=True)
async def test_clocks_that_differ_are_a_warning(container: Container, monkeypatch: pytest.MonkeyPatch) -> None:
    """The difference is measured in ms, with its sign."""

    class SlowClock(doctor_mongo.datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return super().now(tz) - doctor_mongo.timedelta(seconds=5)

    monkeypatch.setattr(doctor_mongo, "datetime", SlowClock)
    diagnosis = await examine(container)
    assert levels(diagnosis) == {"mongodb.clock": Level.WARNING}
    assert "ahead of this machine" in texts(diagnosis)["mongodb.clock"]
    assert 4000 < values(diagnosis)["mongodb.clock"]["difference_ms"] < 6000


@pytest.mark.parametrize("driver", ["motor"], indirect=True)
async def test_an_old_mongod_is_a_warning(container: Container, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server below the oldest version that has all that is needed."""
    monkeypatch.setattr(doctor_mongo, "OLDEST_MONGODB", (99, 0))
    assert levels(await examine(container)) == {"mongodb.version": Level.WARNING}


@pytest.mark.parametrize("driver", ["motor"], indirect=True)
async def test_a_standalone_mongod_with_users(settings: Settings, tmp_path: Path) -> None:
    """That it is standalone is a warning; the actions a user lacks are named, and no name or password is."""
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
            async with open_container(with_uri(settings, f"{login}db{source}")) as container:
                diagnosis = await examine(container)
            assert "canary" not in repr(diagnosis)
            return levels(diagnosis), texts(diagnosis)

        standalone = {"mongodb.topology": Level.WARNING}
        assert (await seen_by("writer:canary"))[0] == standalone
        found, said = await seen_by("narrow:canary")
        names = [*(case.domain for case in CASES), "lease"]
        lacking = dict.fromkeys((f"mongodb.indexes.{name}" for name in names), Level.PROBLEM)
        assert found == {**standalone, "mongodb.rights": Level.WARNING, **lacking}
        assert "remove on interval-items, candle-items; only methods that delete" in said["mongodb.rights"]
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


@pytest.mark.parametrize("driver", ["pymongo"], indirect=True)
async def test_a_replica_set_that_was_never_initiated(settings: Settings, tmp_path: Path) -> None:
    """It is a problem, with the command that initiates it."""
    async with (
        private_mongod(tmp_path, "--replSet", "rs0") as uri,
        open_container(with_uri(settings, f"{uri}db?directConnection=true")) as container,
    ):
        diagnosis = await examine(container)
    assert levels(diagnosis) == {"mongodb.topology": Level.PROBLEM}
    assert "backtest-persist initiate" in texts(diagnosis)["mongodb.topology"]
