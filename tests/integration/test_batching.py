"""Batches of reads and writes: few commands, an answer for each caller, and every promise kept."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from itertools import product
from typing import Any

import pytest
from bson import ObjectId

from backtest_persist import (
    Container,
    InvalidPayloadError,
    PersistIntervalInstance,
    PersistSignalInstance,
    Settings,
    SignalRow,
    WriteRejectedError,
)
from tests.support.commands import Commands, monitored_container

CALLERS = 64


@pytest.fixture
async def listened(settings: Settings, driver: str) -> AsyncIterator[tuple[Container, Commands]]:
    """A container that is prepared, and whose MongoDB commands are recorded from now on."""
    async with monitored_container(settings, driver) as (container, commands):
        await container.signal_db_service.wait_for_init()
        commands.names.clear()
        yield container, commands


def context(number: int) -> tuple[str, str, str]:
    return f"S{number}", "trend", "binance"


async def write_all(container: Container, payloads: list[dict[str, Any]]) -> list[SignalRow]:
    db = container.signal_db_service
    return await asyncio.gather(*(db.upsert(*context(number), payload) for number, payload in enumerate(payloads)))


async def read_all(container: Container, count: int) -> list[SignalRow | None]:
    db = container.signal_db_service
    return await asyncio.gather(*(db.find_by_context(*context(number)) for number in range(count)))


async def redis_calls(container: Container) -> Counter[str]:
    redis: Any = container.redis_service.client
    statistics: dict[str, Any] = await redis.info("commandstats")
    return Counter({name.removeprefix("cmdstat_"): value["calls"] for name, value in statistics.items()})


async def test_reads_that_wait_together_share_their_commands(listened: tuple[Container, Commands]) -> None:
    """Sixty-four reads at once take a handful of commands, with warm and with cold Redis; each finds its own row."""
    container, commands = listened
    await write_all(container, [{"n": number} for number in range(CALLERS)])
    for warm in (True, False):
        if not warm:
            await container.signal_cache_service.clear()
        commands.names.clear()
        before = await redis_calls(container)
        rows = await read_all(container, CALLERS)
        assert [row and row.payload for row in rows] == [{"n": number} for number in range(CALLERS)]
        sent = await redis_calls(container) - before
        assert set(commands.names) == {"find"}
        assert len(commands.names) <= (3 if warm else 6)
        assert sent["get"] + sent["mget"] <= 3
        assert sent["set"] + sent["mset"] <= (0 if warm else 3)
    assert await container.signal_cache_service.size() == CALLERS


async def test_writes_that_wait_together_share_their_commands(listened: tuple[Container, Commands]) -> None:
    """Sixty-four writes at once take a handful of commands, of new and of old documents; the ids reach Redis."""
    container, commands = listened
    rows: list[SignalRow] = []
    for turn in range(2):
        commands.names.clear()
        before = await redis_calls(container)
        rows = await write_all(container, [{"n": number, "turn": turn} for number in range(CALLERS)])
        sent = await redis_calls(container) - before
        assert [row.payload for row in rows] == [{"n": number, "turn": turn} for number in range(CALLERS)]
        assert commands.names.count("findAndModify") <= 1
        assert len(commands.names) <= 5
        assert sent["set"] + sent["mset"] <= 3
    stored = {row.symbol: row for row in await container.signal_db_service.find_all()}
    assert len(stored) == CALLERS
    for row in rows:
        assert row == stored[row.symbol]  # id, both dates, payload
        assert await container.signal_cache_service.get_signal_id(*context(int(row.symbol[1:]))) == row.id


async def test_every_caller_gets_a_row_of_its_own(container: Container) -> None:
    """Callers of one context that read together share nothing that one of them could change."""
    db = container.signal_db_service
    await db.upsert(*context(0), {"levels": [1]})
    rows = await asyncio.gather(*(db.find_by_context(*context(0)) for _ in range(5)))
    for row in rows:
        assert row is not None
        assert row.payload == {"levels": [1]}
        levels: Any = (row.payload or {})["levels"]
        levels.append(2)


async def test_a_context_without_a_document_is_none_among_others(container: Container) -> None:
    """In one batch some are found by id, some by context, and some not at all."""
    db = container.signal_db_service
    await write_all(container, [{"n": number} for number in range(10)])
    for number in range(0, 10, 2):
        await container.signal_cache_service.delete(f"binance:trend:S{number}")
    rows = await read_all(container, 20)
    assert [row and row.payload for row in rows] == [*({"n": n} for n in range(10)), *([None] * 10)]
    assert await db.find_by_context(*context(99)) is None


async def test_wrong_ids_mislead_no_reader(container: Container) -> None:
    """With ids swapped, malformed or deleted, each reader still finds its own row, and Redis is corrected."""
    rows = await write_all(container, [{"n": number} for number in range(20)])
    cache = container.signal_cache_service
    for number, row in enumerate(rows):
        wrong = [rows[number - 1].id, "junk", str(ObjectId()), row.id][number % 4]
        await cache.set(f"binance:trend:S{number}", wrong)
    found = await read_all(container, 20)
    assert [row and row.payload for row in found] == [{"n": number} for number in range(20)]
    for number, row in enumerate(rows):
        assert await cache.get_signal_id(*context(number)) == row.id


async def test_a_damaged_document_is_the_error_of_its_reader_alone(container: Container) -> None:
    """The other readers of the batch get their rows."""
    await write_all(container, [{"n": number} for number in range(8)])
    await container.mongo_service.collection("signal-items").update_one(
        {"symbol": "S3"}, {"$set": {"createDate": "yesterday"}}
    )
    db = container.signal_db_service
    outcomes = await asyncio.gather(*(db.find_by_context(*context(n)) for n in range(8)), return_exceptions=True)
    assert isinstance(outcomes[3], InvalidPayloadError)
    assert [isinstance(outcome, SignalRow) for outcome in outcomes].count(True) == 7


async def test_a_write_that_the_server_refuses_fails_alone(container: Container) -> None:
    """One of a bulk is refused by a validator of the collection: its caller is told, the others are stored."""
    await container.signal_db_service.wait_for_init()
    database = container.mongo_service.database
    await database.command("collMod", "signal-items", validator={"payload.bad": {"$ne": True}})
    payloads = [{"n": number, "bad": number in (0, 5)} for number in range(16)]
    db = container.signal_db_service
    outcomes = await asyncio.gather(
        *(db.upsert(*context(number), payload) for number, payload in enumerate(payloads)), return_exceptions=True
    )
    for number, outcome in enumerate(outcomes):
        if number in (0, 5):
            assert isinstance(outcome, WriteRejectedError)
            assert f"symbol='S{number}'" in str(outcome)
        else:
            assert isinstance(outcome, SignalRow)
    assert await db.count() == 14


async def test_writes_of_one_context_keep_their_order(container: Container) -> None:
    """The last of many pending writes is what is stored, removals in their turn, and each caller gets its own row."""
    db = container.memory_db_service
    key = ("sig", "notes", "m")
    for _ in range(5):
        calls: list[Any] = []
        for number in range(30):
            calls.append(db.upsert(*key, {"n": number}, -number))
            if number % 10 == 9:
                calls.append(db.soft_remove(*key))
        calls.append(db.upsert(*key, {"n": "last"}, 0))
        answers = await asyncio.gather(*calls)
        rows = [row for row in answers if not isinstance(row, bool)]
        assert [row.payload for row in rows] == [*({"n": number} for number in range(30)), {"n": "last"}]
        assert len({row.id for row in rows}) == 1
        found = await db.find_by_context(*key)
        assert found is not None
        assert (found.payload, found.removed, found.when) == ({"n": "last"}, False, 0)
        assert await db.soft_remove(*key) is True


BATCHES = {"one context": (0, 0, 0, 0), "several contexts": (0, 1, 0, 2, 0, 1)}
"""Contexts of upserts that share one batch, in the order of the calls."""


@pytest.mark.parametrize("numbers", BATCHES.values(), ids=BATCHES)
async def test_the_last_of_several_upserts_of_a_context_is_stored(
    listened: tuple[Container, Commands], settings: Settings, numbers: tuple[int, ...]
) -> None:
    """Within one batch the last call wins, for new and existing documents; each caller gets the row of its own call."""
    container, commands = listened
    db = container.signal_db_service
    last = {number: call for call, number in enumerate(numbers)}
    async with Container(settings) as witness:
        for turn in range(3):
            commands.names.clear()
            rows = await asyncio.gather(
                *(db.upsert(*context(number), {"turn": turn, "call": call}) for call, number in enumerate(numbers))
            )
            writes = [name for name in commands.names if name != "find"]
            assert writes == ["findAndModify" if len(last) == 1 else "update"]
            assert [row.payload for row in rows] == [{"turn": turn, "call": call} for call in range(len(numbers))]
            assert [row.symbol for row in rows] == [f"S{number}" for number in numbers]
            expected = [rows[call] for _, call in sorted(last.items())]
            for row, number in zip(rows, numbers, strict=True):
                assert (row.id, row.create_date) == (expected[number].id, expected[number].create_date)
            assert await read_all(container, len(last)) == expected
            assert await read_all(witness, len(last)) == expected
            stored = await container.mongo_service.collection(db.collection).find().sort("symbol").to_list(None)
            assert [dict(document["payload"]) for document in stored] == [row.payload for row in expected]


@pytest.mark.parametrize("damage", [{"$set": {"createDate": "garbage"}}, {"$unset": {"createDate": ""}}], ids=str)
async def test_a_write_repairs_the_dates_of_a_damaged_document(container: Container, damage: dict[str, Any]) -> None:
    """A document that another program left without its createDate gets that of its id, alone and in a batch."""
    db = container.signal_db_service
    rows = await write_all(container, [{"n": number} for number in range(4)])
    collection = container.mongo_service.collection(db.collection)
    created = ObjectId(rows[1].id).generation_time
    for count in (1, 6):
        await collection.update_one({"symbol": rows[1].symbol}, damage)
        with pytest.raises(InvalidPayloadError, match=f"{rows[1].id}.*create"):
            await db.find_by_context(*context(1))
        numbers = range(count) if count > 1 else [1]
        written = await asyncio.gather(*(db.upsert(*context(number), {"n": count}) for number in numbers))
        mine = next(row for row in written if row.id == rows[1].id)
        assert (mine.create_date, mine.payload) == (created, {"n": count})
        assert await db.find_by_context(*context(1)) == mine
    stored = await collection.find_one({"symbol": rows[1].symbol})
    assert stored is not None
    assert stored["createDate"] == created
    assert [row.create_date for row in written if row.symbol == rows[2].symbol] == [rows[2].create_date]


async def test_an_adapter_write_repairs_the_dates_of_a_damaged_document(container: Container) -> None:
    """Alone, in a batch after which nothing is read otherwise, and in one with upserts, claims and removals."""
    db = container.interval_db_service
    adapter = PersistIntervalInstance("b", ioc=container)
    collection = container.mongo_service.collection(db.collection)
    keys = [f"k{number}" for number in range(6)]

    def writes(n: int) -> list[Awaitable[Any]]:
        return [adapter.write_interval_data({"n": n}, key, -n) for key in keys]

    for n in range(3):  # afterwards the ids are known, and the documents count as sound
        await asyncio.gather(*writes(n))
    before = {row.entry_key: (row.id, row.create_date) for row in await db.find_all()}
    before["k1"] = before["k1"][0], ObjectId(before["k1"][0]).generation_time
    others: list[Callable[[], Awaitable[Any]]] = [
        lambda: adapter.remove_interval_data("absent"),
        lambda: db.upsert("b", "k1", {"n": "older"}, -1),
        lambda: db.claim("b", "k0", {"n": "refused"}, -1),
    ]
    damages: list[dict[str, Any]] = [{"$set": {"createDate": "garbage"}}, {"$unset": {"createDate": ""}}]
    batches = [[], *([other] for other in others), others]
    for n, (calls, damage) in enumerate(product(batches, damages), 10):
        await collection.update_one({"entryKey": "k1"}, damage)
        with pytest.raises(InvalidPayloadError):
            await db.find_by_context("b", "k1")
        await asyncio.gather(*(call() for call in calls), *writes(n))
        rows = await db.find_all()
        assert {row.entry_key: (row.id, row.create_date) for row in rows} == before
        assert [row.payload for row in rows] == [{"n": n}] * 6
    row, *_ = await asyncio.gather(db.upsert("b", "k1", {"n": "older"}, -1), *writes(50))
    assert (row.id, row.create_date) == before["k1"]
    await collection.update_one({"entryKey": "k1"}, damages[0])
    await adapter.write_interval_data({"n": 99}, "k1", 0)
    assert {row.entry_key: (row.id, row.create_date) for row in await db.find_all()} == before


async def test_an_adapter_write_of_a_document_that_is_gone_makes_another_one(container: Container) -> None:
    """Deleted behind the back of this process, which knows its id, it is stored anew, with dates of its own."""
    collection = container.mongo_service.collection("signal-items")
    adapters = [PersistSignalInstance(*context(number), ioc=container) for number in range(4)]
    for n in range(3):
        await asyncio.gather(*(adapter.write_signal_data({"n": n}) for adapter in adapters))
    before = [row and row.id for row in await read_all(container, 4)]
    await collection.delete_one({"symbol": "S1"})
    await asyncio.gather(*(adapter.write_signal_data({"n": 3}) for adapter in adapters))
    rows = await container.signal_db_service.find_all(sort=[("symbol", 1)])
    assert [row.payload for row in rows] == [{"n": 3}] * 4
    assert [row.id == id for row, id in zip(rows, before, strict=True)] == [True, False, True, True]
    assert await read_all(container, 4) == rows


async def test_a_read_that_starts_after_a_write_never_sees_an_older_value(container: Container) -> None:
    """Under many readers, each read that begins after an acknowledged write finds that write or a later one."""
    db = container.state_db_service
    acknowledged, done = 0, False
    violations: list[tuple[int, int]] = []
    await db.upsert("s", "b", {"n": 0}, 0)

    async def write() -> None:
        nonlocal acknowledged, done
        for number in range(1, 200):
            await db.upsert("s", "b", {"n": number}, -number)
            acknowledged = number
        done = True

    async def read() -> None:
        while not done:
            floor = acknowledged
            row = await db.find_by_context("s", "b")
            assert row is not None
            assert row.payload is not None
            if row.payload["n"] < floor:
                violations.append((floor, row.payload["n"]))

    await asyncio.gather(write(), *(read() for _ in range(16)))
    assert violations == []


async def test_a_cancelled_write_is_never_applied_after_a_later_one(container: Container) -> None:
    """Whenever it was cancelled, it is applied before the next write or never."""
    db = container.state_db_service
    for delay in range(40):
        first = asyncio.create_task(db.upsert("s", "b", {"n": f"cancelled {delay}"}, 0))
        for _ in range(delay):
            await asyncio.sleep(0)
        first.cancel()
        second = await db.upsert("s", "b", {"n": delay}, 0)
        assert second.payload == {"n": delay}
        await asyncio.gather(first, return_exceptions=True)
        found = await db.find_by_context("s", "b")
        assert found is not None
        assert found.payload == {"n": delay}


async def test_a_cancelled_caller_leaves_the_others_of_its_batch(container: Container) -> None:
    """Half of the readers and writers give up; the other half gets its answers."""
    await write_all(container, [{"n": number} for number in range(CALLERS)])
    db = container.signal_db_service
    for delay in (0, 1, 2, 5, 20):
        reads = [asyncio.create_task(db.find_by_context(*context(number))) for number in range(CALLERS)]
        writes = [asyncio.create_task(db.upsert(*context(number), {"n": delay})) for number in range(CALLERS)]
        for _ in range(delay):
            await asyncio.sleep(0)
        for task in (*reads[::2], *writes[::2]):
            task.cancel()
        outcomes = await asyncio.gather(*reads, *writes, return_exceptions=True)
        kept = [*outcomes[1:CALLERS:2], *outcomes[CALLERS + 1 :: 2]]
        assert all(isinstance(outcome, SignalRow) for outcome in kept)


async def test_many_callers_are_all_served(container: Container) -> None:
    """A thousand at once, over several domains, end without an error."""
    db, states = container.signal_db_service, container.state_db_service
    await asyncio.gather(*(db.upsert(*context(number % 300), {"n": number}) for number in range(500)))
    rows = await asyncio.gather(
        *(db.find_by_context(*context(number % 300)) for number in range(500)),
        *(states.upsert(f"s{number % 50}", "b", {"n": number}, -number) for number in range(500)),
    )
    assert all(row is not None for row in rows)
    assert await db.count() == 300
    assert await states.count() == 50
