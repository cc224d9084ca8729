"""`export_dump`: every document is written or reported, and an import of the dump gives the same documents."""

import json
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from backtest_persist import Container, Registry, Settings, SettingsError, export_dump, import_dump
from backtest_persist.operations import Level, examine
from tests.support.cases import CASES
from tests.support.diagnoses import levels
from tests.support.dumps import (
    CANDLE_TEXT,
    CANDLE_TIME,
    MINUTE,
    ORIGINAL_WHEN,
    file_totals,
    files_of,
    stored_documents,
)
from tests.support.payloads import BSON_VALUES
from tests.support.processes import run_cli


async def test_import_of_an_export_gives_identical_documents(
    container: Container, settings: Settings, tmp_path: Path
) -> None:
    """Every domain, hostile names, all types, tombstones, null payloads and the order of lists survive the way."""
    for case in CASES:
        service = getattr(container, f"{case.domain}_db_service")
        if case.domain == "candle":
            await service.create(*case.args[:3], *case.written)
        else:
            await service.upsert(*case.args, *case.written)
    names = ["a/b", "..", "A_B", "x" * 3000, "é😀", "%2F", ".hidden", "CON", "a\nb", "a:b"]
    odd = {"d": Decimal("1.10"), "t": datetime(2024, 1, 1, tzinfo=UTC), "b": b"\0", "n": float("-inf"), "$date": 1}
    for name in names:
        await container.signal_db_service.upsert(name, "B_C", name, {**odd, "minuteEstimatedTime": None})
        await container.partial_db_service.upsert("A", name, "B_C", name, {"minuteEstimatedTime": float("inf")}, -5)
        await container.recent_db_service.upsert(name, "t", "e", name, False, None, -5)
        await container.session_db_service.upsert(name, "e", name, name, True, {"n": 1}, 10**14 - 1)
        for backtest in (True, False):
            await container.recent_db_service.upsert(name, "t", "e", "", backtest, {"n": 1}, -5)
            await container.session_db_service.upsert(name, "e", "", name, backtest, {"n": 1}, -5)
        await container.state_db_service.upsert(name, name, odd, -7)
        await container.memory_db_service.upsert(name, "b", name, None, -7)
        await container.memory_db_service.upsert("s", "b", name, {"n": 1}, -7)
    await container.memory_db_service.upsert("s", "b", "tagged", {"$date": "today"}, -7)
    await container.memory_db_service.soft_remove("s", "b", "tagged")
    await container.memory_db_service.soft_remove("s", "b", "..")
    await container.memory_db_service.soft_remove("..", "b", "..")
    await container.storage_db_service.upsert_many(True, [{"id": name, **odd} for name in names])
    await container.log_db_service.create_many([{"id": f"{n}"} for n in range(1200)])
    await container.candle_db_service.create_many(
        "A/B", "1m", "x_y", [json.loads(CANDLE_TEXT % (CANDLE_TIME + n * MINUTE)) for n in range(100)]
    )
    before = await stored_documents(container)

    exported = await export_dump(container, tmp_path / "dump")
    assert exported.skipped == []
    assert sum(exported.domains.values()) == sum(map(len, before.values()))
    await container.mongo_service.client.drop_database(container.mongo_service.database.name)
    async with Container(settings) as other:
        report = await import_dump(other, tmp_path / "dump")
        assert report.skipped == []
        assert report.assumed == {}
        after = await stored_documents(other)
        assert after.keys() == before.keys()
        for collection, rows in before.items():
            if collection in ("storage-items", "log-items", "memory-items"):
                assert after[collection] == rows  # in the same order
            else:
                assert sorted(after[collection], key=repr) == sorted(rows, key=repr)
        again = tmp_path / "again"
        await export_dump(other, again)
        assert files_of(again) == files_of(tmp_path / "dump")


async def test_the_json_backend_reads_an_export_and_an_import_reads_its_files(
    container: Container, tmp_path: Path
) -> None:
    """Strategy state moves between the two backends with the time it was written for."""
    mongo, files = Registry(container), Registry(container)
    state = await mongo.state("s_1", "b")
    payload = {"at": datetime(2024, 1, 1, tzinfo=UTC), "key": UUID(int=5), **BSON_VALUES}
    await state.write_state_data(payload, ORIGINAL_WHEN)
    await export_dump(container, tmp_path / "dump")
    files.use_json(tmp_path / "dump")
    mine = await files.state("s_1", "b")
    assert await mine.read_state_data(when=ORIGINAL_WHEN - 1) is None
    assert await mine.read_state_data(when=ORIGINAL_WHEN) == payload
    await mine.write_state_data({"again": payload}, ORIGINAL_WHEN)
    assert await mine.read_state_data() == {"again": payload}
    await (await files.state("s_2", "b")).write_state_data(payload, ORIGINAL_WHEN)
    await (await files.recent("A_B", "C", "x", "f", False)).write_recent_data({"n": 1}, -5)
    await import_dump(container, tmp_path / "dump")
    assert await (await mongo.state("s_2", "b")).read_state_data() == payload
    recent = await mongo.recent("A_B", "C", "x", "f", False)
    assert await recent.read_recent_data(when=-6) is None
    assert await recent.read_recent_data(when=-5) == {"n": 1}


NOW = datetime(2024, 1, 1, tzinfo=UTC)


CANDLE = {
    "exchangeName": "b",
    "symbol": "S",
    "interval": "1m",
    "timestamp": CANDLE_TIME,
    **json.loads(CANDLE_TEXT % CANDLE_TIME),
}


LOST: list[tuple[str, dict[str, Any], str]] = [
    ("signal", {"symbol": "no payload"}, "see payload"),
    ("signal", {"symbol": "no mapping", "payload": 5}, "see payload"),
    ("signal", {"symbol": "no date", "payload": {}, "createDate": None}, "see createDate"),
    ("signal", {"symbol": 5, "payload": {}}, "symbol must be a str"),
    ("candle", {**CANDLE, "open": float("nan")}, "open must be a finite number"),
    ("candle", {**CANDLE, "high": 0.0, "symbol": "T"}, "high is below"),
    ("candle", {**CANDLE, "interval": "1w"}, "interval must be one of"),
]
"""Documents of other programs that have no form in a dump, by domain, and why."""


async def test_an_export_leaves_nothing_out_in_silence(container: Container, tmp_path: Path) -> None:
    """A foreign document that has no form in a dump is named, and all others are written, before it and after it."""
    expected: list[tuple[str, str]] = []
    await container.candle_db_service.create("a", "1m", "e", json.loads(CANDLE_TEXT % CANDLE_TIME))
    await container.signal_db_service.upsert("a", "s", "e", {"n": 1})
    for domain, document, reason in LOST:
        whole = {"strategyName": "s", "exchangeName": "e", "createDate": NOW, "updatedDate": NOW, "__v": 0, **document}
        inserted = await container.mongo_service.collection(f"{domain}-items").insert_one(whole)
        expected.append((f"{domain}-items {inserted.inserted_id}", reason))
    await container.signal_db_service.upsert("z", "s", "e", {"n": 1})
    await container.state_db_service.upsert("s", "b", {"n": 1}, 0)

    class Advanced:
        total = done = 0

        def begin(self, total: int) -> None:
            self.total = total

        def advance(self, done: int) -> None:
            self.done += done

    progress = Advanced()
    report = await export_dump(container, tmp_path / "dump", progress=progress)
    assert progress.total == progress.done == len(LOST) + 4
    assert len(report.skipped) == len(LOST)
    reasons = {entry.path: entry.reason for entry in report.skipped}
    assert [name for name, reason in expected if reason not in reasons[name]] == []
    assert list(files_of(tmp_path / "dump")) == [
        f"data/candle/e/a/1m/{CANDLE_TIME}.json",
        "data/signal/a_s_e/a.json",
        "data/signal/z_s_e/z.json",
        "state/s/b/b.json",
    ]
    again = await import_dump(container, tmp_path / "dump")
    assert file_totals(again) == (4, 0, 4, 0)


@pytest.mark.parametrize("driver", ["motor"], indirect=True)
async def test_an_export_names_the_collections_that_it_leaves_behind(
    container: Container, settings: Settings, tmp_path: Path
) -> None:
    """What a newer release of the framework, or another program, has stored; an own domain is none of them."""
    database = container.mongo_service.database
    await database["walker-items"].insert_many([{"n": n} for n in range(3)])
    await database["orders"].insert_one({})
    await container.signal_db_service.upsert("a", "s", "e", {"n": 1})
    await container.wait_for_init()
    report = await export_dump(container, tmp_path / "dump")
    assert (report.ignored, report.domains["signal"], report.skipped) == ({"orders": 1, "walker-items": 3}, 1, [])
    finding = next(found for found in (await examine(container)).findings if found.check == "mongodb.collections")
    assert (finding.level, finding.values["documents"]) == (Level.WARNING, report.ignored)
    assert "walker-items (3)" in finding.text
    shown = await run_cli("export-dump", "out", settings=settings, cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert "walker-items belongs to no domain of this version; documents left behind: 3." in shown.stdout
    await database["walker-items"].drop()
    assert levels(await examine(container)) == {}
    await database["orders"].drop()
    assert (await export_dump(container, tmp_path / "more")).ignored == {}


async def test_an_export_takes_dates_that_another_program_wrote_as_text(container: Container, tmp_path: Path) -> None:
    """Of a date only the order is kept, so one without a time zone will do."""
    await container.signal_db_service.upsert("a", "s", "e", {"n": 1})
    signals = container.mongo_service.collection("signal-items")
    await signals.update_one({}, {"$set": {"createDate": "2024-01-01T00:00:00"}})
    report = await export_dump(container, tmp_path)
    assert (report.domains["signal"], report.skipped) == (1, [])


async def test_a_long_name_beside_an_empty_frame_comes_back(
    container: Container, settings: Settings, tmp_path: Path
) -> None:
    """The directory that has no frame is read with what is noted of the others."""
    await container.session_db_service.upsert("s" * 201, "e", "", "B", False, {"n": 1}, -5)
    before = await stored_documents(container)
    assert (await export_dump(container, tmp_path / "dump")).skipped == []
    await container.mongo_service.client.drop_database(container.mongo_service.database.name)
    async with Container(settings) as another:
        assert (await import_dump(another, tmp_path / "dump")).skipped == []
        assert await stored_documents(another) == before


async def test_an_entry_whose_id_is_another_has_no_form_in_a_dump(container: Container, tmp_path: Path) -> None:
    """It would not come back; the export says so."""
    await container.storage_db_service.upsert(True, "right", {"id": "right"})
    await container.storage_db_service.upsert(True, "S1", {"id": "another"})
    report = await export_dump(container, tmp_path / "dump")
    assert [skipped.reason for skipped in report.skipped] == ["Its name is not the 'id' in its payload."]
    assert report.domains["storage"] == 1


@pytest.mark.parametrize("name", ["x" * 300, "a\0b"])
async def test_an_export_into_what_cannot_be_a_directory_is_refused(
    container: Container, tmp_path: Path, name: str
) -> None:
    """As a setting that cannot be used."""
    with pytest.raises(SettingsError, match=r"cannot be read|zero character"):
        await export_dump(container, tmp_path / name)
