"""Indexes: created and verified before the first operation; what blocks them is named, and dropped only when asked."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from pymongo import AsyncMongoClient

from backtest_persist import Container, IndexConflictError, PersistCandleInstance, Settings
from tests.support.cases import CASES


@pytest.fixture
async def database(settings: Settings) -> Any:
    """The bare database of the test."""
    async with AsyncMongoClient[dict[str, Any]](settings.mongo_connection_string.get_secret_value()) as client:
        yield client.get_default_database()


NARROW = [
    ("candle-items", ["symbol", "interval", "timestamp"], "candle_db_service"),
    ("session-items", ["strategyName", "exchangeName", "frameName"], "session_db_service"),
]


@pytest.mark.parametrize(("collection", "fields", "service"), NARROW)
async def test_a_narrow_index_of_an_older_release_stops_init_until_it_is_dropped(
    database: Any, settings: Settings, collection: str, fields: list[str], service: str
) -> None:
    """The error names the index and the command; nothing is dropped unasked; afterwards all is stored."""
    name = await database[collection].create_index([(field, 1) for field in fields], unique=True)
    with pytest.raises(IndexConflictError, match="backtest-persist migrate") as caught:
        async with Container(settings):
            pass
    assert name in str(caught.value)
    assert name in await database[collection].index_information()

    container = Container(settings)
    db: Any = getattr(container, service)
    with pytest.raises(IndexConflictError):
        await db.wait_for_init()
    assert await db.narrow_indexes() == [name]
    assert await db.drop_narrow_indexes() == [name]
    assert await db.count() == 0
    assert name not in await database[collection].index_information()
    await container.close()


CANDLE = {"symbol": "BTCUSDT", "interval": "1m", "exchangeName": "binance", "open": 1, "high": 2, "low": 1, "close": 2}


async def test_candles_under_a_narrow_index_can_be_read_but_not_written(
    database: Any, settings: Settings, warned: Callable[[], list[str]]
) -> None:
    """The docker template of the framework has that index: reads are one warning, each write is the error."""
    now = datetime.now(UTC)
    await database["candle-items"].create_index([(field, 1) for field in NARROW[0][1]], unique=True)
    await database["candle-items"].insert_many(
        {**CANDLE, "timestamp": float(60_000 * n), "volume": n, "createDate": now, "updatedDate": now}
        for n in range(28_000_000, 28_000_003)
    )
    since = 28_000_000 * 60_000
    series: tuple[Any, Any, Any] = ("BTCUSDT", "1m", "binance")
    container = Container(settings)
    db, adapter = container.candle_db_service, PersistCandleInstance(*series, ioc=container)
    row = await db.find_by_context(*series, since)
    assert row is not None
    assert row.volume == 28_000_000

    async def read() -> None:
        assert await db.find_by_id(row.id) == row
        assert await db.find_by_filter({"timestamp": since}) == row
        assert len(await db.find_all()) == len(await db.find_range(*series, since, 3)) == 3
        assert [row.timestamp async for row in db.iterate({"volume": 28_000_001})] == [since + 60_000]
        assert (await db.count(), (await db.paginate({}, limit=1, offset=2)).total) == (3, 3)
        assert await db.find_gaps(*series, since, since + 240_000) == [(since + 180_000, since + 240_000)]
        assert await db.has_candle(*series, since)
        assert len(await adapter.read_candles_data(3, since) or []) == 3
        assert await container.candle_cache_service.get_candle_id(*series, since) == row.id

    candle = {**CANDLE, "timestamp": since + 180_000, "volume": 1}
    writes: list[Callable[[], Awaitable[Any]]] = [
        lambda: db.create(*series, candle),
        lambda: db.create_many(*series, [candle]),
        lambda: adapter.write_candles_data([candle]),
        lambda: db.wait_for_init(),
    ]
    for write in writes:
        await asyncio.gather(read(), read())
        with pytest.raises(IndexConflictError, match="backtest-persist migrate"):
            await write()
    await read()
    assert warned() == ["mongo.narrow_index"]
    assert len(await database["candle-items"].index_information()) == 2

    await db.drop_narrow_indexes()  # as `migrate` does, in another process
    await db.create(*series, candle)
    assert await db.count() == 4
    await container.close()


async def test_an_index_that_is_not_unique_is_named(database: Any, settings: Settings) -> None:
    """The right fields without uniqueness would let two documents of one context in."""
    await database["signal-items"].create_index([("symbol", 1), ("strategyName", 1), ("exchangeName", 1)])
    container = Container(settings)
    with pytest.raises(IndexConflictError, match="not unique"):
        await container.signal_db_service.wait_for_init()
    await database["signal-items"].drop_indexes()
    await container.signal_db_service.wait_for_init()
    await container.close()


CONFLICTS: dict[str, tuple[list[tuple[str, int]], dict[str, Any], str]] = {
    "the name of the unique one": (
        [("symbol", 1)],
        {"name": "symbol_1_strategyName_1_exchangeName_1"},
        "other fields",
    ),
    "not by case": (
        [("symbol", 1), ("strategyName", 1), ("exchangeName", 1)],
        {"unique": True, "collation": {"locale": "en", "strength": 2}},
        "collation",
    ),
    "not by case, in another order": (
        [("exchangeName", 1), ("strategyName", 1), ("symbol", 1)],
        {"unique": True, "collation": {"locale": "en", "strength": 2}},
        "collation",
    ),
    "hidden": (
        [("symbol", 1), ("strategyName", 1), ("exchangeName", 1)],
        {"unique": True, "hidden": True},
        "hidden",
    ),
    "expires": ([("createDate", 1)], {"expireAfterSeconds": 3600}, "deletes documents"),
    "sparse": (
        [("symbol", 1), ("strategyName", 1), ("exchangeName", 1)],
        {"unique": True, "sparse": True},
        "not unique",
    ),
}


@pytest.mark.parametrize(("fields", "options", "problem"), CONFLICTS.values(), ids=CONFLICTS.keys())
async def test_an_index_that_does_harm_is_named_with_the_command_that_drops_it(
    database: Any, settings: Settings, fields: list[tuple[str, int]], options: dict[str, Any], problem: str
) -> None:
    """Nothing is dropped unasked; when the command was given, the next call goes through."""
    name = await database["signal-items"].create_index(fields, **options)
    container = Container(settings)
    with pytest.raises(IndexConflictError, match=problem) as caught:
        await container.signal_db_service.count()
    assert f"db['signal-items'].dropIndex('{name}')" in str(caught.value)
    await database["signal-items"].drop_index(name)
    assert await container.signal_db_service.count() == 0
    await container.close()


async def test_an_index_of_another_kind_is_no_conflict(database: Any, settings: Settings) -> None:
    """An index of the user's own, with a collation as well, is left alone as long as it refuses no document."""
    collation = {"locale": "en", "strength": 2}
    await database["signal-items"].create_index([("symbol", 1)], collation=collation)
    await database["signal-items"].create_index([("payload.n", 1)])
    container = Container(settings)
    assert await container.signal_db_service.count() == 0
    assert len(await database["signal-items"].index_information()) == 4
    await container.close()


async def test_existing_duplicates_are_named(database: Any, settings: Settings) -> None:
    """Two documents of one context stop init with a message that says what to do, and are left alone."""
    twice = {"bucket": "b", "entryKey": "k"}
    await database["measure-items"].insert_many([dict(twice), dict(twice)])
    container = Container(settings)
    with pytest.raises(IndexConflictError, match="keep one document"):
        await container.measure_db_service.wait_for_init()
    assert await database["measure-items"].count_documents({}) == 2
    await container.close()


async def test_an_index_under_another_name_is_good_enough(database: Any, settings: Settings) -> None:
    """A unique index on the same fields is taken as it is, whatever it is called."""
    await database["log-items"].create_index([("entryId", 1)], unique=True, name="by_entry")
    await database["log-items"].create_index([("createDate", -1)], name="by_date")
    container = Container(settings)
    await container.log_db_service.wait_for_init()
    assert set(await database["log-items"].index_information()) == {"_id_", "by_entry", "by_date"}
    await container.close()


async def test_many_containers_prepare_an_empty_database_at_once(database: Any, settings: Settings) -> None:
    """Eight containers that start together leave every unique index in place."""
    containers = [Container(settings) for _ in range(8)]
    await asyncio.gather(*(container.wait_for_init() for container in containers))
    for case in CASES:
        indexes = await database[case.collection].index_information()
        assert any(index.get("unique") for index in indexes.values()), case.collection
    for container in containers:
        await container.close()
