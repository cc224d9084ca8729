"""`find_narrow_indexes` and `migrate`: only the narrow unique indexes are dropped, and no document is touched."""

from typing import Any

import pytest

from backtest_persist import Container, IndexConflictError
from backtest_persist.operations import find_narrow_indexes, migrate
from backtest_persist.operations.migration import Migrated
from tests.support.cases import CASES

CANDLES = "symbol_1_interval_1_timestamp_1"
SESSIONS = "strategyName_1_exchangeName_1_frameName_1"


async def create_narrow_indexes(container: Container) -> None:
    """Create the indexes of the older release, and a document and an unrelated index beside them."""
    database = container.mongo_service.database
    await database["candle-items"].create_index([("symbol", 1), ("interval", 1), ("timestamp", 1)], unique=True)
    fields = ("strategyName", "exchangeName", "frameName")
    await database["session-items"].create_index([(field, 1) for field in fields], unique=True)
    await database["session-items"].create_index([("symbol", 1)])
    await database["session-items"].insert_one({"strategyName": "t", "exchangeName": "e", "frameName": "f"})


async def test_narrow_indexes_are_found_and_left_alone(container: Container) -> None:
    """The names are given by collection; no index and no collection is created or dropped."""
    assert await find_narrow_indexes(container) == {}
    assert await container.mongo_service.database.list_collection_names() == []
    await create_narrow_indexes(container)
    for _ in range(2):
        assert await find_narrow_indexes(container) == {"candle-items": [CANDLES], "session-items": [SESSIONS]}


async def test_narrow_indexes_are_dropped_and_the_right_ones_created(container: Container) -> None:
    """Afterwards every collection has its unique index, other indexes and documents are there, and nothing is left."""
    await create_narrow_indexes(container)
    with pytest.raises(IndexConflictError):
        await container.wait_for_init()
    assert await migrate(container) == Migrated({"candle-items": [CANDLES], "session-items": [SESSIONS]})
    for case in CASES:
        collection: Any = container.mongo_service.collection(case.collection)
        indexes: dict[str, Any] = await collection.index_information()
        assert indexes["_".join(f"{field}_1" for field in case.index)]["unique"], case
        assert not {CANDLES, SESSIONS} & indexes.keys()
    sessions: Any = container.mongo_service.collection("session-items")
    assert "symbol_1" in await sessions.index_information()
    assert await sessions.count_documents({}) == 1
    assert await migrate(container) == Migrated({})


async def test_a_database_without_narrow_indexes_is_left_alone(container: Container) -> None:
    """Without anything to drop, no collection is created either."""
    assert await migrate(container) == Migrated({})
    assert await container.mongo_service.database.list_collection_names() == []
