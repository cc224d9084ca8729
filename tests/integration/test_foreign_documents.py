"""Documents of other programs, as no write of this package leaves them: repaired, named, or left alone."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from bson import ObjectId

from backtest_persist import Container, InvalidPayloadError, PersistStorageInstance, WriteRejectedError
from backtest_persist.core.mongo_store import Restored

NOW = datetime(2024, 1, 1, tzinfo=UTC)
WHEN = 1_700_000_000_000
DATES = {"createDate": NOW, "updatedDate": NOW, "__v": 0}
ARRAY = ["sig", "x"]


async def test_a_write_repairs_what_another_program_left_out(container: Container) -> None:
    """It succeeds and stores a whole document: alone, in a batch, in a call of many, and when it removes an entry."""
    signals, memories, storage = (
        container.mongo_service.collection(f"{name}-items") for name in ("signal", "memory", "storage")
    )
    ids = [ObjectId() for _ in range(3)]
    common = {"strategyName": "s", "exchangeName": "e", "payload": {"n": 0}}
    await signals.insert_many([{"_id": id, "symbol": f"S{n}", **common} for n, id in enumerate(ids)])
    db = container.signal_db_service
    rows = [await db.upsert("S0", "s", "e", {"n": 1})]
    rows += await asyncio.gather(*(db.upsert(f"S{n}", "s", "e", {"n": 1}) for n in (1, 2, 3)))
    assert [(row.id, row.payload) for row in rows[:3]] == [(str(id), {"n": 1}) for id in ids]
    assert [row.create_date for row in rows[:3]] == [id.generation_time for id in ids]
    assert rows[3].create_date == rows[3].updated_date
    assert sorted(await db.find_all(), key=lambda row: row.symbol) == rows
    await storage.insert_one({"backtest": True, "signalId": "a", "payload": None})
    assert await container.storage_db_service.upsert_many(True, [{"id": "a"}, {"id": "b"}]) == 1
    assert {row.signal_id for row in await container.storage_db_service.find_all()} == {"a", "b"}
    entry = {"signalId": "s", "bucketName": "b", "memoryId": "m", "payload": {"n": 1}, "removed": False, **DATES}
    await memories.insert_one(entry)
    memory = container.memory_db_service
    with pytest.raises(InvalidPayloadError, match=f"{entry['_id']} is no MemoryRow: see when"):
        await memory.find_by_context("s", "b", "m")
    assert await memory.soft_remove("s", "b", "m")
    row = await memory.find_by_context("s", "b", "m")
    assert row is not None
    assert (row.removed, row.when, row.payload) == (True, 0, {"n": 1, "removed": True})


async def test_a_list_leaves_out_what_it_cannot_read_and_names_it(
    container: Container, caplog: pytest.LogCaptureFixture
) -> None:
    """One line for a list says which documents and why; the others come as ever, and a read of the one says it too."""
    db = container.storage_db_service
    await db.upsert_many(True, [{"id": str(n)} for n in range(3)])
    collection = container.mongo_service.collection("storage-items")
    bad = {"backtest": True, "signalId": "bad", "payload": None, **DATES}
    undated = {"backtest": True, "signalId": "undated", "payload": {"id": "undated"}}
    await collection.insert_many([bad, undated])
    caplog.set_level(logging.WARNING, "backtest_persist")
    reads: list[Callable[[], Awaitable[Any]]] = [
        PersistStorageInstance(True, ioc=container).read_storage_data,
        lambda: db.list_by_mode(True),
        db.find_all,
        lambda: collect(db.iterate()),
    ]
    for read in reads:
        caplog.clear()
        assert len(await read()) == 3
        (line,) = [record.getMessage() for record in caplog.records]
        assert line.startswith("list.unreadable place=storage-items left_out=2 ids=")
        assert f"{bad['_id']}" in line
        assert f"{undated['_id']}" in line
        assert "is no StorageRow" in line
    with pytest.raises(InvalidPayloadError, match=str(bad["_id"])):
        await db.find_by_context(True, "bad")
    assert (await db.upsert(True, "bad", {"id": "bad"})).id == str(bad["_id"])
    await db.upsert(True, "undated", {"id": "undated"})
    caplog.clear()
    assert len(await db.find_all()) == 5
    assert caplog.records == []


async def collect(rows: Any) -> list[Any]:
    return [row async for row in rows]


async def test_an_array_in_a_context_belongs_to_no_name_in_it(container: Container) -> None:
    """Such a document is not read, overwritten, removed or deleted; a write that it is in the way of names it."""
    mongo, state, interval = container.mongo_service, container.state_db_service, container.interval_db_service
    await state.upsert("other", "b", {"n": 1}, WHEN)
    documents: dict[str, dict[str, Any]] = {
        "state-items": {"signalId": ARRAY, "bucketName": "b", "payload": {"foreign": 1}, "when": 1, **DATES},
        "log-items": {"entryId": ARRAY, "payload": {"id": "sig"}, **DATES},
        "storage-items": {"backtest": True, "signalId": ARRAY, "payload": {"id": "sig"}, **DATES},
        "interval-items": {"bucket": ARRAY, "entryKey": "k", "payload": {}, "removed": False, "when": 1, **DATES},
    }
    for collection, document in documents.items():
        await mongo.collection(collection).insert_one(document)
    await interval.upsert("sig", "mine", {"n": 1}, WHEN)
    assert await state.find_by_context("sig", "b") is None
    found = await asyncio.gather(*(state.find_by_context(name, "b") for name in ("sig", "x", "other")))
    assert [row and row.payload for row in found] == [None, None, {"n": 1}]
    assert await interval.list_keys("sig") == ["mine"]

    async def is_refused(write: Awaitable[Any], collection: str) -> None:
        with pytest.raises(WriteRejectedError, match=f"{documents[collection]['_id']} has an array") as caught:
            await write
        assert caught.value.collection == collection

    await is_refused(state.upsert("sig", "b", {"mine": 1}, WHEN), "state-items")
    ends = await asyncio.gather(
        *(state.upsert(name, "b", {"mine": 1}, WHEN) for name in ("x", "other", "new")), return_exceptions=True
    )
    assert isinstance(ends[0], WriteRejectedError)
    assert str(documents["state-items"]["_id"]) in str(ends[0])
    assert [row.signal_id for row in ends[1:] if not isinstance(row, BaseException)] == ["other", "new"]
    await is_refused(container.log_db_service.create_many([{"id": "a"}, {"id": "x"}]), "log-items")
    await is_refused(container.storage_db_service.upsert_many(True, [{"id": "a"}, {"id": "x"}]), "storage-items")
    assert [row.entry_id for row in await container.log_db_service.list_all()] == ["a"]
    contexts = [state.context_type(signal_id=name, bucket_name="b") for name in ("x", "restored")]
    restored = await state.mongo_store.restore([(context, {"payload": {}, "when": WHEN}) for context in contexts])
    assert restored == [Restored.DIFFERENT, Restored.NEW]
    await is_refused(interval.soft_remove("x", "k"), "interval-items")
    assert await interval.clear_bucket("sig") == 1
    for collection, document in documents.items():
        assert await mongo.collection(collection).find_one({"_id": document["_id"]}) == document
