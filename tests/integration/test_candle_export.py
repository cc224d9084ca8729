"""`export_candles` and the commands on stored series: files that read back the same, and what is listed."""

import asyncio
import json
import os
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas
import polars
import pytest
from bson.int64 import Int64

from backtest_persist import Container, InvalidKeyError, JsonBackend, Settings, SettingsError
from backtest_persist.domains.candle import CandleDbService
from backtest_persist.operations import export_candles, find_candle_gaps, import_candles
from backtest_persist.operations.candles import exporting
from tests.support.processes import command_runner

pytestmark = pytest.mark.parametrize("driver", ["motor"], indirect=True)

START, MINUTE = 1_704_067_200_000, 60_000
SERIES = ("BTC/USDT", "1m", "binance")
HARD = [0.1 + 0.2, 5e-324, 1.7976931348623157e308, 2**53 + 2.0, 1e16, 1e22, 1 / 3, -0.0, 12.0, 1e-7, 0.1 + 0.7]
"""Numbers whose shortest text is not usual."""


def candle(at: int, volume: float = 10.0) -> dict[str, Any]:
    price = 10 + volume % 1
    return {"timestamp": at, "open": price, "high": price, "low": price, "close": price, "volume": volume}


async def hard_candles(db: CandleDbService) -> list[dict[str, Any]]:
    """Store candles with hard numbers and a gap, and return them."""
    candles = [candle(START + n * MINUTE, volume) for n, volume in enumerate(HARD)]
    candles += [candle(START + n * MINUTE) for n in range(100, 105)]
    await db.create_many(*SERIES, candles)
    return candles


@pytest.mark.parametrize(
    "name", ["s.csv", "s.csv.gz", "s.parquet", "s.feather", "by [polars]*.parquet", "by polars.arrow"]
)
async def test_what_is_exported_and_imported_again_is_the_same(
    container: Container, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Number by number, in every format and by either library, in parts, from MongoDB and from files."""
    monkeypatch.setattr(exporting, "PART", 7)
    candles = await hard_candles(container.candle_db_service)
    with monkeypatch.context() as installed:
        if "polars" in name:
            installed.setitem(sys.modules, "pyarrow", None)
        report = await export_candles(container, tmp_path / name, *SERIES)
    assert (report.rows, report.first, report.last) == (16, START, START + 104 * MINUTE)
    assert (report.skipped, report.file) == ([], str(tmp_path / name))
    assert report.bytes == (tmp_path / name).stat().st_size
    assert os.listdir(tmp_path) == [name]
    files = JsonBackend(tmp_path / "dump")
    imported = await import_candles(files.services, tmp_path / name, *SERIES, as_of=datetime.now(UTC))
    assert (imported.new, imported.skipped, imported.ignored) == (16, [], ())
    stored = await files.services.db_service(CandleDbService).find_data(*SERIES, START, 200)
    assert list(map(repr, stored)) == list(map(repr, candles))  # of which -0.0 is not 0.0
    assert (await import_candles(container, tmp_path / name, *SERIES, as_of=datetime.now(UTC))).same == 16
    (tmp_path / "again").mkdir()
    await export_candles(files.services, tmp_path / "again" / name, *SERIES)
    if "polars" not in name:
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / name).read_bytes()


async def test_the_formats_have_the_columns_of_their_readers(container: Container, tmp_path: Path) -> None:
    """CSV has ms and the shortest numbers; Parquet and feather are what freqtrade reads, a date in UTC first."""
    await hard_candles(container.candle_db_service)
    await export_candles(container, tmp_path / "s.csv", *SERIES, since="2024-01-01", until=START + 2 * MINUTE)
    assert (tmp_path / "s.csv").read_text() == (
        "timestamp,open,high,low,close,volume\n"
        f"{START},10.3,10.3,10.3,10.3,0.30000000000000004\n"
        f"{START + MINUTE},10.0,10.0,10.0,10.0,5e-324\n"
    )
    await export_candles(container, tmp_path / "s", *SERIES, format="feather")
    frame: Any = pandas.read_feather(tmp_path / "s")
    assert list(frame.columns) == ["date", "open", "high", "low", "close", "volume"]
    assert str(frame.dtypes["date"]) == "datetime64[ms, UTC]"
    assert frame["date"][0] == pandas.Timestamp("2024-01-01", tz="UTC")
    assert frame["volume"].tolist() == [*HARD, *[10.0] * 5]
    await export_candles(container, tmp_path / "s.parquet", *SERIES, since=datetime(2024, 1, 1, 1, 40, tzinfo=UTC))
    schema = polars.read_parquet(tmp_path / "s.parquet").schema
    assert dict(schema) == {
        "date": polars.Datetime("ms", "UTC"),
        **dict.fromkeys(list(frame.columns)[1:], polars.Float64),
    }
    assert polars.read_parquet(tmp_path / "s.parquet").height == 5


async def test_what_an_import_would_refuse_is_skipped_and_reported(container: Container, tmp_path: Path) -> None:
    """Candles of other programs: at times of no candle, impossible, and no candles at all; all others are written."""
    await container.candle_db_service.create_many(*SERIES, [candle(START + n * MINUTE) for n in range(6)])
    collection = container.mongo_service.collection("candle-items")
    dates = {"createDate": datetime.now(UTC), "updatedDate": datetime.now(UTC)}
    names = {"symbol": SERIES[0], "interval": SERIES[1], "exchangeName": SERIES[2], **dates}
    await collection.insert_many(
        [
            {**names, **candle(START + 30_000), "timestamp": Int64(START + 30_000)},
            {**names, **candle(START + 6 * MINUTE), "high": 1.0},
            {**names, **candle(START + 7 * MINUTE), "open": "text"},
            {**names, **candle(START + 7 * MINUTE + 1), "open": None},
            {**names, **candle(START + 8 * MINUTE), "volume": 3},
        ]
    )
    report = await export_candles(container, tmp_path / "s.csv", *SERIES)
    assert (report.rows, report.last) == (7, START + 8 * MINUTE)
    skipped = sorted(report.skipped)
    assert [candle.timestamp for candle in skipped] == [
        START + 30_000,
        START + 6 * MINUTE,
        START + 7 * MINUTE,
        START + 7 * MINUTE + 1,
    ]
    reasons = [candle.reason for candle in skipped]
    assert "is not the start of a 1m candle" in reasons[0]
    assert "high is below" in reasons[1]
    assert "open" in reasons[2]
    assert len((tmp_path / "s.csv").read_text().splitlines()) == 8
    (summary,) = await container.candle_db_service.list_series()
    assert (summary.count, summary.misaligned, summary.missing) == (9, 2, 0)


async def test_candles_far_from_all_others_are_found_at_once(container: Container, tmp_path: Path) -> None:
    """Times in us or ns, of another program, are skipped and listed; centuries without a candle take no time."""
    far = [at - at % MINUTE for at in (2_000_000_000_000, 90_000_000_000_000)]
    stray = [-4_000_000_000_000_000_000, START * 1000, START * 1_000_000]
    db = container.candle_db_service
    await db.create_many(*SERIES, [candle(START + n * MINUTE) for n in range(3)])
    dates = {"createDate": datetime.now(UTC), "updatedDate": datetime.now(UTC)}
    names = {"symbol": SERIES[0], "interval": SERIES[1], "exchangeName": SERIES[2], **dates}
    await container.mongo_service.collection("candle-items").insert_many(
        [{**names, **candle(at), "timestamp": Int64(at - at % MINUTE)} for at in (*far, *stray)]
    )
    files = JsonBackend(tmp_path / "dump").services
    stored = {at - at % MINUTE for at in stray}
    await files.db_service(CandleDbService).create_many(*SERIES, [candle(START)])
    (directory,) = (path.parent for path in (tmp_path / "dump").rglob(f"{START}.json"))
    for at in (START + MINUTE, *far, *stored):
        (directory / f"{at}.json").write_text(json.dumps(candle(at)))
    for services, name, count in ((container, "s.csv", 5), (files, "j.csv", 4)):
        async with asyncio.timeout(20):
            report = await export_candles(services, tmp_path / name, *SERIES)
        assert (report.rows, report.first, report.last) == (count, START, far[1])
        assert [skipped.timestamp for skipped in report.skipped] == sorted(stored)
        assert "looks like microseconds" in report.skipped[1].reason
        assert len((tmp_path / name).read_text().splitlines()) == count + 1


async def test_exports_to_one_file_do_not_mix(container: Container, tmp_path: Path) -> None:
    """Each of several at once, in one process or not, is whole, and a link stays one to the file that is replaced."""
    await container.candle_db_service.create_many("S", "1m", "e", [candle(START + n * MINUTE) for n in range(30)])
    await container.candle_db_service.create_many("T", "1m", "e", [candle(START + n * MINUTE, 2) for n in range(20)])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exporting, "PART", 3)
        path = tmp_path / f"{'s' * 245}.csv"
        reports = await asyncio.gather(
            *(export_candles(container, path, symbol, "1m", "e", force=True) for symbol in ("S", "T", "S"))
        )
    lines = path.read_text().splitlines()
    assert len(lines) - 1 in (20, 30)
    assert len({line.split(",")[-1] for line in lines[1:]}) == 1
    assert {report.bytes for report in reports} == {1207, 797}
    assert os.listdir(tmp_path) == [path.name]

    (tmp_path / "other").mkdir()
    target, link = tmp_path / "other" / "target.csv", tmp_path / "link.csv"
    link.symlink_to("other/target.csv")
    for _ in range(2):  # at first it leads nowhere
        report = await export_candles(container, link, "S", "1m", "e", force=True)
        assert (report.file, link.is_symlink(), len(target.read_text().splitlines())) == (str(link), True, 31)
        target.write_text("old")
    with pytest.raises(SettingsError, match="exists; name another file"):
        await export_candles(container, link, "S", "1m", "e")
    os.mkfifo(tmp_path / "pipe.csv")
    with pytest.raises(SettingsError, match=r"pipe.csv is no regular file; name another one"):
        await export_candles(container, tmp_path / "pipe.csv", "S", "1m", "e", force=True)
    assert os.listdir(tmp_path / "other") == ["target.csv"]


async def test_a_file_is_whole_or_not_there(
    container: Container, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An existing one stays unless it is replaced by force; an export that fails leaves nothing behind."""
    await hard_candles(container.candle_db_service)
    path = tmp_path / "s.csv"
    path.write_text("mine")
    with pytest.raises(SettingsError, match="exists; name another file, or replace it by force"):
        await export_candles(container, path, *SERIES)
    assert path.read_text() == "mine"
    assert (await export_candles(container, path, *SERIES, force=True)).rows == 16
    for name, problem in (("s", "names no format"), ("s.xlsx", "names no format"), ("none/s.csv", "no directory")):
        with pytest.raises(SettingsError, match=problem):
            await export_candles(container, tmp_path / name, *SERIES)
    with pytest.raises(SettingsError, match="is a directory"):
        await export_candles(container, tmp_path, *SERIES, format="csv", force=True)
    with pytest.raises(SettingsError, match="format must be csv, parquet or feather, not 'xlsx'"):
        await export_candles(container, tmp_path / "x", *SERIES, format="xlsx")  # pyright: ignore[reportArgumentType]
    with pytest.raises(InvalidKeyError, match=r"no candles are stored; .*candles ls"):
        await export_candles(container, tmp_path / "t.csv", "none", "1m", "binance")
    for bounds in ((START + 20 * MINUTE, START + 30 * MINUTE), (START - 9 * MINUTE, START), (START, START)):
        with pytest.raises(InvalidKeyError, match="no candles are stored in this range"):
            await export_candles(container, tmp_path / "t.csv", *SERIES, *bounds)
    with pytest.raises(InvalidKeyError, match="looks like seconds"):
        await export_candles(container, tmp_path / "t.csv", *SERIES, since=START // 1000)

    class Stop(Exception):  # noqa: N818
        pass

    class Stopping:
        def begin(self, total: int) -> None:
            assert total == 105

        def advance(self, done: int) -> None:
            raise Stop

    class Cancelling(Stopping):
        def advance(self, done: int) -> None:
            exporting = asyncio.current_task()
            assert exporting is not None
            exporting.cancel()

    for name in ("t.csv", "t.feather", "t.parquet"):
        with pytest.raises(Stop):
            await export_candles(container, tmp_path / name, *SERIES, progress=Stopping())
        with pytest.raises(asyncio.CancelledError):
            await asyncio.create_task(export_candles(container, tmp_path / name, *SERIES, progress=Cancelling()))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(Stop):
        await export_candles(container, tmp_path / "t.parquet", *SERIES, progress=Stopping())
    monkeypatch.setitem(sys.modules, "polars", None)
    with pytest.raises(SettingsError, match=r'pip install "backtest-persist\[polars\]"'):
        await export_candles(container, tmp_path / "t.parquet", *SERIES)
    assert os.listdir(tmp_path) == ["s.csv"]


async def test_gaps_are_found_between_what_is_stored_and_in_a_range(container: Container) -> None:
    """What has not closed yet is not missing, and a range without candles is one gap."""
    await hard_candles(container.candle_db_service)
    whole = await find_candle_gaps(container, *SERIES)
    assert whole.gaps == [(START + 11 * MINUTE, START + 100 * MINUTE, 89)]
    assert (whole.since, whole.until, whole.missing) == (START, START + 105 * MINUTE, 89)
    until = await find_candle_gaps(container, *SERIES, START - MINUTE, datetime(2024, 1, 1, 0, 12, tzinfo=UTC))
    assert [tuple(gap) for gap in until.gaps] == [
        (START - MINUTE, START, 1),
        (START + 11 * MINUTE, START + 12 * MINUTE, 1),
    ]
    empty = await find_candle_gaps(container, "none", "1m", "e", START, START + 5 * MINUTE)
    assert empty.gaps == [(START, START + 5 * MINUTE, 5)]
    soon = int(datetime.now(UTC).timestamp() * 1000) + 10 * MINUTE
    coming = await find_candle_gaps(container, "none", "1m", "e", soon, soon + 5 * MINUTE)
    assert (coming.gaps, coming.missing) == ([], 0)
    with pytest.raises(InvalidKeyError, match="no candles are stored"):
        await find_candle_gaps(container, "none", "1m", "e", START)


async def test_the_commands_list_export_and_show_gaps(
    container: Container,
    settings: Settings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """On one screen of 80 columns; --json has it in ms; the exit status says whether candles were skipped."""
    in_process = command_runner(settings, monkeypatch, capsys)
    monkeypatch.chdir(tmp_path)

    async def run(*arguments: str) -> tuple[int, str]:
        return await in_process("candles", *arguments)

    assert await run("ls") == (0, "No candles are stored.\n")
    await hard_candles(container.candle_db_service)
    await container.candle_db_service.create_many("[b]", "1d", "binance", [candle(START)])
    bad = {"symbol": SERIES[0], "interval": "1m", "exchangeName": "binance", "createDate": datetime.now(UTC)}
    await container.mongo_service.collection("candle-items").insert_one(
        {**bad, **candle(START + 100 * MINUTE + 1), "updatedDate": datetime.now(UTC)}
    )
    status, shown = await run("ls")
    assert status == 0
    assert shown.splitlines()[1].split() == [
        *("binance", "BTC/USDT", "1m", "2024-01-01", "00:00", "2024-01-01", "01:44", "16", "89", "in", "1"),
    ]
    assert "[b] 1d" in shown
    assert "\n2 series, 17 candles; 89 are missing, in 1 gap.\n" in shown
    assert "binance BTC/USDT 1m: 1 more are stored at times at which no candle begins." in shown
    assert max(map(len, shown.splitlines())) <= 80
    listed = json.loads((await run("ls", "--json"))[1])
    assert listed[0] == {
        "symbol": "BTC/USDT",
        "interval": "1m",
        "exchange_name": "binance",
        "first": START,
        "last": START + 104 * MINUTE,
        "count": 16,
        "missing": 89,
        "gaps": 1,
        "misaligned": 1,
    }
    status, shown = await run("gaps", *SERIES)
    lines = shown.splitlines()
    assert (status, lines[0]) == (0, "From 2024-01-01 00:00 to 2024-01-01 01:45 (exclusive), in UTC:")
    assert lines[2].split() == ["2024-01-01", "00:11", "2024-01-01", "01:40", "89"]
    assert lines[3:] == ["89 candles are missing, in 1 gap."]
    assert max(map(len, lines)) <= 80
    gaps = json.loads((await run("gaps", *SERIES, "--since", "2024-01-01T00:30Z", "--json"))[1])
    assert gaps["gaps"] == [{"start": START + 30 * MINUTE, "end": START + 100 * MINUTE, "missing": 70}]

    key = ("--symbol", SERIES[0], "--interval", "1m", "--exchange", "binance")
    (tmp_path / "s.csv").touch()
    status, shown = await run("export", "s.csv", *key, "--force", "--since", "2024-01-01T01:00+00:00")
    assert status == 3
    assert "s.csv: 5 candles" in shown
    assert "They reach from 2024-01-01 01:40 to 2024-01-01 01:44, in UTC." in shown
    assert "1 stored candle was skipped:\n  2024-01-01 01:40:00.001: timestamp" in shown
    status, shown = await run("export", "t.csv", *key, "--until", "2024-01-01T00:05Z", "--json")
    assert (status, json.loads(shown)["rows"]) == (0, 5)
