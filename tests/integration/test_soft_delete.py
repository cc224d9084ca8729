"""Tombstones in the db services: a removed entry keeps its document."""

import asyncio
from typing import Any

import pytest
from bson import ObjectId

from backtest_persist import Container, Registry
from backtest_persist.core.mongo_store import Restored
from tests.support.cases import CASES, Case

WHEN = 1_600_000_000_000


async def test_a_tombstone_keeps_its_document(container: Container) -> None:
    """find_by_context still returns a removed row; an object payload carries the mark, a null payload does not."""
    memory = await Registry(container).memory("s-1", "notes")
    await memory.write_memory_data({"text": "a", "$x": {"a.b": 1}}, "m1", WHEN)
    await memory.write_memory_data(None, "m2", WHEN)
    await memory.remove_memory_data("m1")
    await memory.remove_memory_data("m2")
    first = await container.memory_db_service.find_by_context("s-1", "notes", "m1")
    second = await container.memory_db_service.find_by_context("s-1", "notes", "m2")
    assert first is not None
    assert second is not None
    assert (first.removed, first.payload) == (True, {"text": "a", "$x": {"a.b": 1}, "removed": True})
    assert (second.removed, second.payload) == (True, None)
    assert await container.memory_db_service.has_memory_entry("s-1", "notes", "m1") is True
    assert await container.memory_db_service.soft_remove("s-1", "notes", "never") is False
    assert await container.memory_db_service.count() == 2


async def test_clear_bucket_removes_one_bucket(container: Container) -> None:
    """Clearing an interval bucket deletes its markers and no others; a cached id of one is a miss afterwards."""
    await container.interval_db_service.upsert("a", "k", {"n": 1}, WHEN)
    await container.interval_db_service.upsert("b", "k", {"n": 2}, WHEN)
    assert await container.interval_db_service.clear_bucket("a") == 1
    assert await container.interval_db_service.find_by_context("a", "k") is None
    assert await container.interval_db_service.list_keys("b") == ["k"]


@pytest.mark.parametrize("case", [case for case in CASES if case.domain in ("measure", "interval", "memory")], ids=str)
async def test_the_framework_can_remove_an_entry_without_a_payload(container: Container, case: Case) -> None:
    """It sets ``payload.removed``, which the server refuses in null: so no payload is stored as no field at all."""
    db: Any = getattr(container, f"{case.domain}_db_service")
    collection: Any = container.mongo_service.collection(case.collection)
    when = case.written[1:]
    keys = [(*case.args[:-1], name) for name in ("alone", "one of many", "another of many", "replaced", "restored")]
    alone, *many = keys[:3]
    await db.upsert(*alone, None, *when)
    await asyncio.gather(*(db.upsert(*args, None, *when) for args in many))
    await db.upsert(*keys[3], {"n": 1}, *when)
    assert (await db.upsert(*keys[3], None, *when)).payload is None
    context = db.context_type(**dict(zip(case.context, keys[4], strict=True)))
    content = {"payload": None, "removed": False, **({"when": WHEN} if when else {})}
    for outcome in (Restored.NEW, Restored.SAME):
        assert await db.mongo_store.restore([(context, content)]) == [outcome]
    for args in keys:
        row = await db.find_by_context(*args)
        assert (row.payload, row.removed) == (None, False)
        by_framework = {"$set": {"removed": True, "payload.removed": True}}
        await collection.update_one({"_id": ObjectId(row.id)}, by_framework)
        row = await db.find_by_context(*args)
        assert (row.payload, row.removed) == ({"removed": True}, True)
        await db.upsert(*args, None, *when)
        assert await db.soft_remove(*args)
        row = await db.find_by_context(*args)
        assert (row.payload, row.removed) == (None, True)
