"""Series files of a dump: candles by month instead of a file each, written, read back exactly, and told apart."""

import gzip
import json
import logging
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from backtest_persist import Container, Registry, Settings, SettingsError, export_dump, import_dump
from backtest_persist.operations import import_candles
from backtest_persist.operations.transfer import exporting, series_files
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


async def test_of_a_candle_in_several_forms_the_newest_is_taken(container: Container, tmp_path: Path) -> None:
    """The others are reported with it, dry or not, and those that equal it are there already."""
    at = JANUARY - 10 * MINUTE
    paths = [f"data/candle/e/S/1m/{at}.json", f"{SERIES}/e/S/1m/2024-01.ndjson", f"{SERIES}/e/S/1m/2024-01.ndjson.gz"]
    for newest in range(3):
        root, symbol = tmp_path / str(newest), f"S{newest}"
        names = [path.replace("/S/", f"/{symbol}/") for path in paths]
        write_dump(root, {names[0]: json.dumps(candle(at, 10.0)), f"data/candle/e/{symbol}/1m/0.json": "x"})
        own = [json.dumps(candle(at - (n + 1) * MINUTE)) for n in range(3)]
        write_dump(root, {names[1]: "\n".join([own[0], own[1], json.dumps(candle(at, 11.0))])})
        packed = root / names[2]
        packed.write_bytes(gzip.compress("\n".join([own[0], own[2], json.dumps(candle(at, 12.0))]).encode()))
        for number, name in enumerate(names):
            os.utime(root / name, (1_600_000_000, 1_600_000_000 + 60 * (number == newest)))
        named = [names[0], f"{names[1]}:3", f"{names[2]}:3"]
        reason = f"{named[newest]} holds another candle of this time and is newer"
        for dry_run, new in ((True, 4), (False, 4), (False, 0)):
            report = await import_dump(container, root, dry_run=dry_run)
            reasons = {entry.path: entry.reason for entry in report.skipped}
            assert reasons.pop(f"data/candle/e/{symbol}/1m/0.json")
            assert reasons == {name: reason for number, name in enumerate(named) if number != newest}
            counts = report.domains["candle"]
            assert (counts.files, counts.new, counts.same, counts.skipped) == (4, new, 5 - new, 3)
        [stored] = await container.candle_db_service.find_data(symbol, "1m", "e", at, 1)
        assert stored["close"] == 10.0 + newest


async def test_lines_of_one_time_are_compared_however_far_apart_they_are(
    container: Container, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A dry run counts none twice, and the line that was taken is named."""
    monkeypatch.setattr(series_files, "LINES_AT_ONCE", 2)
    rows = [candle(JANUARY - n * MINUTE) for n in range(5)]
    lines = [*map(json.dumps, rows), json.dumps(rows[0]), json.dumps({**rows[1], "volume": 2.0})]
    write_dump(tmp_path, {f"{SERIES}/e/S/1m/2024-01.ndjson": "\n".join(lines)})
    for dry_run, new in ((True, 5), (False, 5), (False, 0)):
        report = await import_dump(container, tmp_path, dry_run=dry_run)
        assert (report.domains["candle"].new, report.domains["candle"].same) == (new, 6 - new)
        (skipped,) = report.skipped
        assert skipped.reason == "line 2 holds another candle of this time, which was taken"


async def test_fields_that_no_candle_has_are_reported(
    container: Container, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """Of both forms; those of a stored row, which say nothing new, are not."""
    write_dump(
        tmp_path,
        {
            f"{SERIES}/e/S/1m/2024-01.ndjson": json.dumps({**candle(JANUARY), "foo": 1, "symbol": "S"}),
            f"data/candle/e/S/1m/{CANDLE_TIME}.json": json.dumps({**candle(CANDLE_TIME), "quoteVolume": 1}),
            f"data/candle/e/S/1m/{JANUARY + MINUTE}.json": json.dumps({**candle(JANUARY + MINUTE), "bar": 1}),
        },
    )
    report = await import_dump(container, tmp_path)
    assert (report.domains["candle"].new, report.ignored_fields) == (3, ["bar", "foo", "quoteVolume"])
    run = command_runner(settings, monkeypatch, capsys)
    status, shown = await run("import-dump", str(tmp_path))
    assert (status, "Fields of candles that are not stored: bar, foo, quoteVolume." in shown) == (0, True)
    (tmp_path / f"{SERIES}/e/S/1m/2023-12.ndjson").write_text("{}")
    status, shown = await run("import-dump", str(tmp_path), "--dry-run")
    assert (status, "\n1 line was skipped:\n" in shown) == (3, True)
    assert json.loads((await run("import-dump", str(tmp_path), "--json"))[1])["ignored_fields"] == report.ignored_fields


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
