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


def changed_zip(method: int, changes: dict[int, int], listed_method: int | None = None) -> bytes:
    """Return a zip archive with other bytes at some places, and another method in its directory."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        archive.writestr("a.csv", KLINES * 20)
    content = bytearray(buffer.getvalue())
    for place, byte in changes.items():
        content[place] = byte
    if listed_method is not None:
        content[content.index(b"PK\1\2") + 10] = listed_method
    return bytes(content)


def rows(*times: Any, header: str = HEADER) -> bytes:
    """Return a CSV file of candles at those times."""
    return (header + "".join(f"{time},1,2,0.5,1.5,3\n" for time in times)).encode()


def layout_of(path: Path, interval: str = "1d", symbol: str = "BTCUSDT", **options: Any) -> str:
    """Return the layout of a file in words."""
    with open_reading(CandleFile(path), Series(symbol, interval, "binance"), Options(**options)) as reading:
        return reading.layout


def read(path: Path, interval: str = "1m", symbol: str = "BTCUSDT", **options: Any) -> Chunk:
    """Read a small file."""
    with open_reading(CandleFile(path), Series(symbol, interval, "binance"), Options(**options)) as reading:
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
    ("symbol", b"symbol," + HEADER.encode() + b"ETHUSDT,2024-01-01,1,2,0.5,1,1\n", "1d", {},
     "its symbol is 'ETHUSDT', and the series is of 'BTCUSDT'; give the symbol of the file, or name its columns"),
    ("pair", b"pair," + HEADER.encode() + b"ETH-BTC,2024-01-01,1,2,0.5,1,1\n", "1d", {}, "its pair is 'ETH-BTC'"),
    ("yfinance symbol", (FILES / "yfinance.csv").read_bytes(), "1d", {}, "its Ticker is 'AAPL'"),
    ("dates of a symbol", b"Date,Symbol,Open,High,Low,Close,Volume\n2024-01-02 09:30:00,BTCUSDT,1,2,0.5,1,1\n", "1m",
     {}, "its times, such as '2024-01-02 09:30:00', have no time zone"),
    ("zone of numbers", rows(START, START + MINUTE), "1m", {"tz": "Europe/Athens"},
     r"tz \(--tz\) is for local times, and its times are numbers since 1970, which are in UTC; .* convert them first"),
    ("zone of zoned", rows("2024-01-01T00:00Z", "2024-01-01T00:01Z"), "1m", {"tz": "America/New_York"},
     "tz .* is for local times, and its times have a zone"),
    ("zone of days", rows("2024-03-04", "2024-03-05"), "1d", {"tz": "Europe/Athens"},
     "tz .* is for local times, and its times are days.*--session-length 24h"),
    ("order of ISO dates", rows("2024-03-04", "2024-03-05"), "1d", {"date_order": "dmy"},
     r"date_order \(--date-order\) is for dates that begin with the day or the month, and it has none"),
    ("order of numbers", rows(START, START + MINUTE), "1m", {"date_order": "dmy"}, "date_order .* it has none"),
    ("other order", rows("13.02.2024", "14.02.2024"), "1d", {"date_order": "mdy"}, "begin with the day, not the month"),
    ("decimal of numbers", f"[[{START},1,2,0.5,1.5,3]]".encode(), "1m", {"decimal": ","},
     r"decimal \(--decimal\) is for numbers as text, and it has none"),
    ("MetaTrader rates", b"time,open,high,low,close,tick_volume,spread,real_volume\n1704067260,1,2,0.5,1,5,1,0\n", "1m",
     {}, "its times, such as '2024-01-01 00:01:00', have no time zone. MetaTrader .* --tz UTC"),
    ("closing time", "".join(kline(n).replace(str(START + (n + 1) * MINUTE - 1), str(START + (n + 60) * MINUTE - 1))
     for n in range(0, 6300, 420)).encode(), "1m", {}, "its closing times .* 1h after the opening times, .* is 1m"),
    ("closing time only", b"close_time,open,high,low,close,volume\n1704067259999,1,2,0.5,1,1\n", "1m", {},
     "its only times, 'close_time', are those of the close; write the times of the opening"),
    ("deep JSON", b"[" * 200_000, "1m", {}, "it is nested too deeply"),
    ("deep entry", b"[[1,2,3,4,5," + b"[" * 100_000 + b"]" * 100_000 + b"]]", "1m", {}, "it is nested too deeply"),
    ("long number", b"[[" + b"1" * 5000 + b",1,1,1,1,1]]", "1m", {}, "it has a number of more than .* digits"),
    ("long time", rows("1" * 5000, "2" * 5000), "1m", {}, "are in no known form"),
    ("unknown zip", changed_zip(zipfile.ZIP_DEFLATED, {8: 9}, 9), "1m", {}, "packed by a method .*; unpack it"),
    ("unheard-of zip", changed_zip(zipfile.ZIP_DEFLATED, {8: 77}, 77), "1m", {}, "packed by a method .*; unpack it"),
    ("damaged lzma", changed_zip(zipfile.ZIP_LZMA, dict.fromkeys(range(60, 70), 255)), "1m", {}, "archive is damaged"),
    ("damaged bz2", changed_zip(zipfile.ZIP_BZIP2, dict.fromkeys(range(40, 50), 255)), "1m", {}, "archive is damaged"),
    ("quoted thousands", b'date,open,high,low,close,volume\n2024-01-01,1,2,1,2,"1,234"\n', "1d", {},
     r"'1,234' can be read in two ways; save it without separators of thousands, or say"),
    ("4h", rows(*(f"2024-01-02 {hour:02}:00:00" for hour in range(0, 24, 4))), "4h", {"tz": "America/New_York"},
     r"its candles open at 05:00:00 UTC, .*, and those of 4h .*; import a shorter interval"),
    ("seconds", rows(START + 12_000, START + 72_000), "1m", {},
     r"its times, such as 00:00:12 UTC, are not those at which candles of 1m open; .*\(--columns\)"),
    ("averages", b"date,open,high,low,close,Volume_avg,Volume_ma\n2024-01-01,1,1,1,1,1,9\n", "1d",
     {"symbol": "AVGOUSDT"},
     "the volume may be 'Volume_avg' and 'Volume_ma'"),
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
    given: dict[str, Any] = {"symbol": "BTCUSDT", **options}
    with pytest.raises(InvalidPayloadError, match=message) as raised:
        await import_candles(DummyBackend().services, file, interval=interval, exchange_name="binance", **given)
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
    cases: list[tuple[list[str], dict[str, Any], list[int]]] = [
        (["2024-03-08T09:30-05:00", "2024-03-11T09:30-04:00"], {"session": 23_400_000}, [67, 70]),  # the clocks are set
        (["2024-03-07T21:00Z", "2024-03-10T21:00Z"], {"session": day}, [67, 70]),
        (["2024.03.08", "2024.03.11"], {"session": day, "tz": "Europe/Athens"}, [67, 70]),
    ]
    for times, options, expected in cases:
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
    chunk = read(file, "1d", "A")
    assert [tuple(row) for row in chunk.skipped] == [
        (3, "its symbol is 'B', and that of the first row is 'A'"),
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


def test_rows_of_another_market_do_not_become_one_series(tmp_path: Path) -> None:
    """Whatever the column is called that tells rows apart, only those like the first one are read."""
    file = tmp_path / "candles.csv"
    names = ("ticker", "pair", "Name", "Instrument", "coin", "Asset", "market", "exchange", "timeframe", "base", "isin")
    lines = [f"2024-01-{day:02},1,2,0.5,1,1,{'BTC' if day < 5 else 'ETH'}" for day in range(1, 9)]
    for name in names:
        file.write_text(f"date,open,high,low,close,volume,{name}\n" + "\n".join(lines))
        chunk = read(file, "1d", "BTC")
        assert [tuple(row) for row in chunk.skipped] == [
            (line, f"its {name} is 'ETH', and that of the first row is 'BTC'") for line in range(6, 10)
        ]
    assert len(read(file, "1d", columns=["date", *COLUMNS[1:], "-"]).candles) == 8
    lines[0] = lines[0].removesuffix("BTC")  # says nothing
    file.write_text("date,open,high,low,close,volume,symbol\n" + "\n".join(lines))
    assert [skipped.line for skipped in read(file, "1d", "BTC").skipped] == [6, 7, 8, 9]


@pytest.mark.parametrize(
    ("given", "symbol", "is_printed"),
    [
        ("BTC/USDT", "BTCUSDT", False),
        ("btc-usdt", "BTCUSDT", False),
        ("BTCUSDT", "BTC_USDT", False),
        ("XBTUSD", "BTC/USD", False),
        ("BINANCE:BTCUSDT", "BTCUSDT", False),
        ("BTC/USDT:USDT", "BTCUSDT", False),
        ("AAPL.US", "aapl", False),
        ("AAPL", "AAPL.US", False),
        ("BTC", "BTCUSDT", True),
        ("BTC/USD", "BTCUSDT", True),
    ],
)
def test_a_symbol_may_be_spelled_in_another_way(given: str, symbol: str, is_printed: bool, tmp_path: Path) -> None:
    """Letters and digits are compared, without what names an exchange; what is only the beginning is printed."""
    file = tmp_path / "candles.csv"
    file.write_text(f"symbol,{HEADER}{given},2024-01-01,1,2,0.5,1,1\n")
    assert (f"symbol {given!r}" in layout_of(file, symbol=symbol)) == is_printed


def test_a_quote_that_is_not_closed_ends_with_its_line(tmp_path: Path) -> None:
    """No other row is lost: the line with the quote is skipped, and names what is wrong with it."""
    file = tmp_path / "candles.csv"
    lines = rows(*(START + number * MINUTE for number in range(900))).decode().splitlines(keepends=True)
    lines[500], lines[700] = f'"{lines[500]}', lines[700].replace(",3\n", ',"3\n')
    file.write_text("".join(lines))
    chunk = read(file)
    assert [tuple(row) for row in chunk.skipped] == [(501, "the number of its fields is 1, not 6")]
    assert (len(chunk.candles), chunk.lines[-1]) == (899, 901)


def test_a_header_that_begins_with_price_may_be_one_line(tmp_path: Path) -> None:
    """Only the lines of yfinance are skipped, one or both of them."""
    file = tmp_path / "candles.csv"
    candles = ["2024-01-02,184.08,186.86,182.35,185.58,5", "2024-01-03,184.25,185.88,183.43,184.22,5"]
    for extra in ([], ["Ticker,AAPL,AAPL,AAPL,AAPL,AAPL"], ["Ticker,AAPL,AAPL,AAPL,AAPL,AAPL", "Date,,,,,"]):
        file.write_text("\n".join(["Price,Close,High,Low,Open,Volume", *extra, *candles, ""]))
        chunk = read(file, "1d", "AAPL")
        assert (len(chunk.candles), chunk.skipped, chunk.lines[0]) == (2, [], 2 + len(extra))


def test_times_that_are_no_whole_ms_are_skipped(tmp_path: Path) -> None:
    """Part of a ms is no opening time, as text, as a number and in a frame; no time is rounded."""
    file = tmp_path / "candles.csv"
    for odd in ("2024-01-01T00:01:00.000900Z", "2024-01-01 00:01:00.0000001Z", "1704067260000900", "1704067260000.5"):
        first, last = (
            ("1704067200000", "1704067320000") if odd.isdigit() else ("2024-01-01T00:00Z", "2024-01-01T00:02Z")
        )
        file.write_bytes(rows(first, odd, last))
        chunk = read(file)
        assert ([skipped.line for skipped in chunk.skipped], len(chunk.candles)) == ([3], 2), odd
        assert chunk.skipped[0].reason.endswith("is no whole ms")


def test_times_in_frames_are_exact_or_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of a ms, times that no calendar has, and zones that are no names, by pyarrow and by polars alone."""
    arrow: Any = pytest.importorskip("pyarrow")
    parquet: Any = pytest.importorskip("pyarrow.parquet")
    pytest.importorskip("polars")
    times = [START + number * MINUTE for number in range(30)]

    def write(name: str, ticks: list[int], *kind: Any) -> Path:
        values = arrow.array(ticks, arrow.int64()).cast(arrow.timestamp(*kind))
        numbers = {column: [1.0] * len(ticks) for column in COLUMNS[1:]}
        parquet.write_table(arrow.table({"date": values, **numbers}), tmp_path / name)
        return tmp_path / name

    odd = [at * 1_000_000 + (number == 7) for number, at in enumerate(times)]
    naive, zoned = write("naive.parquet", odd, "ns"), write("zoned.parquet", odd, "ns", "UTC")
    parts = write("parts.parquet", [at * 1000 + 900 for at in times], "us", "UTC")
    far = write("far.parquet", times, "s")
    local = write("local[1]*.parquet", times, "ms", "tzfile('/etc/localtime')")
    for find_spec in (None, dict[str, Any]().get):
        if find_spec is not None:
            monkeypatch.setattr("backtest_persist.operations.candles.tables.find_spec", find_spec)
        for file, tz in ((naive, "UTC"), (zoned, None)):
            chunk = read(file, tz=tz)
            assert (len(chunk.candles), [skipped.line for skipped in chunk.skipped]) == (29, [8]), file
            assert chunk.skipped[0].reason.endswith("is no whole ms")
        with pytest.raises(InvalidPayloadError, match=r"parts.parquet: .*is no whole ms"):
            read(parts)
        with pytest.raises(InvalidPayloadError, match=r"far.parquet: its times, such as .*, are in no known form"):
            read(far, tz="UTC")
        if find_spec is None:
            assert len(read(local).candles) == 30
            with pytest.raises(
                InvalidPayloadError, match=r"parquet: its times are in the zone .*localtime.*, .*unknown"
            ):
                read(local, "1d", session=86_400_000)


@pytest.mark.parametrize(
    ("header", "symbol", "volume"),
    [
        ("Volume,Volume BTC", "BTCUSDT", 8.0),
        ("Volume BTC,Volume", "BTC/USDT", 7.0),
        ("Volume,Volume USDT", "BTCUSDT", 7.0),
        ("Volume,Volume_avg", "AVGOUSDT", 7.0),
        ("Volume AVGO,Volume_avg", "AVGOUSDT", 7.0),
        ("Volume USDT,Volume TRY", "USDTTRY", 7.0),
    ],
)
def test_the_volume_is_that_in_what_is_traded(header: str, symbol: str, volume: float, tmp_path: Path) -> None:
    """A column that names the asset counts before a plain one, and the beginning of an asset's name is no asset."""
    file = tmp_path / "candles.csv"
    file.write_text(f"date,open,high,low,close,{header}\n2024-01-01,1,1,1,1,7,8\n")
    assert read(file, "1d", symbol).candles[0]["volume"] == volume


def test_the_name_of_a_layout_is_none_that_it_may_not_be(tmp_path: Path) -> None:
    """Days by names may be of anyone, and the rates of MetaTrader 5 are not those of TradingView."""
    file = tmp_path / "candles.csv"
    file.write_bytes(rows("2024-01-01", "2024-01-02"))
    assert layout_of(file) == "CSV with names of columns, header in line 1, days of UTC"
    header = "time,open,high,low,close,tick_volume,spread,real_volume\n"
    file.write_text(f"{header}2024-01-01 00:00:00,1,2,0.5,1,5,1,0\n2024-01-01 00:01:00,1,2,0.5,1,5,1,0\n")
    with pytest.raises(InvalidPayloadError, match="time of the broker's server"):
        read(file)
    assert layout_of(file, "1m", tz="UTC").startswith("MetaTrader 5 rates, header")
    file.write_text(f"{header}1704067200,1,2,0.5,1,5,1,0\n1704067260,1,2,0.5,1,5,1,0\n")
    assert read(file, tz="+02:00").candles[0]["timestamp"] == START - 120 * MINUTE
    polars: Any = pytest.importorskip("polars")
    frame = polars.read_csv(file).with_columns(polars.from_epoch("time").dt.replace_time_zone("UTC"))
    frame.write_parquet(tmp_path / "zoned.parquet")
    assert read(tmp_path / "zoned.parquet").candles[0]["timestamp"] == START
    frame.with_columns(polars.col("time").dt.replace_time_zone(None)).write_parquet(tmp_path / "naive.parquet")
    assert read(tmp_path / "naive.parquet", tz="+02:00").candles[0]["timestamp"] == START - 120 * MINUTE
