"""Duplicates: several documents of one context are shown, and moved to a file on request; nothing is lost."""

import json
import os
from base64 import b64decode
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from anyio.to_thread import run_sync
from bson import Decimal128, Int64, MaxKey, ObjectId, Regex, Timestamp
from bson.binary import Binary
from bson.raw_bson import DEFAULT_RAW_BSON_OPTIONS
from pymongo.errors import OperationFailure

from backtest_persist import Container, IndexConflictError, Settings, SettingsError
from backtest_persist.operations import duplicates, find_duplicates, migrate, migration
from backtest_persist.operations.migration import Migrated
from tests.support.cases import CASES, Case
from tests.support.processes import run_cli, settings_environment, start_program

START = datetime(2026, 1, 1, tzinfo=UTC)
EVERY_TYPE: dict[str, Any] = {
    "int32": 1,
    "int64": Int64(1),
    "double": 1.0,
    "nan": float("nan"),
    "decimal": Decimal128("1.50"),
    "null": None,
    "id": ObjectId(),
    "date": datetime(2024, 1, 1, 0, 0, 0, 1000, UTC),
    "binary": b"\0",
    "uuid": Binary(b"u" * 16, 4),
    "regex": Regex("a.*", "i"),
    "time": Timestamp(1, 2),
    "max": MaxKey(),
    "$date": {"$numberInt": "x"},
    "a.b": ["ü😀"],
}


def document(case: Case, day: int, **changes: Any) -> dict[str, Any]:
    """Return a document of the context of a case, written on the n-th day."""
    date = START + timedelta(days=day)
    return {"_id": ObjectId(), **case.document, "createDate": START, "updatedDate": date, **changes}


async def insert_duplicates(container: Container, *, per_domain: int = 1) -> dict[str, list[dict[str, Any]]]:
    """Insert contexts with three documents each, the second one newest, and one that is alone; return the former."""
    inserted: dict[str, list[dict[str, Any]]] = {}
    for case in CASES:
        field = next(case.index[n] for n, part in enumerate(case.index) if isinstance(case.document[part], str))
        contexts = [{field: f"{case.document[field]}{n}"} for n in range(per_domain)]
        documents = [document(case, day, **context) for context in contexts for day in (1, 3, 2)]
        inserted[case.collection] = documents
        alone = document(case, 1, **{field: "alone"})
        await container.mongo_service.collection(case.collection).insert_many([*documents, alone])
    return inserted


def dumped(file: Path) -> list[tuple[str, Any]]:
    """Return the lines of a dump: collection and id."""
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return [(line["collection"], ObjectId(line["document"]["_id"]["$oid"])) for line in lines]


def whole_lines(file: Path) -> list[tuple[str, Any]]:
    """Return the lines of a dump that may not exist yet, or be cut short."""
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    whole = [line for line in lines if line.endswith("}")]
    return [("signal-items", ObjectId(json.loads(line)["document"]["_id"]["$oid"])) for line in whole]


async def test_duplicates_are_shown_by_context_and_moved_to_a_file(container: Container, tmp_path: Path) -> None:
    """In every domain the document that was written last stays; afterwards the index is there, and nothing is left."""
    inserted, file = await insert_duplicates(container), tmp_path / "removed.jsonl"
    found = await find_duplicates(container)
    for case in CASES:
        ((several,), documents) = (found[case.collection], inserted[case.collection])
        assert several.context == {field: documents[0][field] for field in case.index}
        assert [found.id for found in several.documents] == [documents[n]["_id"] for n in (1, 2, 0)]
        assert [found.updated for found in several.documents] == [START + timedelta(days=day) for day in (3, 2, 1)]
        assert {found.created for found in several.documents} == {START}
    with pytest.raises(IndexConflictError, match="migrate --keep newest"):
        await container.signal_db_service.count()

    assert (await migrate(container)).duplicates == found  # shown, and left alone
    assert not file.exists()
    report = await migrate(container, keep="newest", dump=file)
    assert report == Migrated(removed={case.collection: 2 for case in CASES})
    older = [(name, documents[n]["_id"]) for name, documents in inserted.items() for n in (0, 2)]
    assert sorted(dumped(file), key=str) == sorted(older, key=str)
    for case in CASES:
        collection: Any = container.mongo_service.collection(case.collection)
        assert await collection.count_documents({}) == 2
        assert await collection.find_one({"_id": inserted[case.collection][1]["_id"]})
        indexes = await collection.index_information()
        assert indexes["_".join(f"{field}_1" for field in case.index)]["unique"]
        assert await getattr(container, f"{case.domain}_db_service").count() == 2
    assert await migrate(container, keep="newest", dump=file) == Migrated()
    assert len(dumped(file)) == 2 * len(CASES)


@pytest.mark.parametrize("driver", ["pymongo"], indirect=True)
async def test_a_removed_document_can_be_put_back_exactly(container: Container, tmp_path: Path) -> None:
    """Its BSON is in the file, byte for byte; dates and fields may be missing, or of another type."""
    case = next(case for case in CASES if case.domain == "state")
    states: Any = container.mongo_service.collection("state-items")
    newest = document(case, 9)
    older = [
        document(case, 1, payload=EVERY_TYPE),
        document(case, 2, payload={"ref": {"$ref": "x", "$id": 1, "$db": None}}, _id="text"),
        {name: value for name, value in document(case, 0).items() if name not in ("updatedDate", "createDate")},
        document(case, 8, updatedDate="2030-01-01"),
    ]
    without_context: list[dict[str, Any]] = [{"n": 1}, {"n": 2, "signalId": None}]  # of which an index takes only one
    await states.insert_many([*older, newest, *without_context])
    raw = states.with_options(codec_options=DEFAULT_RAW_BSON_OPTIONS)
    before = {bytes(found.raw) async for found in raw.find()}
    dump = tmp_path / "removed.jsonl"
    assert await migrate(container, keep="newest", dump=dump) == Migrated(removed={"state-items": 5})
    lines = [json.loads(line) for line in dump.read_text(encoding="utf-8").splitlines()]
    assert {line["collection"] for line in lines} == {"state-items"}
    after = {bytes(found.raw) async for found in raw.find()}
    assert {b64decode(line["bson"]) for line in lines} == before - after
    assert len(after) == 2
    assert await states.find_one({"_id": newest["_id"]})
    assert {"$numberDecimal": "1.50"} in [line["document"].get("payload", {}).get("decimal") for line in lines]


@pytest.mark.parametrize("driver", ["pymongo"], indirect=True)
async def test_a_document_that_is_written_to_meanwhile_stays(
    container: Container, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A strategy runner may write to an older one: it is then the newest, and the other one is moved."""
    case = next(case for case in CASES if case.domain == "signal")
    older, newest = document(case, 1), document(case, 2)
    signals: Any = container.mongo_service.collection("signal-items")
    await signals.insert_many([older, newest])
    now, remove = datetime.now(UTC), migration.remove_older

    async def written_meanwhile(*arguments: Any) -> dict[str, int]:
        monkeypatch.setattr(migration, "remove_older", remove)
        monkeypatch.setattr(duplicates, "run_sync", writing)
        return await remove(*arguments)

    async def writing(*arguments: Any) -> None:
        monkeypatch.setattr(duplicates, "run_sync", run_sync)
        await run_sync(*arguments)
        await signals.update_one({"_id": older["_id"]}, {"$set": {"payload": {"n": 1}, "updatedDate": now}})

    monkeypatch.setattr(migration, "remove_older", written_meanwhile)
    report = await migrate(container, keep="newest", dump=tmp_path / "removed.jsonl")
    assert report == Migrated(removed={"signal-items": 1})
    row = await container.signal_db_service.find_by_context(*case.args)
    assert row is not None
    assert (row.id, row.payload) == (str(older["_id"]), {"n": 1})
    assert [id for _, id in dumped(tmp_path / "removed.jsonl")] == [older["_id"], newest["_id"]]


KILLED = """
import asyncio, os, sys
from backtest_persist import Container
from backtest_persist.operations import duplicates, migrate
calls = 0
async def run_sync(function, *arguments):
    global calls
    calls += 1
    if calls == int(sys.argv[2]):
        os._exit(9)
    function(*arguments)
    if function.__name__ == "flush" and calls == -int(sys.argv[2]):
        os._exit(9)
duplicates.run_sync = run_sync
asyncio.run(migrate(Container(), keep="newest", dump=sys.argv[1]))
"""
"""Ends hard before the n-th step of the file, or, for -n, after it, if it is a flush."""


@pytest.mark.parametrize("driver", ["motor"], indirect=True)
async def test_a_kill_at_any_moment_loses_no_document(container: Container, settings: Settings, tmp_path: Path) -> None:
    """Killed before or after a step of the file, and run again, it ends with every document stored or in the file."""
    case = next(case for case in CASES if case.domain == "signal")
    signals: Any = container.mongo_service.collection("signal-items")
    for step in (1, 3, -3):
        file = tmp_path / f"{step}.jsonl"
        documents = [document(case, day) for day in (1, 2, 3)]
        with suppress(OperationFailure):
            await signals.drop_indexes()
        await signals.delete_many({})
        await signals.insert_many(documents)
        environment = settings_environment(settings)
        process = await start_program(KILLED, file, step, environment=environment)
        assert await process.wait() == 9
        left = [found["_id"] async for found in signals.find()]
        assert set(left) | {id for _, id in whole_lines(file)} == {found["_id"] for found in documents}
        assert len(left) == 3
        with file.open("a") as cut_short:  # as by a kill in the middle of a line
            cut_short.write('{"collection": "si')
        await migrate(container, keep="newest", dump=file)
        assert [found["_id"] async for found in signals.find()] == [documents[2]["_id"]]
        assert {id for _, id in whole_lines(file)} == {found["_id"] for found in documents[:2]}


@pytest.mark.parametrize("driver", ["motor"], indirect=True)
async def test_what_cannot_be_kept_or_written_removes_nothing(container: Container, tmp_path: Path) -> None:
    """An unknown choice, no file, and a file that cannot be written are a SettingsError."""
    await insert_duplicates(container)
    for keep, dump in (
        ("newest", None),
        ("oldest", tmp_path / "x"),
        ("newest", tmp_path),
        ("newest", tmp_path / "a/b"),
    ):
        with pytest.raises(SettingsError, match=r"keep='newest'|cannot be written"):
            await migrate(container, keep=keep, dump=dump)  # pyright: ignore[reportArgumentType]
    full = Path("/dev/full")
    with pytest.raises(SettingsError, match="/dev/full cannot be written: No space left"):
        await migrate(container, keep="newest", dump=full)
    assert {name: len(found) for name, found in (await find_duplicates(container)).items()} == {
        case.collection: 1 for case in CASES
    }


@pytest.mark.parametrize("driver", ["motor"], indirect=True)
async def test_the_command_shows_and_resolves_duplicates(
    container: Container, settings: Settings, tmp_path: Path
) -> None:
    """It shows each context with dates; without --keep nothing is touched, with 3 as exit status."""
    inserted = await insert_duplicates(container, per_domain=25)
    newest = inserted["signal-items"][1]
    dry = await run_cli("migrate", "--dry-run", "--keep", "newest", settings=settings, cwd=tmp_path)
    assert dry.returncode == 0, dry.stderr
    shown = await run_cli("migrate", settings=settings, cwd=tmp_path)
    assert shown.returncode == 3, shown.stderr
    for output in (dry.stdout, shown.stdout):
        assert "signal-items has several documents of one context; contexts: 25." in output
        assert f"{newest['_id']}  newest\n      created 2026-01-01 00:00:00.000, updated 2026-01-04 00:00:00" in output
        assert "5 more" in output
    assert "Nothing was changed (--dry-run)." in dry.stdout
    assert "migrate --keep newest" in shown.stdout
    assert sum(map(len, (await find_duplicates(container)).values())) == 25 * len(CASES)
    kept = await run_cli("migrate", "--keep", "newest", settings=settings, cwd=tmp_path)
    assert kept.returncode == 0, kept.stderr
    (name,) = os.listdir(tmp_path)
    assert name.startswith("removed-duplicates-")
    assert len(dumped(tmp_path / name)) == 50 * len(CASES)
    assert name in kept.stdout
