"""Tombstones in the db services: a removed entry keeps its document."""

from backtest_persist import Container, Registry

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
