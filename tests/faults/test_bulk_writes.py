"""Bulk writes that did not simply succeed: the write concern was not met, or a document was removed meanwhile."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from bson import ObjectId
from pymongo import MongoClient

from backtest_persist import Container, Settings, SignalRow, WriteOutcomeUnknownError
from tests.support.commands import Commands, close_client, monitored_client
from tests.support.fail_points import Failing

NOT_MET = {"writeConcernError": {"code": 64, "errmsg": "waiting for replication timed out"}}
"""Added to a reply without any error of a single write: applied by the primary, but not replicated in time."""


def write_all(container: Container, names: list[str], value: str) -> list[Awaitable[SignalRow]]:
    """Return upserts of several contexts; awaited together, they share a bulk."""
    return [container.signal_db_service.upsert(name, "t", "e", {"n": value}) for name in names]


async def stored(container: Container) -> dict[str, Any]:
    """Return the payloads in MongoDB by symbol."""
    collection = container.mongo_service.collection(container.signal_db_service.collection)
    return {document["symbol"]: document["payload"]["n"] for document in await collection.find().to_list(None)}


# --- a write concern that was not met ---


async def test_no_caller_of_a_bulk_whose_write_concern_was_not_met_is_acknowledged(
    container: Container, failing: Failing
) -> None:
    """Each of them gets an unknown outcome, for new and existing documents; Redis gets no id until a later write."""
    db, cache = container.signal_db_service, container.signal_cache_service
    old, new = ["s0", "s1"], ["s2", "s3"]
    await asyncio.gather(*write_all(container, old, "old"))
    async with failing("update", **NOT_MET):
        ends = await asyncio.gather(*write_all(container, [*old, *new, "s3"], "new"), return_exceptions=True)
    for end in ends:
        assert isinstance(end, WriteOutcomeUnknownError)
        assert "write concern was not met" in str(end)
    assert len({id(end) for end in ends}) == len(ends)
    assert [await cache.has_signal_id(name, "t", "e") for name in (*old, *new)] == [True, True, False, False]
    assert await stored(container) == dict.fromkeys([*old, *new], "new")
    rows = await asyncio.gather(*write_all(container, [*old, *new], "again"))
    assert await db.find_all(sort=[("symbol", 1)]) == rows
    assert [await cache.get_signal_id(row.symbol, "t", "e") for row in rows] == [row.id for row in rows]


ITEMS = [{"id": f"i{n}"} for n in range(5)]
CANDLES = [
    {"timestamp": -n * 60_000, **dict.fromkeys(("open", "high", "low", "close", "volume"), 1.0)} for n in range(5)
]
CALLS: dict[str, tuple[str, int, Callable[[Container], Awaitable[int]]]] = {
    "storage": ("update", 5, lambda c: c.storage_db_service.upsert_many(True, ITEMS)),
    "notification": ("update", 5, lambda c: c.notification_db_service.upsert_many(True, ITEMS)),
    "log": ("update", 5, lambda c: c.log_db_service.create_many(ITEMS)),
    "candle": ("insert", 5, lambda c: c.candle_db_service.create_many("s", "1m", "e", CANDLES)),
    "interval": ("delete", 0, lambda c: c.interval_db_service.clear_bucket("b")),
}
"""Calls that send one bulk, by domain: the command, the number of documents after it, the call."""


@pytest.mark.parametrize("domain", CALLS)
async def test_no_call_of_many_items_whose_write_concern_was_not_met_is_acknowledged(
    container: Container, failing: Failing, domain: str
) -> None:
    """The call has an unknown outcome, no id reaches Redis, and repeating it is safe."""
    command, count, write = CALLS[domain]
    db, cache = getattr(container, f"{domain}_db_service"), getattr(container, f"{domain}_cache_service")
    await container.interval_db_service.upsert("b", "k", {}, 0)
    await container.interval_cache_service.clear()
    await db.wait_for_init()
    with pytest.raises(WriteOutcomeUnknownError, match="write concern was not met"):
        async with failing(command, **NOT_MET):
            await write(container)
    assert await cache.size() == 0
    assert await db.count() == count
    assert await write(container) == 0
    assert await db.count() == count


# --- a document that was removed meanwhile ---


class Removing(Commands):
    """Deletes a document as soon as the next bulk is acknowledged, before the driver returns."""

    def __init__(self, settings: Settings, collection: str) -> None:
        super().__init__()
        self._uri = settings.mongo_connection_string.get_secret_value()
        self._collection = collection
        self.doomed: ObjectId | None = None
        self.removed = 0

    def succeeded(self, event: Any) -> None:
        if event.command_name == "update" and self.doomed is not None:
            query, self.doomed = {"_id": self.doomed}, None
            with MongoClient[dict[str, Any]](self._uri) as client:
                collection = client.get_default_database()[self._collection]
                self.removed += collection.delete_one(query).deleted_count


@asynccontextmanager
async def removing(settings: Settings, driver: str) -> AsyncGenerator[tuple[Container, Removing]]:
    """Open a container, and a listener that deletes its documents behind its back."""
    commands = Removing(settings, "signal-items")
    client = monitored_client(settings, driver, commands)
    container = Container(settings, mongo_client=client)
    try:
        yield container, commands
    finally:
        await container.close()
        await close_client(client)


@pytest.mark.parametrize("warm", [True, False], ids=["warm", "cold"])
async def test_a_document_removed_after_its_bulk_is_written_again(settings: Settings, driver: str, warm: bool) -> None:
    """Its writers get the row that is stored, under a new id, whether Redis knew the old one or not."""
    names = [f"s{n}" for n in range(4)]
    async with removing(settings, driver) as (container, commands), Container(settings) as witness:
        db, cache = container.signal_db_service, container.signal_cache_service
        before = await asyncio.gather(*write_all(container, names, "old"))
        if not warm:
            await cache.clear()
        commands.doomed = ObjectId(before[1].id)
        commands.names.clear()
        first, *rows = await asyncio.gather(
            db.upsert(names[1], "t", "e", {"n": "first"}), *write_all(container, names, "new")
        )
        assert commands.removed == 1
        writes = [name for name in commands.names if name != "find"]
        assert await stored(container) == dict.fromkeys(names, "new")
        assert await witness.signal_db_service.find_all(sort=[("symbol", 1)]) == rows
        assert await asyncio.gather(*(db.find_by_context(name, "t", "e") for name in names)) == rows
        assert writes == ["update", "findAndModify", "findAndModify"]
        assert [row.id == old.id for row, old in zip(rows, before, strict=True)] == [True, False, True, True]
        assert (first.id, first.payload) == (rows[1].id, {"n": "first"})
        assert [await cache.get_signal_id(name, "t", "e") for name in names] == [row.id for row in rows]
