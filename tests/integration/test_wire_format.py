"""The wire format: values are stored exactly as the contract spells them, and values of other writers are read."""

import asyncio
import math
import re
from contextlib import aclosing
from datetime import UTC, datetime
from typing import Any

import pytest
from bson import ObjectId
from bson.decimal128 import Decimal128
from bson.int64 import Int64

from backtest_persist import Container, InvalidPayloadError, Registry, Settings
from backtest_persist.connections import to_plain
from backtest_persist.core.row import Row
from tests.support.cases import CASES, PAYLOAD, WHEN, Case

each_domain = pytest.mark.parametrize("case", CASES, ids=str)


def db(container: Container, case: Case) -> Any:
    return getattr(container, f"{case.domain}_db_service")


def cache(container: Container, case: Case) -> Any:
    return getattr(container, f"{case.domain}_cache_service")


async def write(container: Container, case: Case) -> Row:
    if case.domain == "candle":
        symbol, interval, exchange_name, _ = case.args
        return await db(container, case).create(symbol, interval, exchange_name, *case.written)
    return await db(container, case).upsert(*case.args, *case.written)


def redis_key(container: Container, case: Case) -> str:
    return container.settings.redis_key_prefix + case.redis_key


@each_domain
async def test_a_write_leaves_the_golden_document_and_the_golden_key(container: Container, case: Case) -> None:
    """A write stores the document and the Redis key exactly as the contract spells them."""
    before = datetime.now(UTC)
    row = await write(container, case)

    documents = await container.mongo_service.database[case.collection].find({}).to_list(None)
    assert len(documents) == 1
    document = to_plain(documents[0])
    assert isinstance(document.pop("_id"), ObjectId)
    created, updated = document.pop("createDate"), document.pop("updatedDate")
    assert created == updated
    assert abs((created - before).total_seconds()) < 60
    assert document == case.document
    assert [type(document[name]) for name in case.document] == [type(value) for value in case.document.values()]

    redis = container.redis_service.client
    assert await redis.get(redis_key(container, case)) == row.id.encode()
    assert await redis.ttl(redis_key(container, case)) == -1


@each_domain
async def test_the_unique_index_has_the_fields_of_the_context_in_order(container: Container, case: Case) -> None:
    """Each collection has the compound unique index of its context and the promised secondary ones, no others."""
    await db(container, case).wait_for_init()
    indexes = await container.mongo_service.database[case.collection].index_information()
    found = {tuple(index["key"]): bool(index.get("unique")) for index in indexes.values()}
    secondary: dict[str, tuple[tuple[str, int], ...]] = {
        "measure": (("bucket", 1), ("removed", 1)),
        "interval": (("bucket", 1), ("removed", 1)),
        "memory": (("signalId", 1), ("bucketName", 1), ("removed", 1)),
        "storage": (("backtest", 1), ("createDate", -1)),
        "notification": (("backtest", 1), ("createDate", -1)),
        "log": (("createDate", -1),),
    }
    expected: dict[tuple[tuple[str, int], ...], bool] = {
        (("_id", 1),): False,
        tuple((name, 1) for name in case.index): True,
    }
    if case.domain in secondary:
        expected[secondary[case.domain]] = False
    assert found == expected


@each_domain
async def test_a_document_and_a_key_written_by_hand_are_read(container: Container, case: Case) -> None:
    """A document with JavaScript number types and a key written by another program serve a read by one find by _id."""
    object_id = ObjectId()
    now = datetime.now(UTC).replace(microsecond=0)
    foreign = {**case.foreign, "_id": object_id, "createDate": now, "updatedDate": now}
    await container.mongo_service.database[case.collection].insert_one(foreign)
    await container.redis_service.client.set(redis_key(container, case), str(object_id))

    row = await db(container, case).find_by_context(**case.context)

    assert row.id == str(object_id)
    assert row.create_date == row.updated_date == now
    for name, value in case.context.items():
        assert getattr(row, name) == value
        assert type(getattr(row, name)) is type(value)
    if "when" in case.foreign:
        assert row.when == int(case.foreign["when"])
        assert type(row.when) is int
    if "payload" in case.foreign:
        assert row.payload == case.foreign["payload"]
    assert db(container, case).stats.hits == 1
    assert await cache(container, case).get(case.redis_key.split(":", 1)[1]) == str(object_id)


@each_domain
async def test_the_cache_service_speaks_of_the_cache(container: Container, case: Case) -> None:
    """has, get and set of a cache service agree with one another, positionally and by keyword."""
    service = cache(container, case)
    has, get = getattr(service, f"has_{case.domain}_id"), getattr(service, f"get_{case.domain}_id")
    assert await has(*case.args) is False
    assert await get(**case.context) is None

    row = await write(container, case)
    assert await has(**case.context) is True
    assert await get(*case.args) == row.id

    await service.clear()
    assert await get(*case.args) is None
    assert await getattr(service, f"set_{case.domain}_id")(row) == row.id
    assert await get(*case.args) == row.id
    assert await service.size() == 1


@each_domain
async def test_a_miss_is_answered_by_mongo_and_refills_the_cache(container: Container, case: Case) -> None:
    """After Redis lost everything a read finds the row by its context and remembers its id again."""
    row = await write(container, case)
    await cache(container, case).clear()

    assert await db(container, case).find_by_context(*case.args) == row
    assert db(container, case).stats.hits == 0
    assert await cache(container, case).get(case.redis_key.split(":", 1)[1]) == row.id
    assert await db(container, case).find_by_context(*case.args) == row
    assert db(container, case).stats.hits == 1


@each_domain
async def test_concurrent_first_writes_make_one_document(container: Container, case: Case) -> None:
    """Forty first writes of one context at once leave one document, and every writer gets its row."""
    rows = await asyncio.gather(*(write(container, case) for _ in range(40)))
    assert len({row.id for row in rows}) == 1
    assert await db(container, case).count() == 1


@each_domain
async def test_a_poisoned_cache_entry_is_a_miss_and_is_repaired(settings: Settings, case: Case) -> None:
    """Junk, binary, a foreign id or a list under the key never reach the reader; the entry is put right."""
    async with aclosing(Container(settings.model_copy(update={"id_memory": 0}))) as container:
        row = await write(container, case)
        other = {**case.document, "_id": ObjectId(), "createDate": row.create_date, "updatedDate": row.create_date}
        name = case.index[-1]
        other[name] = {str: "another", bool: not other[name], int: 60_000}[type(other[name])]  # pyright: ignore[reportArgumentType]
        await container.mongo_service.database[case.collection].insert_one(other)
        redis, key = container.redis_service.client, redis_key(container, case)

        for poison in (b"junk", b"\xff\xfe\x00", b"f" * 24, str(other["_id"]).encode(), b"x" * 1_000_000):
            await redis.set(key, poison)
            assert await db(container, case).find_by_context(*case.args) == row
            assert await redis.get(key) == row.id.encode()
        await redis.delete(key)
        await redis.rpush(key, "a", "b")
        assert await db(container, case).find_by_context(*case.args) == row


@each_domain
async def test_a_document_that_lacks_a_field_is_a_typed_error(container: Container, case: Case) -> None:
    """A damaged document is named by its id and field, without its values."""
    row = await write(container, case)
    fields = {"candle": "close", "risk": "positions", **dict.fromkeys(KEYED, "createDate")}
    field = fields.get(case.domain, "payload")
    await container.mongo_service.database[case.collection].update_one({}, {"$unset": {field: 1}})
    with pytest.raises(InvalidPayloadError, match=f"{row.id}.*{field}"):
        await db(container, case).find_by_context(*case.args)


async def insert(container: Container, case: Case, changes: dict[str, Any]) -> ObjectId:
    """Put a document of the case into the database, as another program left it; `...` marks a missing field."""
    now = datetime.now(UTC)
    object_id = ObjectId()
    document = {**case.document, "_id": object_id, "createDate": now, "updatedDate": now, **changes}
    document = {name: value for name, value in document.items() if value is not ...}
    await container.mongo_service.database[case.collection].insert_one(document)
    return object_id


KEYED = ("measure", "interval", "memory")
"""The domains whose entries can be removed; one without a payload lacks the field."""

DAMAGE: dict[str, list[Any]] = {
    "when": [1_700_000_000_000.5, None, math.nan, math.inf, "1700000000000", True, {}, Decimal128("1.5"), ...],
    "payload": ["text", 5, [1], ...],
    "positions": ["text", 5, None, {}, ...],
    "removed": ["text", 5, {}],
    "close": ["text", None, {}, ...],
    "createDate": ["text", None, ...],
    "updatedDate": ["text", None, ...],
}


@each_domain
async def test_a_damaged_document_is_named_in_reads_and_in_lists(
    container: Container, case: Case, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever is wrong in a field, the id of the document and the name of the field are told.

    A read of the document raises an error; a list leaves it out, with a warning.
    """
    service = db(container, case)
    damages = [(field, value) for field, values in DAMAGE.items() for value in values]
    damages += [("payload", None)] if case.domain in ("log", "storage", "notification") else []
    damages = [damage for damage in damages if case.domain not in KEYED or damage != ("payload", ...)]
    for field, value in damages:
        if field not in {**case.document, "createDate": 0, "updatedDate": 0}:
            continue
        object_id = await insert(container, case, {field: value})
        for reading in (service.find_by_context(*case.args), service.find_by_id(str(object_id))):
            with pytest.raises(InvalidPayloadError, match=f"{object_id}.*{field}"):
                await reading
        lists: list[Any] = [service.find_all()]
        if case.domain in ("measure", "interval"):
            lists.append(service.list_keys(case.args[0]))
        if case.domain == "memory":
            lists.append(service.list_entries(*case.args[:2]))
        for reading in lists:
            caplog.clear()
            assert await reading == []
            if not (field == "removed" and reading is not lists[0]):
                assert re.search(f"{object_id}.*{field}", caplog.text)
        await container.mongo_service.database[case.collection].delete_many({})


@pytest.mark.parametrize("case", [case for case in CASES if case.domain in KEYED], ids=str)
@pytest.mark.parametrize("removed", [..., None])
@pytest.mark.parametrize("payload", [{"a": 1}, {"removed": True}, {"removed": 1}, None, ...], ids=repr)
async def test_without_a_mark_the_payload_tells_whether_an_entry_is_removed(
    container: Container, case: Case, removed: Any, payload: Any
) -> None:
    """A document whose `removed` is missing or null is a tombstone only if its payload says so, in reads and lists."""
    await insert(container, case, {"removed": removed, "payload": payload})
    service = db(container, case)
    row = await service.find_by_context(*case.args)
    gone = payload == {"removed": True} and payload["removed"] is True
    assert row.removed is gone
    assert row.payload == (None if payload is ... else payload)
    key = case.args[-1]
    if case.domain == "memory":
        listed = [entry.memory_id for entry in await service.list_entries(*case.args[:2])]
    else:
        listed = await service.list_keys(case.args[0])
    assert listed == ([] if gone else [key])


LIVE_KEYS = {
    "recent": "recent_cache:live:binance:trend%3Av2::BTC/USDT:USDT",
    "session": "session_cache:binance:trend%3Av2::BTC/USDT%3AUSDT:live",
}
"""The Redis keys of live trading, whose frame is empty; the original spells them like that, but for the escapes."""


@pytest.mark.parametrize("case", [case for case in CASES if case.domain in LIVE_KEYS], ids=str)
async def test_live_trading_has_no_frame(container: Container, settings: Settings, case: Case) -> None:
    """Its documents, with an empty frameName, are found, cached, listed, read and written, beside one with a frame."""
    context = {**case.context, "frame_name": "", "backtest": False}
    object_id = str(await insert(container, case, {"frameName": "", "backtest": False}))
    await insert(container, case, {"backtest": False})
    service = db(container, case)
    row = await service.find_by_context(**context)
    assert (row.id, row.frame_name, row.payload) == (object_id, "", PAYLOAD)
    redis: Any = container.redis_service.client
    assert await redis.get(f"{settings.redis_key_prefix}{LIVE_KEYS[case.domain]}") == object_id.encode()
    assert await getattr(cache(container, case), f"get_{case.domain}_id")(**context) == object_id
    assert await service.find_all({"frame_name": ""}) == [row]
    assert [found async for found in service.iterate({"frame_name": ""})] == [row]

    adapter = await getattr(Registry(container), case.domain)(**context)
    read, write = getattr(adapter, f"read_{case.domain}_data"), getattr(adapter, f"write_{case.domain}_data")
    assert await read() == PAYLOAD
    await write({"n": 1}, WHEN)
    assert await read() == {"n": 1}
    written = await container.mongo_service.collection(case.collection).find_one({"_id": ObjectId(object_id)})
    assert written is not None
    assert (written["frameName"], written["payload"]) == ("", {"n": 1})
    assert await service.count() == 2


async def test_numbers_of_a_payload_come_back_as_plain_int_and_float(container: Container) -> None:
    """An int64 of the wire is an int in Python, not a BSON type."""
    await container.signal_db_service.upsert("s", "t", "e", {"small": 1, "big": 2**62, "half": 0.5})
    await container.mongo_service.database["signal-items"].update_one({}, {"$set": {"payload.wide": Int64(7)}})
    row = await container.signal_db_service.find_by_context("s", "t", "e")
    assert row is not None
    assert row.payload is not None
    assert row.payload == {"small": 1, "big": 2**62, "half": 0.5, "wide": 7}
    assert [type(value) for value in row.payload.values()] == [int, int, float, int]


async def read_by_adapter(persist: Registry, case: Case) -> Any:
    """Return the stored case as strategy code sees it."""
    context, args = case.context, case.args
    match case.domain:
        case "candle":
            candle = await persist.candle(context["symbol"], context["interval"], context["exchange_name"])
            window = await candle.read_candles_data(1, context["timestamp"])
            assert window is not None
            return window[0]
        case "risk":
            return await (await persist.risk(*args)).read_position_data(WHEN)
        case "partial":
            return await (await persist.partial(*args[:3])).read_partial_data(args[3], WHEN)
        case "breakeven":
            return await (await persist.breakeven(*args[:3])).read_breakeven_data(args[3], WHEN)
        case "storage":
            return (await (await persist.storage(args[0])).read_storage_data())[0]
        case "notification":
            return (await (await persist.notification(args[0])).read_notification_data())[0]
        case "log":
            return (await (await persist.log()).read_log_data())[0]
        case "measure":
            return await (await persist.measure(args[0])).read_measure_data(args[1])
        case "interval":
            return await (await persist.interval(args[0])).read_interval_data(args[1], when=WHEN)
        case "memory":
            return await (await persist.memory(*args[:2])).read_memory_data(args[2], when=WHEN)
        case domain:
            instance: Any = await getattr(persist, domain)(*args)
            return await getattr(instance, f"read_{domain}_data")()


@each_domain
async def test_every_adapter_reads_what_another_program_wrote(container: Container, case: Case) -> None:
    """A hand-written document, without a key in Redis, reaches strategy code as plain data."""
    now = datetime.now(UTC)
    await container.mongo_service.database[case.collection].insert_one(
        {**case.foreign, "_id": ObjectId(), "createDate": now, "updatedDate": now}
    )
    found = await read_by_adapter(Registry(container), case)
    if case.domain == "candle":
        assert found == case.written[0]
        assert [type(value) for value in found.values()] == [int, float, float, float, float, float]
    else:
        assert found == case.foreign.get("payload", case.foreign.get("positions"))
