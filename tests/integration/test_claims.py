"""Claims across processes, and beside the other writes of a key."""

import asyncio
from pathlib import Path

import pytest

from backtest_persist import Container, PersistIntervalInstance, Settings
from tests.support.processes import settings_environment, start_program

WHEN = 1_700_000_000_000
PROGRAM = """
import asyncio, sys
from backtest_persist import Container, Registry
async def main(place, name):
    async with Container() as container:
        persist = Registry(container)
        if place:
            persist.use_json(place)
        marker = await persist.interval("daily-report")
        keys = [f"day {n}" for n in range(20)]
        claims = (marker.claim_interval_data({"by": name}, key, 1_700_000_000_000) for key in keys)
        print(sum(await asyncio.gather(*claims)))
asyncio.run(main(*sys.argv[1:]))
"""


@pytest.mark.parametrize("is_json", [False, True], ids=["mongo", "json"])
async def test_twenty_days_have_twenty_reports(settings: Settings, tmp_path: Path, *, is_json: bool) -> None:
    """Of several processes that claim each day at once exactly one does, on a server and in files."""
    place = str(tmp_path) if is_json else ""
    processes = [
        await start_program(
            PROGRAM,
            place,
            name,
            environment=settings_environment(settings, timeouts=False),
            stdout=asyncio.subprocess.PIPE,
        )
        for name in "abc"
    ]
    outputs = await asyncio.gather(*(process.communicate() for process in processes))
    claimed = {name: int(output) for name, (output, _) in zip("abc", outputs, strict=True)}
    assert sum(claimed.values()) == 20
    async with Container(settings) as container:
        if not is_json:
            rows = await container.interval_db_service.find_all()
            assert len(rows) == 20
            assert {name: sum(row.payload == {"by": name} for row in rows) for name in "abc"} == claimed


async def test_a_claim_keeps_its_place_among_the_writes_of_its_key(container: Container) -> None:
    """Claims, writes and removals of one key in one turn of the loop are carried out in the order of their calls."""
    db = container.interval_db_service
    outcomes = await asyncio.gather(
        db.claim("b", "k", {"n": 1}, WHEN),
        db.claim("b", "k", {"n": 2}, WHEN),
        db.soft_remove("b", "k"),
        db.claim("b", "k", {"n": 3}, WHEN),
        db.upsert("b", "k", {"n": 4}, WHEN),
        db.claim("b", "k", {"n": 5}, WHEN),
        db.claim("b", "other", {"n": 6}, WHEN),
    )
    assert [outcome for outcome in outcomes if isinstance(outcome, bool)] == [True, False, True, True, False, True]
    assert {row.entry_key: row.payload for row in await db.find_all()} == {"k": {"n": 4}, "other": {"n": 6}}
    row = await db.find_by_context("b", "other")
    assert row is not None
    assert row.create_date == row.updated_date


async def test_a_mark_of_the_framework_leaves_a_key_free(container: Container) -> None:
    """Its tombstone has the mark in the payload alone; a document that says nothing about it is in the way."""
    collection = container.mongo_service.collection("interval-items")
    await PersistIntervalInstance("b", ioc=container).wait_for_init(True)
    common = {"bucket": "b", "when": WHEN}
    await collection.insert_many(
        [
            {**common, "entryKey": "gone", "payload": {"n": 1, "removed": True}},
            {**common, "entryKey": "gone too", "payload": {"n": 1}, "removed": True},
            {**common, "entryKey": "here", "payload": {"n": 1}},
            {**common, "entryKey": "here too", "payload": {"n": 1, "removed": True}, "removed": False},
        ]
    )
    db = container.interval_db_service
    claimed = {key: await db.claim("b", key, {"n": 2}, WHEN) for key in ("gone", "gone too", "here", "here too")}
    assert claimed == {"gone": True, "gone too": True, "here": False, "here too": False}
    row = await db.find_by_context("b", "gone")
    assert row is not None
    assert (row.payload, row.removed) == ({"n": 2}, False)
