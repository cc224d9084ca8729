"""Series files of a dump: candles by month instead of a file each, written, read back exactly, and told apart."""

import gzip
import json
import logging
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from backtest_persist import Container, Registry, Settings, SettingsError, export_dump, import_dump
from backtest_persist.operations import import_candles
from backtest_persist.operations.transfer import exporting
from tests.support.dumps import CANDLE_TEXT, CANDLE_TIME, MINUTE, file_totals, stored_documents, write_dump
from tests.support.json_backend import open_dump
from tests.support.processes import command_runner

pytestmark = pytest.mark.parametrize("driver", ["motor"], indirect=True)

SERIES = "data/candle-series"
JANUARY = int(datetime(2024, 1, 31, 23, 58, tzinfo=UTC).timestamp() * 1000)
"""Two minutes before the month is over."""
NAMES = ["a/b", "..", "A_B", "x" * 300, "é😀", "%2F", ".hidden", "CON", "a\nb", "a:b", "a", "A"]
HARD = [0.1 + 0.2, 5e-324, 1.7976931348623157e308, 2**53 + 2.0, 1e16, 1 / 3, -0.0, -37.63]


def candle(at: int, price: float = 10.0, volume: float = 1.0) -> dict[str, Any]:
    return {"timestamp": at, "open": price, "high": price, "low": price, "close": price, "volume": volume}


def files_below(directory: Path) -> dict[str, bytes]:
    return {str(f.relative_to(directory)): f.read_bytes() for f in sorted(directory.rglob("*")) if f.is_file()}


async def test_import_of_an_export_by_series_gives_identical_documents(
    container: Container, settings: Settings, tmp_path: Path
) -> None:
    """Hostile names, hard numbers, months and times before 1970 survive the way; the other domains stay files."""
    candles = container.candle_db_service
    for name in NAMES:
        await candles.create_many(name, "1m", name, [candle(JANUARY + n * MINUTE, 10.0 + n) for n in range(4)])
    hard = [candle(n * 86_400_000, price, abs(price)) for n, price in enumerate(HARD, start=-4)]
    days = [{**row, "timestamp": datetime.fromtimestamp(row["timestamp"] / 1000, UTC)} for row in hard]
    await candles.store("hard", "1d", "e", days, allow_outliers=True)
    await container.signal_db_service.upsert("a", "s", "e", {"n": 1})
    foreign = {
        "exchangeName": "e",
        "symbol": "hard",
        "interval": "1d",
        "timestamp": 12 * 3_600_000,
        **candle(12 * 3_600_000),
    }
    dates = {"createDate": datetime(2024, 1, 1, tzinfo=UTC), "updatedDate": datetime(2024, 1, 1, tzinfo=UTC)}
    collection = container.mongo_service.collection("candle-items")
    inserted = await collection.insert_one({**foreign, **dates})

    exported = await export_dump(container, tmp_path / "dump", candles="series")
    assert [entry.path for entry in exported.skipped] == [f"candle-items {inserted.inserted_id}"]
    assert "is not the start of a 1d candle" in exported.skipped[0].reason
    count = 4 * len(NAMES) + len(HARD)
    assert (exported.candles, exported.domains["candle"], exported.series_files) == (
        "series",
        count,
        2 * len(NAMES) + 2,
    )
    assert not (tmp_path / "dump/data/candle").exists()
    written = files_below(tmp_path / "dump" / SERIES)
    assert len(written) == 2 * len(NAMES) + 2
    lines = gzip.decompress(written["a%2Fb/a%2Fb/1m/2024-02.ndjson.gz"]).splitlines()
    assert [json.loads(line) for line in lines] == [candle(JANUARY + n * MINUTE, 10.0 + n) for n in (2, 3)]
    assert len(gzip.decompress(written["e/hard/1d/1969-12.ndjson.gz"]).splitlines()) == 4

    await collection.delete_one({"_id": inserted.inserted_id})
    before = await stored_documents(container)
    await container.mongo_service.client.drop_database(container.mongo_service.database.name)
    async with Container(settings) as other:
        dry = await import_dump(other, tmp_path / "dump", dry_run=True)
        assert (dry.domains["candle"].new, await other.candle_db_service.count({})) == (count, 0)
        report = await import_dump(other, tmp_path / "dump")
        assert (report.skipped, report.ignored, report.assumed) == ([], {}, {})
        assert file_totals(report) == (2 * len(NAMES) + 3, count + 1, 0, 0)
        after = await stored_documents(other)
        assert {name: sorted(map(repr, rows)) for name, rows in after.items()} == {
            name: sorted(map(repr, rows)) for name, rows in before.items()
        }
        assert file_totals(await import_dump(other, tmp_path / "dump")) == (2 * len(NAMES) + 3, 0, count + 1, 0)
        await export_dump(other, tmp_path / "again", candles="series")
        february = tmp_path / "dump" / SERIES / "a%2Fb/a%2Fb/1m/2024-02.ndjson.gz"
        assert (await import_candles(other, february, "a/b", "1m", "a/b")).same == 2  # it is JSON Lines, too
    assert files_below(tmp_path / "again" / SERIES) == written


async def test_what_a_series_file_cannot_give_is_reported_by_file_and_line(
    container: Container, tmp_path: Path
) -> None:
    """Everything else beside it is stored, and no file is taken for another kind of file."""
    await container.candle_db_service.create("S", "1m", "e", candle(JANUARY, 99.0))
    month = f"{SERIES}/e/S/1m/2024-01.ndjson"
    good = [json.dumps(candle(JANUARY - n * MINUTE)) for n in range(3)]
    lines = [
        *good,
        "",
        good[1],
        good[1].replace("10.0", "11.0"),
        "{",
        "[1]",
        good[1].replace(":", ";", 1),
        json.dumps({**candle(JANUARY + MINUTE), "high": 1}),
        json.dumps(candle(JANUARY + 5 * MINUTE)),
        json.dumps(candle(JANUARY + 1)),
    ]
    whole = gzip.compress("\n".join(json.dumps(candle(CANDLE_TIME + n * MINUTE)) for n in range(6000)).encode())
    now = datetime.now(UTC)
    late = int(datetime(now.year + 1, now.month, 1, tzinfo=UTC).timestamp() * 1000)
    write_dump(
        tmp_path,
        {
            month: "\n".join(lines),
            f"{SERIES}/e/S/1w/2024-01.ndjson": good[0],
            f"{SERIES}/e/S/1m/{now.year + 1}-{now.month:02}.ndjson": json.dumps(candle(late)),
            f"{SERIES}/e/S/1m/2023-12.ndjson": f"{'x' * 20_000}\n{good[0]}",
            f"{SERIES}/e/S/1m/2023-11.ndjson.gz": "no gzip",
            f"{SERIES}/e/S/1m/2023-13.ndjson": good[0],
            f"{SERIES}/e/S/1m/{CANDLE_TIME}.json": CANDLE_TEXT % CANDLE_TIME,
            f"{SERIES}/e/S/1m/.tmp-1-2": good[0],
            f"{SERIES}/e/2024-01.ndjson": good[0],
            "data/candle/e/S/1m/2024-01.ndjson": good[0],
            f"data/candle/e/S/1m/{CANDLE_TIME}.json": CANDLE_TEXT % CANDLE_TIME,
        },
    )
    cut = tmp_path / f"{SERIES}/e/CUT/1m/2020-09.ndjson.gz"
    cut.parent.mkdir(parents=True)
    cut.write_bytes(whole[: len(whole) * 9 // 10])

    report = await import_dump(container, tmp_path)
    reasons = {entry.path: entry.reason for entry in report.skipped}
    assert len(reasons) == len(report.skipped) == report.domains["candle"].skipped
    expected = {
        f"{month}:1": "another value is stored already",
        f"{month}:6": "line 2 holds another candle of this time",
        f"{month}:7": "Expecting property name",
        f"{month}:8": "is no candle",
        f"{month}:9": "Expecting ':' delimiter",
        f"{month}:10": "high is below",
        f"{month}:11": "it holds a candle of another month",
        f"{month}:12": "is not the start of a 1m candle",
        f"{SERIES}/e/S/1w/2024-01.ndjson": "interval must be one of",
        f"{SERIES}/e/S/1m/{now.year + 1}-{now.month:02}.ndjson:1": "the candle has not closed yet",
        f"{SERIES}/e/S/1m/2023-12.ndjson": "line 1 is longer than",
        f"{SERIES}/e/S/1m/2023-11.ndjson.gz": "cannot be read: Not a gzipped file",
        f"{SERIES}/e/S/1m/2023-13.ndjson": "not a series file",
        f"{SERIES}/e/S/1m/{CANDLE_TIME}.json": "not a series file",
        f"{SERIES}/e/S/1m/.tmp-1-2": "leftover of a write",
        f"{SERIES}/e/2024-01.ndjson": "no series has such a path",
        "data/candle/e/S/1m/2024-01.ndjson": "not a JSON file",
        f"{SERIES}/e/CUT/1m/2020-09.ndjson.gz": "cannot be read after line 5",
    }
    assert reasons.keys() == expected.keys()
    assert [path for path, reason in expected.items() if reason not in reasons[path]] == []
    stored = await container.candle_db_service.find_all({"symbol": "S"})
    assert [(row.timestamp, row.open) for row in stored] == [
        (CANDLE_TIME, 10.0),
        (JANUARY - 2 * MINUTE, 10.0),
        (JANUARY - MINUTE, 10.0),
        (JANUARY, 99.0),
    ]
    assert report.domains["candle"].same == 1
    assert 5000 <= await container.candle_db_service.count({"symbol": "CUT"}) < 6000


async def test_an_import_of_series_files_that_was_cut_is_resumed(container: Container, tmp_path: Path) -> None:
    """Candles are stored by whole parts, and running it again stores the rest."""
    for month in ("2020-01", "2020-02", "2020-03"):
        start = int(datetime.fromisoformat(f"{month}-01T00:00Z").timestamp() * 1000)
        text = "\n".join(json.dumps(candle(start + n * MINUTE)) for n in range(100))
        write_dump(tmp_path, {f"{SERIES}/e/S/1m/{month}.ndjson": text})

    class CutError(Exception):
        pass

    class Cutter:
        def begin(self, total: int) -> None:
            assert total == 3

        def advance(self, done: int) -> None:
            if done:
                raise CutError

    with pytest.raises(CutError):
        await import_dump(container, tmp_path, progress=Cutter())
    assert await container.candle_db_service.count({}) == 100
    assert file_totals(await import_dump(container, tmp_path)) == (3, 200, 100, 0)


async def test_many_candles_are_exported_by_series_and_few_as_files(
    container: Container,
    settings: Settings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Unless the caller decides; the command says which, why, and how to get the other form."""
    await container.candle_db_service.create_many("S", "1m", "e", [candle(CANDLE_TIME + n * MINUTE) for n in range(3)])
    few = await export_dump(container, tmp_path / "few")
    assert (few.candles, few.domains["candle"], few.series_files) == ("files", 3, 0)
    monkeypatch.setattr(exporting, "CANDLE_FILES", 2)
    many = await export_dump(container, tmp_path / "many")
    assert (many.candles, many.domains["candle"], many.series_files) == ("series", 3, 1)
    files = await export_dump(container, tmp_path / "files", candles="files")
    assert (files.candles, files.domains["candle"]) == ("files", 3)
    with pytest.raises(SettingsError, match="candles must be 'auto', 'files' or 'series', not 'parquet'"):
        await export_dump(container, tmp_path / "none", candles="parquet")  # pyright: ignore[reportArgumentType]
    assert not (tmp_path / "none").exists()

    run = command_runner(settings, monkeypatch, capsys)
    monkeypatch.chdir(tmp_path)
    status, shown = await run("export-dump", "shown", "--candles", "series")
    assert (status, "3 values in 1 files" in shown) == (0, True)
    assert "export with --candles files" in shown
    assert "as there are more than 2" in (await run("export-dump", "by-default"))[1]
    monkeypatch.setattr(exporting, "CANDLE_FILES", 100_000)
    status, shown = await run("export-dump", "few-by-default")
    assert "Each candle is a file, as there are no more than 100,000; --candles series writes" in shown
    status, shown = await run("import-dump", "shown")
    assert (status, "1 files in" in shown) == (0, True)


async def test_the_json_backend_warns_once_of_series_files(
    tmp_path: Path, container: Container, caplog: pytest.LogCaptureFixture
) -> None:
    """It does not read them, and its other values are not concerned."""
    await container.candle_db_service.create("S", "1m", "e", candle(CANDLE_TIME))
    await container.signal_db_service.upsert("S", "t", "e", {"id": "s-1"})
    await export_dump(container, tmp_path, candles="series")
    persist: Registry = open_dump(tmp_path)
    with caplog.at_level(logging.WARNING, "backtest_persist"):
        candles = await persist.candle("S", "1m", "e")
        assert await candles.read_candles_data(1, CANDLE_TIME) is None
        await persist.candle("T", "1m", "e")
        assert await (await persist.signal("S", "t", "e")).read_signal_data() == {"id": "s-1"}
    assert [vars(record)["event"] for record in caplog.records] == ["candles.series_files"]
