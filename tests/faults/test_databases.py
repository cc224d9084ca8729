"""Databases that change under a warm Redis: a stale id in Redis never leads to a row."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from bson import encode
from bson.raw_bson import RawBSONDocument
from pydantic import SecretStr
from pymongo import AsyncMongoClient, IndexModel, UpdateOne
from pymongo.errors import AutoReconnect

from backtest_persist import (
    Container,
    InvalidPayloadError,
    PersistCandleInstance,
    PersistMemoryInstance,
    Settings,
    StoreUnavailableError,
)
from backtest_persist.core import indexes
from backtest_persist.core.bulk import write_bulk
from backtest_persist.testing.subjects import START, candle
from tests.support.fail_points import Failing
from tests.support.servers import PrivateRedis, wait_until

NAMES = [f"e{n}" for n in range(10)]


@pytest.fixture(scope="session")
def driver() -> str:
    """One driver: these tests are about what Redis holds."""
    return "pymongo"


@pytest.fixture
async def database(settings: Settings) -> AsyncIterator[Any]:
    """The database of the test, for another program."""
    uri = settings.mongo_connection_string.get_secret_value()
    async with AsyncMongoClient[dict[str, Any]](uri) as client:
        yield client.get_default_database()


async def write(container: Container, value: str, names: list[str] = NAMES) -> None:
    for name in names:
        await container.signal_db_service.upsert("s", "t", name, {"n": f"{value} {name}"})


async def read(container: Container, names: list[str] = NAMES) -> list[Any]:
    """The values, one by one and all by one list."""
    rows = [await container.signal_db_service.find_by_context("s", "t", name) for name in names]
    listed = {row.exchange_name: row.payload for row in await container.signal_db_service.find_all()}
    assert [row and row.payload for row in rows] == [listed.get(name) for name in names]
    return [row and row.payload for row in rows]


def series(container: Container) -> PersistCandleInstance:
    return PersistCandleInstance("s", "1m", "e", ioc=container)


async def cached(container: Container) -> int:
    """How many ids Redis holds."""
    ids = [await container.signal_cache_service.get_signal_id("s", "t", name) for name in NAMES]
    return len(ids) - ids.count(None)


async def test_after_the_database_was_dropped_nothing_is_there(container: Container, database: Any) -> None:
    """Ids of a database that is gone lead nowhere, and the rows that are written next are those that are read."""
    await write(container, "before")
    await database.client.drop_database(database.name)
    assert await cached(container) == len(NAMES)
    assert await read(container) == [None] * len(NAMES)
    await write(container, "after", NAMES[:5])
    assert await read(container) == [{"n": f"after {name}"} for name in NAMES[:5]] + [None] * 5


async def test_a_dropped_database_gets_its_unique_indexes_back(settings: Settings, database: Any) -> None:
    """Writers that know nothing of the drop still make one document of a context, by the indexes they create again."""
    async with Container(settings) as ours, Container(settings) as theirs:
        both = (ours, theirs)
        for number in range(5):
            await database.client.drop_database(database.name)
            await asyncio.gather(
                *(container.signal_db_service.upsert("s", "t", f"one{number}", {}) for container in both),
                *(container.state_db_service.upsert("s", f"b{n}", {}, 0) for n in range(20) for container in both),
                *(container.storage_db_service.upsert_many(True, [{"id": "a"}, {"id": "b"}]) for container in both),
                *(container.measure_db_service.soft_remove("b", "k") for container in both),
            )
            await series(ours).write_candles_data([candle(0)])
            counts = {
                service.collection: await service.count()
                for service in (ours.signal_db_service, ours.state_db_service, ours.storage_db_service)
            }
            assert counts == {"signal-items": 1, "state-items": 20, "storage-items": 2}
            await asyncio.gather(*(series(container).write_candles_data([candle(1)]) for container in both))
            assert await ours.candle_db_service.count() == 2
        for collection in await database.list_collection_names():
            indexes = await database[collection].index_information()
            assert any(index.get("unique") for index in indexes.values()), collection


async def test_a_unique_index_that_is_being_built_is_waited_for(settings: Settings, database: Any) -> None:
    """It is listed before it refuses anything; until it does, the server takes no first write of a context."""
    async with Container(settings) as container:
        db = container.signal_db_service
        collection = database[db.collection]
        await collection.drop()
        await collection.insert_many([{"symbol": "s", "strategyName": "t", "exchangeName": f"e{n}"} for n in range(9)])
        pause = {"configureFailPoint": "hangAfterSettingUpIndexBuild", "mode": "alwaysOn"}
        await database.client.admin.command(pause)
        building = asyncio.create_task(collection.create_indexes([index_of(db)]))
        try:
            await wait_until(lambda: is_listed(collection))
            writing = asyncio.gather(*(db.upsert("s", "t", "new", {"n": n}) for n in range(5)))
            await asyncio.wait([asyncio.ensure_future(writing)], timeout=0.3)
            assert not writing.done()
        finally:
            await database.client.admin.command({**pause, "mode": "off"})
        await building
        await writing
        assert await db.count({"exchange_name": "new"}) == 1


async def test_a_unique_index_is_used_once_the_server_lets_it_be(settings: Settings, database: Any) -> None:
    """Of several processes that ask for it at the same time some are told that it exists a little too early."""
    async with AsyncExitStack() as stack:
        writers = [series(await stack.enter_async_context(Container(settings))) for _ in range(4)]
        collection = database["candle-items"]
        for number in range(20):
            await collection.drop()
            await collection.insert_one({"exchangeName": "another"})
            await asyncio.gather(*(writer.write_candles_data([candle(number)]) for writer in writers))
            assert await collection.count_documents({"symbol": "s"}) == 1


async def test_an_index_that_is_dropped_while_it_is_waited_for_is_created_again(
    container: Container, database: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A write finds the unique index gone, and creates it; before it can be used it is dropped again, twice."""
    db = container.signal_db_service
    await db.upsert("s", "t", "e", {"n": 0})
    looks: list[str] = []
    is_usable = indexes._is_usable

    async def dropped(collection: Any, fields: Any) -> bool:
        looks.append(collection.name)
        if len(looks) < 3:
            await database[db.collection].drop_indexes()
        return await is_usable(collection, fields)

    monkeypatch.setattr(indexes, "_is_usable", dropped)
    await database[db.collection].drop_indexes()
    await db.upsert("s", "t", "e", {"n": 1})
    assert looks == [db.collection] * 3
    assert any(index.get("unique") for index in (await database[db.collection].index_information()).values())


async def test_what_a_bulk_has_stored_is_not_denied(database: Any) -> None:
    """The index disappears in the middle and cannot be made again: that is the error of what came after it alone."""

    async def prepare() -> None:
        raise StoreUnavailableError("no index")

    update = {"$setOnInsert": {"x": 1}}
    operations = [UpdateOne({"n": n}, update, upsert=True, hint={"n": 1} if n else None) for n in range(3)]
    bulk = await write_bulk(database["items"], operations, None, prepare)
    assert set(bulk.upserted) == {0}
    assert {position: str(error) for position, error in bulk.refused.items()} == dict.fromkeys((1, 2), "no index")
    assert await database["items"].count_documents({}) == 1


@pytest.mark.parametrize("refused", ["hint", "duplicate"])
async def test_what_is_told_of_the_second_attempt_of_a_bulk_is_of_that_alone(
    settings: Settings, failing: Failing, refused: str
) -> None:
    """Writes of the first attempt are acknowledged, though the connection breaks while the others are repeated."""
    uri = settings.mongo_connection_string.get_secret_value()
    async with AsyncMongoClient[dict[str, Any]](uri, retryWrites=False) as client:
        items = client.get_default_database()["items"]
        await items.create_index([("key", 1)], unique=True)
        await items.insert_one({"n": 0, "key": 0})
        prepared: list[bool] = []

        async def prepare() -> None:
            prepared.append(True)

        def upsert(n: int) -> UpdateOne:
            key = 0 if n % 2 and refused == "duplicate" else n
            hint = {"gone": 1} if n % 2 and refused == "hint" else None
            return UpdateOne({"n": n}, {"$set": {"key": key}}, upsert=True, hint=hint)

        operations = [upsert(n) for n in range(5)]
        async with failing("update", after=1, closeConnection=True):
            bulk = await write_bulk(items, operations, None, prepare)
        assert set(bulk.upserted) == {2, 4}
        assert {position: type(error) for position, error in bulk.refused.items()} == dict.fromkeys(
            (1, 3), AutoReconnect
        )
        assert prepared == [True] * (refused == "hint")
        assert {item["n"] for item in await items.find().to_list()} == {0, 2, 4}
        assert [item["_id"] for item in await items.find({"n": {"$gt": 0}}).sort("n").to_list()] == [
            *bulk.upserted.values()
        ]


def index_of(db: Any) -> IndexModel:
    return IndexModel([(name, 1) for name in db.context_type.wire_names()], unique=True)


async def is_listed(collection: Any) -> bool:
    return len(await collection.index_information()) > 1


async def test_whether_something_is_there_is_not_for_redis_to_say(container: Container, database: Any) -> None:
    """`has_candle`, `has_memory_entry` and `has_memory_data` are False after the drop, though Redis has the ids."""
    candles, memories = container.candle_db_service, container.memory_db_service
    memory = PersistMemoryInstance("s", "b", ioc=container)
    await candles.create("s", "1m", "e", candle(0))
    await memories.upsert("s", "b", "m", {"n": 1}, 0)

    async def has() -> list[bool]:
        found = candles.has_candle("s", "1m", "e", START), memories.has_memory_entry("s", "b", "m")
        return [await asked for asked in (*found, memory.has_memory_data("m"))]

    assert await has() == [True] * 3
    await database.client.drop_database(database.name)
    assert await container.candle_cache_service.has_candle_id("s", "1m", "e", START)
    assert await container.memory_cache_service.has_memory_id("s", "b", "m")
    assert await has() == [False] * 3


async def test_after_a_restore_the_older_values_are_there(container: Container, database: Any) -> None:
    """A database that was put back to an older copy has the rows of the copy: none that is newer, none that is gone."""
    await write(container, "older", NAMES[:5])
    collection = database["signal-items"]
    copy = await collection.find().to_list(None)
    await write(container, "newer")
    await collection.delete_many({})
    await collection.insert_many(copy)
    assert await cached(container) == len(NAMES)
    assert await read(container) == [{"n": f"older {name}"} for name in NAMES[:5]] + [None] * 5
    await write(container, "again")
    assert await read(container) == [{"n": f"again {name}"} for name in NAMES]
    assert await container.signal_db_service.count() == len(NAMES)


async def test_two_databases_that_share_one_redis_see_their_own(settings: Settings, tmp_path: Path) -> None:
    """Without a prefix they overwrite each other's ids, and still each reads its own rows and no other."""
    redis = PrivateRedis(tmp_path)
    await redis.start()
    try:
        uri = urlsplit(settings.mongo_connection_string.get_secret_value())
        other_uri = uri._replace(path=f"{uri.path}-other").geturl()
        shared = {"redis_url": SecretStr(f"unix://{redis.socket}"), "redis_key_prefix": ""}
        mine, theirs = (
            Container(settings.model_copy(update={**shared, "mongo_connection_string": SecretStr(uri)}))
            for uri in (uri.geturl(), other_uri)
        )
        async with mine, theirs:
            try:
                await write(mine, "mine")
                assert await read(theirs) == [None] * len(NAMES)
                await write(theirs, "theirs", NAMES[:5])
                for _ in range(2):
                    assert await read(mine) == [{"n": f"mine {name}"} for name in NAMES]
                    assert await read(theirs) == [{"n": f"theirs {name}"} for name in NAMES[:5]] + [None] * 5
                assert await redis.command("DBSIZE") == len(NAMES)
            finally:
                await theirs.mongo_service.client.drop_database(theirs.mongo_service.database.name)
    finally:
        await redis.kill()


async def test_a_document_that_is_no_utf_8_is_named_as_such(container: Container, database: Any) -> None:
    """No driver writes one, but the server would take it."""
    await container.log_db_service.create_many([{"id": "good"}])
    document = encode({"entryId": "bad", "payload": {"text": "abcd"}}).replace(b"abcd", b"\xff" * 4)
    await database["log-items"].insert_one(RawBSONDocument(document))
    with pytest.raises(InvalidPayloadError, match=r"List in log-items: a stored document cannot be decoded.*utf-8"):
        await container.log_db_service.find_all()
    with pytest.raises(InvalidPayloadError, match="Find in log-items: a stored document cannot be decoded"):
        await container.log_db_service.find_by_filter({"entry_id": "bad"})
    assert (await container.log_db_service.find_by_filter({"entry_id": "good"})) is not None
