"""Writes that wait together: single updates share bulks as upserts do, and calls of many items keep their place."""

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import pytest

from backtest_persist import Container, Settings, StoreUnavailableError
from backtest_persist.core import write_queue
from backtest_persist.core.db_service import DbService
from tests.support.commands import monitored_container
from tests.support.proxy import DEADLINE, acknowledged, behind_proxy, with_short_deadline
from tests.support.stopwatch import GRACE, Stopwatch, slowness

CALLS = 200
ROUND_TRIP = 0.05
START = 1_700_000_040_000


def candle(number: int) -> dict[str, Any]:
    return {"timestamp": START + number * 60_000, **dict.fromkeys(("open", "high", "low", "close", "volume"), 1.0)}


async def test_single_updates_over_a_slow_line_share_their_round_trips(settings: Settings) -> None:
    """200 of each kind at once take about as long as a few of them, and every one is answered truly."""
    async with behind_proxy(settings) as (proxy, container):
        memory, candles = container.memory_db_service, container.candle_db_service
        intervals = container.interval_db_service
        log = container.log_db_service
        await asyncio.gather(intervals.wait_for_init(), log.wait_for_init())
        await asyncio.gather(*(memory.upsert("s", "b", f"m{n}", {"n": n}, START) for n in range(CALLS)))
        await candles.wait_for_init()
        proxy.delay = ROUND_TRIP / 2
        kinds: list[Callable[[int], Awaitable[Any]]] = [
            lambda n: memory.soft_remove("s", "b", f"m{n}"),
            lambda n: memory.soft_remove("s", "b", f"missing{n}"),
            lambda n: candles.create("L", "1m", "x", candle(n)),
            lambda n: candles.create("L", "1m", "x", {**candle(n), "close": 1.0, "volume": 2.0}),
            lambda n: intervals.claim("b", f"k{n}", {"by": 1}, START),
            lambda n: intervals.claim("b", f"k{n}", {"by": 2}, START),
            lambda n: log.create_many([{"id": f"l{n}"}]),
            lambda n: log.create_many([{"id": f"l{n}"}, {"id": f"l{n}b"}]),
        ]
        answers: list[list[Any]] = []
        for kind in kinds:
            with Stopwatch() as watch:
                answers.append(await asyncio.gather(*map(kind, range(CALLS))))
            assert watch.seconds < 5 * ROUND_TRIP + slowness()
        proxy.delay = 0
        removed, missing, first, second, claimed, again, new, half_new = answers
        assert (new, half_new) == ([1] * CALLS, [1] * CALLS)
        assert (claimed, again) == ([True] * CALLS, [False] * CALLS)
        assert removed == [True] * CALLS
        assert missing == [False] * CALLS
        assert [row.data() for row in first] == [row.data() for row in second] == [candle(n) for n in range(CALLS)]
        assert [row.id for row in first] == [row.id for row in second]
        assert await memory.list_entries("s", "b") == []
        assert await candles.count() == CALLS


async def test_writes_of_different_kinds_share_a_bulk(settings: Settings, driver: str) -> None:
    """Upserts and tombstones of different contexts are one command; of one context they are sent in their order."""
    async with monitored_container(settings, driver) as (container, commands):
        db = container.memory_db_service
        await asyncio.gather(*(db.upsert("s", "b", f"m{n}", {"n": n}, START) for n in range(10)))
        commands.names.clear()
        await asyncio.gather(
            *(db.soft_remove("s", "b", f"m{n}") for n in range(5)),
            *(db.upsert("s", "b", f"m{n}", {"n": -n}, START) for n in range(5, 10)),
        )
        assert commands.names.count("update") == 1
        assert "findAndModify" not in commands.names
        for last in ("written", "removed"):
            calls: list[Awaitable[Any]] = [db.upsert("s", "b", "m0", {"n": 1}, START), db.soft_remove("s", "b", "m0")]
            calls += [db.upsert("s", "b", "other", {}, START)]
            if last == "written":
                calls += [db.upsert("s", "b", "m0", {"n": 2}, START)]
            answers = await asyncio.gather(*calls)
            row = await db.find_by_context("s", "b", "m0")
            assert answers[1] is True
            assert row is not None
            assert row.removed is (last == "removed")
            assert row.payload == ({"n": 2} if last == "written" else {"n": 1, "removed": True})


async def test_a_call_of_many_items_keeps_its_place(container: Container, monkeypatch: pytest.MonkeyPatch) -> None:
    """A later write of one of its items wins; a write of another context need not wait for all of its bulks."""
    monkeypatch.setattr(write_queue, "BULK_SIZE", 10)
    db = container.storage_db_service
    for round_ in range(5):
        ended: list[str] = []

        async def named(name: str, call: Awaitable[Any], ended: list[str] = ended) -> Any:
            answer = await call
            ended.append(name)
            return answer

        await asyncio.gather(
            named("first", db.upsert(True, "x95", {"id": "x95", "by": ("first", round_)})),
            named("many", db.upsert_many(True, [{"id": f"x{n}", "by": ("many", round_)} for n in range(100)])),
            named("later", db.upsert(True, "x94", {"id": "x94", "by": ("later", round_)})),
            named("other", db.upsert(True, "other", {"id": "other", "by": ("other", round_)})),
            named("few", db.upsert_many(True, [{"id": "x93", "by": ("few", round_)}, {"id": "y"}])),
            named("free", db.upsert_many(True, [{"id": "z"}])),
            named("last", db.upsert(True, "x93", {"id": "x93", "by": ("last", round_)})),
        )
        rows = {row.signal_id: row.payload.get("by") for row in await db.find_all()}
        assert rows["x95"] == rows["x0"] == rows["x99"] == ["many", round_]
        assert (rows["x94"], rows["x93"]) == (["later", round_], ["last", round_])
        assert ended.index("other") < ended.index("many")
        assert ended.index("free") < ended.index("many")
        assert ended.index("few") < ended.index("last")


async def test_a_deletion_keeps_its_place_behind_a_call_of_many_items(
    container: Container, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was written before it is gone, whatever is left of the call; what comes after it stays."""
    monkeypatch.setattr(write_queue, "BULK_SIZE", 10)
    db = container.storage_db_service
    entries = [{"id": f"x{n}"} for n in range(55)]
    results = await asyncio.gather(
        db.upsert_many(True, entries),
        db.mongo_store.delete_many({"backtest": True}),
        db.upsert(True, "x50", {"id": "x50", "after": True}),
    )
    assert results[:2] == [55, 55]
    assert [row.payload for row in await db.find_all()] == [{"id": "x50", "after": True}]


async def test_a_large_payload_keeps_its_place_while_it_is_encoded(container: Container) -> None:
    """A later write of its context wins; one of another context does not wait for it."""
    db = container.signal_db_service
    large = {"rows": [{"n": n, "name": f"row {n}"} for n in range(40_000)]}
    ended: list[str] = []

    async def named(name: str, payload: dict[str, Any]) -> None:
        await db.upsert(name[0], "t", "e", payload)
        ended.append(name)

    await asyncio.gather(named("a large", large), named("a later", {"n": 1}), named("b", {"n": 2}))
    row = await db.find_by_context("a", "t", "e")
    assert row is not None
    assert row.payload == {"n": 1}
    assert ended[0] == "b"


async def test_what_was_never_sent_is_never_an_unknown_outcome(settings: Settings) -> None:
    """Behind a write that the network holds up, the others fail in time, and nothing of them was sent."""
    async with behind_proxy(with_short_deadline(settings)) as (proxy, container):
        db = container.memory_db_service
        await acknowledged(lambda: db.upsert("s", "b", "m", {}, START))
        await acknowledged(container.storage_db_service.wait_for_init)
        proxy.hold_back = b"heldback"
        held = asyncio.create_task(db.upsert("s", "b", "m", {"heldback": 1}, START))
        for _ in range(3):
            await asyncio.sleep(0)
        with Stopwatch() as watch:
            ends = await asyncio.gather(
                db.upsert("s", "b", "m1", {}, START),
                db.soft_remove("s", "b", "m"),
                container.storage_db_service.upsert(True, "k", {"id": "k"}),
                db.upsert("s", "b", "m2", {}, START),
                return_exceptions=True,
            )
        assert watch.seconds < DEADLINE + GRACE
        for end in (ends[0], ends[1], ends[3]):
            assert isinstance(end, StoreUnavailableError)
            assert "nothing was sent" in str(end)
        assert not isinstance(ends[2], Exception)
        assert proxy.is_holding.is_set()
        proxy.hold_back = b""
        proxy.released.set()
        await asyncio.gather(held, return_exceptions=True)
        await db.upsert("s", "b", "m3", {}, START)
        assert {row.memory_id for row in await db.list_entries("s", "b")} == {"m", "m3"}


async def test_entries_of_one_call_are_listed_in_their_order_by_their_dates(container: Container) -> None:
    """Their creation dates ascend by a ms each, also from one call to the next: the framework sorts by them alone."""
    log, notification, storage = (
        container.log_db_service,
        container.notification_db_service,
        container.storage_db_service,
    )
    writes: list[tuple[DbService[Any, Any], Callable[[list[Any]], Awaitable[int]]]] = [
        (log, log.create_many),
        (notification, partial(notification.upsert_many, True)),
        (storage, partial(storage.upsert_many, True)),
    ]
    await log.upsert("single", {"id": "single"})
    assert await log.create_many([{"id": f"many{n}"} for n in range(50)]) == 50
    assert [row.entry_id for row in await log.list_all()][:2] == ["single", "many0"]
    await log.mongo_store.delete_many({})
    for db, write in writes:
        names = [f"e{number * 7919 % 400:03}" for number in range(400)]
        for part in (names[:300], names[300:]):
            await write([{"id": name} for name in part])
        collection = container.mongo_service.collection(db.collection)
        newest = await collection.find({}, {"payload.id": 1}).sort("createDate", -1).limit(200).to_list(None)
        assert [document["payload"]["id"] for document in newest] == names[:-201:-1]
        dates = [document["createDate"] async for document in collection.find().sort("createDate", 1)]
        assert len(set(dates)) == 400
