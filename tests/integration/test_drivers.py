"""The calls in which Motor and PyMongo differ, on both."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from bson import BSON
from motor.motor_asyncio import AsyncIOMotorClient, AsyncIOMotorCollection
from pymongo.asynchronous.collection import AsyncCollection
from pymongo.asynchronous.mongo_client import AsyncMongoClient
from pymongo.errors import InvalidOperation

from backtest_persist import Settings
from backtest_persist.connections.drivers import (
    MOTOR,
    PYMONGO,
    Client,
    Collection,
    Driver,
    aggregate,
    aggregate_raw,
    driver_of,
    list_indexes,
    open_client,
)

DRIVERS = {
    "motor": (MOTOR, AsyncIOMotorClient, AsyncIOMotorCollection),
    "pymongo": (PYMONGO, AsyncMongoClient, AsyncCollection),
}


@pytest.fixture
async def client(settings: Settings) -> AsyncIterator[Client]:
    """A client of the driver that the settings name."""
    uri = settings.mongo_connection_string.get_secret_value()
    client = open_client(settings.mongo_driver, uri, {"appName": "tests"})
    yield client
    await driver_of(client).close(client)


@pytest.fixture
def collection(client: Client) -> Collection:
    """A collection of the database of the test."""
    return client.get_default_database()["drivers"]


def test_a_client_and_its_collections_are_of_the_driver_that_the_setting_names(
    client: Client, collection: Collection, driver: str
) -> None:
    """Also a collection with other options."""
    expected, client_type, collection_type = DRIVERS[driver]
    assert isinstance(client, client_type)
    assert isinstance(collection, collection_type)
    for thing in (client, collection, collection.with_options()):
        assert driver_of(thing) is expected


async def test_aggregations(collection: Collection) -> None:
    """Documents, one by one, or as they come from the server."""
    await collection.insert_many([{"_id": n} for n in range(5)])
    pipeline = [{"$match": {"_id": {"$gt": 1}}}, {"$sort": {"_id": 1}}]
    expected = [{"_id": 2}, {"_id": 3}, {"_id": 4}]
    assert [document async for document in aggregate(collection, pipeline)] == expected
    raw = b"".join([batch async for batch in aggregate_raw(collection, pipeline)])
    assert raw == b"".join(map(BSON.encode, expected))


async def test_the_indexes_of_a_collection(collection: Collection) -> None:
    """None, if it does not exist."""
    assert await list_indexes(collection) == []
    await collection.create_index("symbol", unique=True)
    assert [index["name"] for index in await list_indexes(collection)] == ["_id_", "symbol_1"]


async def test_a_session_is_started_explicitly(client: Client, collection: Collection) -> None:
    """It numbers its writes, and is not causally consistent."""
    session = await driver_of(client).start_session(client)
    await collection.update_one({"_id": 1}, {"$set": {"n": 1}}, upsert=True, session=session)
    assert not session.options.causal_consistency
    assert not session.has_ended
    await session.end_session()
    assert session.has_ended


async def test_closing_a_client_leaves_the_event_loop_free(settings: Settings) -> None:
    """Motor's blocks, and is awaited in a thread."""
    client = open_client(settings.mongo_driver, settings.mongo_connection_string.get_secret_value(), {})
    await client.admin.command("ping")
    closing = asyncio.create_task(driver_of(client).close(client))
    await asyncio.sleep(0)
    await closing
    if settings.mongo_driver == "pymongo":  # Motor's opens again
        with pytest.raises(InvalidOperation):
            await client.admin.command("ping")


@pytest.mark.parametrize(("driver_of_which", "bears"), [(MOTOR, True), (PYMONGO, False)], ids=["motor", "pymongo"])
def test_whether_a_timer_may_cancel_what_awaits_a_driver(driver_of_which: Driver, bears: bool) -> None:
    """See `workarounds.PYMONGO_SURVIVES_A_TIMER`."""
    assert driver_of_which.bears_timers is bears
