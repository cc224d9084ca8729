"""Files of candles without servers: what is refused and asked, exact numbers, local times, and memory."""

import gzip
import io
import json
import tracemalloc
import zipfile
from contextlib import suppress
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from backtest_persist import BacktestPersistError, DummyBackend, InvalidKeyError, InvalidPayloadError, SettingsError
from backtest_persist.core.candles.ohlcv import COLUMNS, Series
from backtest_persist.operations import import_candles
from backtest_persist.operations.candles.detection import Options, open_reading
from backtest_persist.operations.candles.files import CandleFile
from backtest_persist.operations.candles.layouts import KLINE
from backtest_persist.operations.candles.reading import Chunk, in_ms
from tests.support.candle_files import FILES, MINUTE, START, kline, write_klines

KLINES = "".join(kline(number) for number in range(20))
HEADER = "date,open,high,low,close,volume\n"


def packed(*names: str) -> bytes:
    """Return a zip archive of files with those names."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            archive.writestr(name, KLINES)
    return buffer.getvalue()


def rows(*times: Any, header: str = HEADER) -> bytes:
    """Return a CSV file of candles at those times."""
    return (header + "".join(f"{time},1,2,0.5,1.5,3\n" for time in times)).encode()


def read(path: Path, interval: str = "1m", **options: Any) -> Chunk:
    """Read a small file."""
    with open_reading(CandleFile(path), Series("BTCUSDT", interval, "binance"), Options(**options)) as reading:
        [chunk] = reading.chunks()
        return chunk


REFUSED: list[tuple[str, bytes, str, dict[str, Any], str]] = [
    # a name, the file, the interval, the options, the message
    ("empty", b"", "1m", {}, "it is empty"),
    ("blank", b"\r\n \r\n", "1m", {}, "it is empty"),
    ("header", HEADER.encode(), "1m", {}, "it has a header, but no rows"),
    ("garbage", bytes(range(256)) * 9, "1m", {}, "it is no file of candles in a known format"),
    ("picture", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "1m", {}, "it is no file of candles in a known format"),
    ("text", b"Too many requests, please slow down.\n", "1m", {}, "it has no lines of five or more fields"),
    ("one line", b"x," * 100_000, "1m", {}, "it has a line of 100,000 characters or more"),
    ("html", b"\n<!DOCTYPE html><html>404, a, b, c, d", "1m", {}, "it is a page of HTML or XML"),
    ("xml", b'<?xml version="1.0"?><Error><Code>NoSuchKey</Code></Error>', "1m", {}, "it is a page of HTML or XML"),
    ("object", b'{"code":-1121,"msg":"Invalid symbol."}', "1m", {}, "an object with code, msg, which is no candle"),
    ("strings", b'["a","b"]', "1m", {}, "it holds no list of candles"),
    ("cut JSON", b"[[1704067200000,1,2,0.5,1.5,3],[17040", "1m", {}, "it is cut off; download it again"),
    ("Coinbase", b"[[1704067200,1,4,3,2,5],[1704067260,1,4,3,2,5]]", "1m", {}, "6 columns have no header.*--columns"),
    ("six", rows(START, START + MINUTE, header=""), "1m", {}, "6 columns have no header.*--columns timestamp,open"),
    ("too few", rows(START, header=""), "1m", {"columns": ["timestamp", "open"]}, "it has 6 columns, and .* names 2"),
    ("no close", b"time,open,high,low,x,volume\n1,1,1,1,1,1\n", "1m", {}, "no column close.*time,open,high,low,x,vol"),
    ("twice", b"time,open,high,low,close,Close,v\n1,1,1,1,1,1,1\n", "1m", {}, "several columns are called close"),
    ("cut zip", packed("a.csv")[:-40], "1m", {}, "the archive is damaged or cut off"),
    ("cut gzip", gzip.compress(KLINES.encode())[:-20], "1m", {}, "the archive is damaged or cut off"),
    ("two files", packed("a.csv", "b.csv"), "1m", {}, "the archive holds 2 files: a.csv, b.csv"),
    ("spreadsheet", packed("[Content_Types].xml", "xl/workbook.xml"), "1m", {}, "it is a spreadsheet; save it as CSV"),
    ("Parquet", b"PAR1" + bytes(40), "1m", {}, "it is damaged or cut off"),
    ("feather", b"ARROW1" + bytes(40), "1m", {}, "it is damaged or cut off"),
    ("old feather", b"FEA1" + bytes(40), "1m", {}, "it is of the first version of feather"),
    ("interval", KLINES.encode(), "1h", {}, r"its rows are 1m apart, and the interval \(--interval\) is 1h"),
    ("weeks", rows("2024-03-04", "2024-03-11"), "1d", {}, "its rows are 1w apart"),
    ("days", rows("2024-03-04", "2024-03-05"), "1h", {}, "its rows are days, and the interval is 1h"),
    ("session", rows("2024-01-02T09:30-05:00", "2024-01-03T09:30-05:00"), "1d", {}, "at 14:30:00 UTC.*--session-l"),
    ("order", rows("02.03.2024", "03.03.2024", "04.03.2024"), "1d", {}, "'02.03.2024', can begin with.*--date-order d"),
    ("orders", rows("13.02.2024", "02.14.2024"), "1d", {}, "some of its dates begin with the day, others with"),
    ("naive", rows("2024-03-10 00:00", "2024-03-10 00:01"), "1m", {}, "-10 00:01', have no time zone.*--tz UTC"),
    ("MetaTrader", (FILES / "metatrader4.csv").read_bytes(), "1m", {}, "time of the broker's server.*--tz UTC"),
    ("unit", rows("2024-03-10", "2024-03-11"), "1d", {"unit": "ms"}, "unit .* is for times as numbers since 1970"),
    ("index", rows(0, 1, 2, header=",open,high,low,close,volume\n"), "1m", {}, "its time 2 is near 1970 in every unit"),
    ("words", rows("Monday", "Tuesday"), "1d", {}, "its times, such as 'Monday', are in no known form"),
    ("two volumes", b"date,open,high,low,close,Volume ETH,Volume USD\n2024-01-01,1,1,1,1,1,1\n", "1d", {},
     "the volume may be 'Volume ETH' and 'Volume USD'; what is stored is the volume in what is traded"),
    ("no volume", b"date,open,high,low,close\n2024-01-01,1,1,1,1\n", "1d", {}, "no column of volume.*--no-volume"),
    ("grouped", b"date;open;high;low;close;volume\n2024-01-01;1,234;1,234;1,234;1,234;5\n", "1d", {}, "--decimal ,"),
    ("thousands", b'date,open,high,low,close,volume\n2024-01-01,"1,234.5","1,234.5","1,234.5","1,234.5",5\n', "1d", {},
     "separators of thousands, such as '1,234.5'"),
    ("all null", b"date,open,high,low,close,volume\n2024-01-01,null,null,null,null,null\n", "1d", {},
     "none of its first 1 rows can be read as .*; line 2: it has no prices"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("content", "interval", "options", "message"), [c[1:] for c in REFUSED], ids=[c[0] for c in REFUSED]
)
async def test_a_file_that_holds_no_candles_or_can_be_read_in_two_ways_is_refused(
    content: bytes, interval: str, options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    """The error is one line that begins with the file, says what is wrong, and what to do."""
    file = tmp_path / "candles.csv"
    file.write_bytes(content)
    with pytest.raises(InvalidPayloadError, match=message) as raised:
        await import_candles(DummyBackend().services, file, "BTCUSDT", interval, "binance", **options)
    assert str(raised.value).startswith(f"{file}: ")
    assert "\n" not in str(raised.value)


async def test_a_path_or_an_option_that_cannot_work_is_a_typed_error(tmp_path: Path) -> None:
    """A missing file and a directory are errors of settings, an unknown zone and interval of keys."""
    services, file = DummyBackend().services, FILES / "metatrader4.csv"
    missing = tmp_path / "none.csv"
    for path, message in ((missing, f"There is no file {missing}."), (tmp_path, f"{tmp_path} is a directory; ")):
        with pytest.raises(SettingsError) as raised:
            await import_candles(services, path, "EURUSD", "1m", "broker")
        assert str(raised.value).startswith(message)
    with pytest.raises(InvalidKeyError, match="tz must be the name of a time zone"):
        await import_candles(services, file, "EURUSD", "1m", "broker", tz="Mars/Base")
    with pytest.raises(InvalidKeyError, match="interval must be one of"):
        await import_candles(services, file, "EURUSD", "7m", "broker")


@pytest.mark.parametrize(
    ("content", "interval", "options", "first"),
    [
        (rows(START, START + MINUTE, header=""), "1m", {"columns": COLUMNS}, START),
        (rows("02.03.2024", "03.03.2024"), "1d", {"date_order": "dmy"}, 1_709_337_600_000),
        (rows("02/03/2024", "02/04/2024", "02/13/2024"), "1d", {}, 1_706_918_400_000),
        (rows("2024-03-10 00:00", "2024-03-10 00:01"), "1m", {"tz": "-05:00"}, 1_710_046_800_000),
        (rows("20240310 000000", "20240310 000100"), "1m", {"tz": "UTC"}, 1_710_028_800_000),
        (rows("2024-03-08", "2024-03-11"), "1d", {}, 1_709_856_000_000),
        (rows("2024-03-10 00:00", "2024-03-10 00:01", header="Date(UTC),o,h,l,c,v\n"), "1m", {}, 1_710_028_800_000),
        (rows("1704067200.0", "1704067260.0"), "1m", {}, START),
        (rows("1.7040672e+12", "1.70406726e+12"), "1m", {}, START),
        (rows(1704067200000000000, 1704067260000000000), "1m", {}, START),
    ],
)  # fmt: skip
def test_an_answer_or_another_row_decides(
    content: bytes, interval: str, options: dict[str, Any], first: int, tmp_path: Path
) -> None:
    """A file that is refused without an option is read with it; dates are read by the row that shows their order."""
    file = tmp_path / "candles.csv"
    file.write_bytes(content)
    assert read(file, interval, **options).candles[0]["timestamp"] == first


def test_the_order_of_dates_is_looked_for_in_all_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Minutes of many days show the order of day and month only behind the sample."""
    monkeypatch.setattr("backtest_persist.operations.candles.detection.SAMPLE", 10)
    times = [f"{day:02}.02.2024 00:{minute:02}" for day in range(1, 14) for minute in range(10)]
    file = tmp_path / "candles.csv"
    file.write_bytes(rows(*times))
    assert read(file, tz="UTC").candles[-1]["timestamp"] == 1_707_783_000_000 - MINUTE  # 13 February


def test_local_times_that_do_not_exist_or_exist_twice_are_named(tmp_path: Path) -> None:
    """Where clocks are set, no time is shifted: the row is skipped with the reason, and those around it are right."""
    file = tmp_path / "candles.csv"
    spring = [f"2024-03-10 {hour:02}:00" for hour in range(5)]
    autumn = [f"2024-11-03 {hour:02}:00" for hour in range(4)]
    file.write_bytes(rows(*spring, *autumn))
    chunk = read(file, "1h", tz="America/New_York")
    assert chunk.skipped == [
        (4, "its time 2024-03-10 02:00:00 does not exist in America/New_York: the clock was set forward"),
        (
            8,
            "its time 2024-11-03 01:00:00 is twice in America/New_York: the clock was set back; write it with its "
            "offset",
        ),
    ]
    hours = [candle["timestamp"] // 3_600_000 - 475_000 for candle in chunk.candles]
    assert hours == [13, 14, 15, 16, 5724, 5727, 5728]


def test_daily_candles_of_sessions_are_stored_under_the_day_in_which_they_close(tmp_path: Path) -> None:
    """With the length of a session, days of New York, of FX and of a broker become those in which they are known."""
    file, day = tmp_path / "candles.csv", 86_400_000
    for times, options, expected in (
        (["2024-03-08T09:30-05:00", "2024-03-11T09:30-04:00"], {"session": 23_400_000}, [67, 70]),  # the clocks are set
        (["2024-03-07T21:00Z", "2024-03-10T21:00Z"], {"session": day}, [67, 70]),
        (["2024.03.08", "2024.03.11"], {"session": day, "tz": "Europe/Athens"}, [67, 70]),
    ):
        file.write_bytes(rows(*times))
        found = [candle["timestamp"] for candle in read(file, "1d", **options).candles]
        assert found == [START + number * day for number in expected]


def test_json_lines_are_read_as_csv_is(tmp_path: Path) -> None:
    """Objects are candles by their names, in a list or a line each; what a line lacks is named."""
    entries = [dict(zip(COLUMNS, (START + n * MINUTE, 1, 2, 0.5, 1.5, 3), strict=True)) for n in range(3)]
    del entries[1]["high"]
    lines, file = [json.dumps(entry) for entry in entries], tmp_path / "candles.ndjson"
    for text in ("\n".join(lines), "[" + ", ".join(lines) + "]"):
        file.write_text(text)
        chunk = read(file)
        assert [candle["timestamp"] for candle in chunk.candles] == [START, START + 2 * MINUTE]
        assert chunk.skipped == [(2, "its high is 'None', not a number")]


def test_a_time_that_no_calendar_has_is_named(tmp_path: Path) -> None:
    """A row whose time is far off, or whose zone there is not, is skipped, and the others are read."""
    file = tmp_path / "candles.csv"
    odd = [
        "9999-12-31 23:59",
        "0001-01-01 00:00",
        "2024-13-01 00:00",
        "2024-01-01 00:03+77:00",
        "2024-01-01T00:04Z",
        "",
    ]
    file.write_bytes(rows("2024-01-01 00:00", "2024-01-01 00:01", *odd))
    for zone, lines in (("Asia/Tokyo", [4, 5, 6, 7, 9]), ("America/New_York", [4, 6, 7, 9])):
        chunk = read(file, tz=zone)
        assert [skipped.line for skipped in chunk.skipped] == lines
        assert chunk.skipped[-1] == (9, "it has no time")
    file.write_bytes(rows(START, START + 86_400_000, 9_000_000_000_000_000_000))
    with pytest.raises(InvalidPayloadError, match="apart"):
        read(file, "1h", unit="ms")
    assert [row.line for row in read(file, "1d", unit="ms", session=86_400_000).skipped] == [4]


def test_rare_trades_do_not_make_another_interval(tmp_path: Path) -> None:
    """Minutes without a trade are missing, and the others are still candles of a minute."""
    file = tmp_path / "candles.csv"
    file.write_bytes(rows(*(START + minute * MINUTE for minute in (0, 2, 4, 11, 18, 20)), header=HEADER))
    assert len(read(file).candles) == 6


def test_times_near_1970_are_not_taken_for_another_unit(tmp_path: Path) -> None:
    """Only --unit tells them; in a file of ms, what looks like seconds is skipped rather than read wrong."""
    file = tmp_path / "candles.csv"
    days = range(-2, 3)
    file.write_bytes(rows(*(day * 86_400 for day in days)))
    times = [in_ms(candle["timestamp"]) for candle in read(file, "1d", unit="s").candles]
    assert times == [day * 86_400_000 for day in days]
    file.write_bytes(rows(172_800_000, *(START + day * 86_400_000 for day in range(5))))
    chunk = read(file, "1d")
    assert [skipped.line for skipped in chunk.skipped] == [2]
    assert len(chunk.candles) == 5


@pytest.mark.parametrize(
    "text",
    ["0.1", "93576.00000000", "9007199254740993", "0.1000000000000000055511151231257827", "1e-7", "123456789.123456789",
     "1.7976931348623157e308", "2.2250738585072011e-308", "0.30000000000000004", "1234567.89012345", "4.35", "1.005"],
)  # fmt: skip
async def test_numbers_are_the_nearest_floats(text: str, tmp_path: Path) -> None:
    """A number is stored as `float` reads its text, however many digits it has; lost digits are counted."""
    file = tmp_path / "candles.csv"
    file.write_text(f"{HEADER}2024-01-01,{text},{text},{text},{text},{text}\n2024-01-02,1,1,1,1,1\n")
    candle = read(file, "1d").candles[0]
    assert {float(candle[name]) for name in ("open", "high", "low", "close", "volume")} == {float(text)}
    report = await import_candles(DummyBackend().services, file, "BTCUSDT", "1d", "binance")
    assert report.rounded == (Decimal(repr(float(text))) != Decimal(text))


def test_a_row_of_another_symbol_or_length_is_skipped(tmp_path: Path) -> None:
    """Several series in one file do not become one; underscores are no part of a number."""
    file = tmp_path / "candles.csv"
    lines = ["A,2024-01-01,1,2,0.5,1,1", "B,2024-01-01,1,2,0.5,1,1", "A,2024-01-02,1_0,2,0.5,1,1", "A,2024-01-03,1,2"]
    file.write_text("symbol," + HEADER + "\n".join([*lines, "symbol," + HEADER, "A,2024-01-04,1,2,0.5,1,1"]))
    chunk = read(file, "1d")
    assert [tuple(row) for row in chunk.skipped] == [
        (3, "it is of another symbol than the first row, which is of 'A'"),
        (4, "its open is '1_0', not a number"),
        (5, "the number of its fields is 4, not 7"),
    ]
    assert len(chunk.candles) == 2


@pytest.mark.parametrize("counts", [(3000, 9000), pytest.param((100_000, 1_000_000), marks=pytest.mark.soak)])
def test_a_long_file_is_read_in_bounded_memory(
    counts: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several times as many rows take no more memory, as CSV and as JSON."""
    monkeypatch.setattr("backtest_persist.operations.candles.reading.BATCH", 500)
    monkeypatch.setattr("backtest_persist.operations.candles.tables._BLOCK", 50_000)
    series, peaks = Series("BTCUSDT", "1m", "binance"), dict[str, list[int]]()
    for count in counts:
        lines = write_klines(tmp_path / f"{count}.csv", count).read_text().splitlines()
        (tmp_path / f"{count}.json").write_text("[" + ",\n".join(f"[{line}]" for line in lines) + "]")
        del lines
        for file in (tmp_path / f"{count}.csv", tmp_path / f"{count}.json"):
            tracemalloc.start()
            with open_reading(CandleFile(file), series, Options()) as reading:
                assert sum(len(chunk.candles) for chunk in reading.chunks()) == count
            peaks.setdefault(file.suffix, []).append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
    for small, large in peaks.values():
        assert large < 1.3 * small


async def test_progress_counts_the_bytes_of_the_file(tmp_path: Path) -> None:
    """What is advanced adds up to what was announced, of a file that is packed or has columns as well."""

    class Recorder:
        def begin(self, total: int) -> None:
            self.total, self.steps = total, list[int]()

        def advance(self, done: int) -> None:
            self.steps.append(done)

    plain = write_klines(tmp_path / "klines.csv", 25_000)
    (tmp_path / "klines.csv.gz").write_bytes(gzip.compress(plain.read_bytes()))
    frame: Any = pytest.importorskip("polars").read_csv(plain, has_header=False)
    frame.rename(dict(zip(frame.columns, KLINE, strict=True))).write_parquet(tmp_path / "klines.parquet")
    for name in ("klines.csv", "klines.csv.gz", "klines.parquet"):
        recorder = Recorder()
        await import_candles(DummyBackend().services, tmp_path / name, "BTCUSDT", "1m", "binance", progress=recorder)
        assert recorder.total == sum(recorder.steps) == (tmp_path / name).stat().st_size
        assert len([step for step in recorder.steps if step > 0]) >= 2
        assert min(recorder.steps) >= 0


async def test_every_error_of_a_damaged_file_is_of_this_package(tmp_path: Path) -> None:
    """A file that is cut off anywhere is read up to there or refused, and never ends in another error."""
    sources = [packed("a.csv"), gzip.compress(KLINES.encode()), (FILES / "freqtrade.json").read_bytes()]
    file = tmp_path / "candles"
    for content in sources:
        for length in range(0, len(content), 7):
            file.write_bytes(content[:length])
            with suppress(BacktestPersistError):
                await import_candles(DummyBackend().services, file, "BTCUSDT", "1m", "binance")
