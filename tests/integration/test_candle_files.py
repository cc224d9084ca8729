"""Files of candles become series: each layout, what a file leaves open, interruptions, and the command."""

import asyncio
import gzip
import json
import os
import signal
import zipfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from backtest_persist import Container, InvalidPayloadError, JsonBackend, Settings
from backtest_persist.domains.candle import CandleDbService
from backtest_persist.operations import import_candles
from tests.support.candle_files import FILES, MINUTE, START, kline, write_klines
from tests.support.processes import CLI_PROGRAM, run_cli, settings_environment, start_program

HOUR, DAY = 60 * MINUTE, 24 * 60 * MINUTE
JANUARY_2 = START + DAY
KEY = ("BTCUSDT", "1m", "binance")
KLINE_COLUMNS = ("close_time", "quote_volume", "count", "taker_buy_volume", "taker_buy_quote_volume")


@pytest.fixture(scope="session")
def driver() -> str:
    """One driver: files are about neither."""
    return "motor"


def files_in(directory: Path) -> list[Path]:
    return sorted(directory.iterdir())


LAYOUTS: list[tuple[str, str, dict[str, Any], str, tuple[Any, ...], int, int, list[int], tuple[str, ...]]] = [
    # the file, its interval, the options, the layout, the first candle, the last time, new ones, skipped lines, ignored
    (
        "binance-spot-2024.csv",
        "1m",
        {},
        "Binance spot klines, no header, times in milliseconds",
        (START, 42283.58, 42298.62, 42261.02, 42298.61, 35.92724),
        START + 2 * MINUTE,
        3,
        [],
        KLINE_COLUMNS,
    ),
    (
        "binance-spot-2025.csv",
        "1m",
        {},
        "Binance spot klines, no header, times in microseconds",
        (1_735_689_600_000, 93576.0, 93610.93, 93537.5, 93610.93, 8.21827),
        1_735_689_720_000,
        3,
        [],
        KLINE_COLUMNS,
    ),
    (
        "binance-futures.csv",
        "1m",
        {},
        "Binance futures klines, header in line 1, times in milliseconds",
        (START, 42314.0, 42335.8, 42289.6, 42331.9, 289.641),
        START + MINUTE,
        2,
        [],
        KLINE_COLUMNS,
    ),
    (
        "kraken.csv",
        "1m",
        {},
        "Kraken OHLCVT, no header, times in seconds",
        (START, 42255.3, 42270.0, 42255.2, 42270.0, 0.81342987),
        START + 4 * MINUTE,
        4,
        [],
        ("trades",),
    ),
    (
        "yahoo.csv",
        "1d",
        {},
        "Yahoo Finance, header in line 1, days of UTC",
        (JANUARY_2, 187.149994, 188.440002, 183.889999, 185.639999, 82488700.0),
        JANUARY_2 + 6 * DAY,
        4,
        [4],
        ("Adj Close",),
    ),
    (
        "yfinance.csv",
        "1d",
        {},
        "yfinance, header in line 1, days of UTC",
        (JANUARY_2, 185.58, 186.86, 182.35, 184.08, 82488700.0),
        JANUARY_2 + DAY,
        2,
        [],
        (),
    ),
    (
        "tradingview-iso.csv",
        "1m",
        {},
        "TradingView, header in line 1, times with their zone",
        (JANUARY_2 + 14 * HOUR + 30 * MINUTE, 187.15, 187.44, 186.9, 187.05, 3211045.0),
        JANUARY_2 + 14 * HOUR + 32 * MINUTE,
        3,
        [],
        ("MA", "Upper"),
    ),
    (
        "tradingview-unix.csv",
        "1h",
        {},
        "TradingView, header in line 1, times in seconds",
        (START, 42283.58, 42554.57, 42261.02, 42475.23, 1271.68108),
        START + 2 * HOUR,
        3,
        [],
        ("RSI",),
    ),
    (
        "metatrader5.csv",
        "1m",
        {"tz": "+02:00"},
        "MetaTrader 5, header in line 1, volume from <TICKVOL>, times in +02:00",
        (JANUARY_2 - 2 * HOUR, 1.10427, 1.10429, 1.10405, 1.10411, 45.0),
        JANUARY_2 - 2 * HOUR + 2 * MINUTE,
        3,
        [],
        ("<VOL>", "<SPREAD>"),
    ),
    (
        "metatrader5-daily.csv",
        "1d",
        {},
        "MetaTrader 5, header in line 1, days of UTC",
        (JANUARY_2, 187.15, 188.44, 183.89, 185.64, 82488700.0),
        JANUARY_2 + DAY,
        2,
        [],
        ("<TICKVOL>", "<SPREAD>"),
    ),
    (
        "metatrader4.csv",
        "1m",
        {"tz": "Europe/Athens"},
        "MetaTrader 4, no header, times in Europe/Athens",
        (JANUARY_2 - 2 * HOUR, 1.10427, 1.10429, 1.10405, 1.10411, 45.0),
        JANUARY_2 - 2 * HOUR + MINUTE,
        2,
        [],
        (),
    ),
    (
        "stooq.csv",
        "1d",
        {},
        "CSV with names of columns, header in line 1, days of UTC",
        (JANUARY_2, 187.15, 188.44, 183.885, 185.64, 82488674.0),
        JANUARY_2 + DAY,
        2,
        [],
        (),
    ),
    (
        "stooq-bulk.txt",
        "1d",
        {},
        "Stooq, header in line 1, days of UTC",
        (JANUARY_2, 187.15, 188.44, 183.885, 185.64, 82488674.0),
        JANUARY_2 + DAY,
        2,
        [],
        ("<PER>", "<OPENINT>"),
    ),
    (
        "stooq-bulk-5m.txt",
        "5m",
        {"tz": "America/New_York"},
        "Stooq, header in line 1, times in America/New_York",
        (JANUARY_2 + 14 * HOUR + 30 * MINUTE, 187.15, 187.44, 186.9, 187.05, 811045.0),
        JANUARY_2 + 14 * HOUR + 35 * MINUTE,
        2,
        [],
        ("<PER>", "<OPENINT>"),
    ),
    (
        "cryptodatadownload.csv",
        "1h",
        {},
        "CryptoDataDownload, header in line 2, volume from Volume BTC, times in seconds",
        (START, 42265.0, 42554.0, 42261.0, 42475.0, 48.11267),
        START + 2 * HOUR,
        3,
        [],
        ("date", "Volume USD"),
    ),
    (
        "cryptodatadownload-2019.csv",
        "1h",
        {},
        "CryptoDataDownload, header in line 2, volume from Volume BTC, times in UTC",
        (1_571_310_000_000, 7990.0, 7999.0, 7985.0, 7995.5, 75.0),
        1_571_317_200_000,
        3,
        [],
        ("Volume USD",),
    ),
    (
        "bitstamp.csv",
        "1m",
        {},
        "CSV with names of columns, header in line 1, volume from Volume_(BTC), times in seconds",
        (1_420_070_400_000, 321.0, 321.0, 321.0, 321.0, 1.73697242),
        1_420_070_520_000,
        2,
        [3],
        ("Volume_(Currency)", "Weighted_Price"),
    ),
    (
        "dukascopy.csv",
        "1m",
        {},
        "Dukascopy, header in line 1, times in UTC, dates as day, month, year",
        (JANUARY_2, 1.10427, 1.10429, 1.10405, 1.10411, 45.12),
        JANUARY_2 + MINUTE,
        2,
        [],
        (),
    ),
    (
        "decimal-comma.csv",
        "1d",
        {},
        "CSV with names of columns, header in line 1, decimal commas, days of UTC, dates as day, month, year",
        (START + 43 * DAY, 1234.5, 1240.25, 1230.0, 1239.75, 1000.0),
        START + 44 * DAY,
        2,
        [],
        (),
    ),
    (
        "freqtrade.json",
        "1h",
        {},
        "freqtrade JSON, times in milliseconds",
        (START, 42283.58, 42554.57, 42261.02, 42475.23, 1271.68108),
        START + 2 * HOUR,
        3,
        [],
        (),
    ),
]


SYMBOLS = {"yfinance.csv": "AAPL", "stooq-bulk.txt": "AAPL", "stooq-bulk-5m.txt": "AAPL.US"} | dict.fromkeys(
    ("cryptodatadownload.csv", "cryptodatadownload-2019.csv"), "BTC-USD"
)
"""The symbols of files that name one."""


async def test_each_layout_is_detected_and_stored(container: Container) -> None:
    """A file of each layout says what it is, becomes exactly its candles, and names what is not stored."""
    assert {file for file, *_ in LAYOUTS} == {file.name for file in files_in(FILES)}
    for file, interval, options, layout, first, last, new, skipped, ignored in LAYOUTS:
        key = (SYMBOLS.get(file, "BTCUSDT"), interval, file)
        report = await import_candles(container, FILES / file, *key, **options)
        found = (report.layout, report.new, [row.line for row in report.skipped], report.ignored)
        assert found == (layout, new, skipped, ignored), file
        assert (report.first, report.last, report.rows) == (first[0], last, new + len(skipped)), file
        [stored] = await container.candle_db_service.find_data(*key, first[0], 1)
        assert tuple(stored.values()) == first, file
        assert len(await container.candle_db_service.find_last(*key, 10)) == new, file

        again = await import_candles(container, FILES / file, *key, **options)
        assert (again.new, again.same, again.different) == (0, new, []), file


async def test_frames_in_files_are_read_by_their_types(container: Container, tmp_path: Path) -> None:
    """Feather and Parquet of freqtrade, pandas and polars are read, by pyarrow or by polars alone."""
    pd: Any = pytest.importorskip("pandas")
    pl: Any = pytest.importorskip("polars")
    times = pd.date_range("2024-01-01", periods=3, freq="h", tz="UTC")
    numbers = {"open": [1.0, 2.0, 3.0], "high": [2.0, 3.0, 4.5], "low": [0.5, 1.0, 2.0], "close": [1.5, 2.5, 3.5]}
    freqtrade = pd.DataFrame({"date": times, **numbers, "volume": [7.0, 8.0, 9.0]})
    freqtrade["date"] = freqtrade["date"].astype("datetime64[ms, UTC]")
    freqtrade.to_feather(tmp_path / "freqtrade.feather", compression="lz4", compression_level=9)
    freqtrade.to_parquet(tmp_path / "freqtrade.parquet")
    titles = freqtrade.set_index("date").rename(columns=str.title)
    titles.rename_axis(None).to_parquet(tmp_path / "index.parquet")
    polars = pl.DataFrame({"time": [START, START + HOUR, START + 2 * HOUR], **numbers, "volume": [7.0, 8.0, 9.0]})
    polars.write_parquet(tmp_path / "numbers.parquet")
    polars.with_columns(pl.col("time").cast(pl.Datetime("ms"))).write_parquet(tmp_path / "naive.parquet")
    polars.with_columns(pl.col("time").cast(pl.Datetime("ms", "Asia/Tokyo"))).write_ipc(tmp_path / "zoned.feather")

    for file in files_in(tmp_path):
        key = ("BTCUSDT", "1h", file.name)
        if file.stem == "naive":
            with pytest.raises(InvalidPayloadError, match=r"'2024-01-01 01:00:00', have no time zone.*--tz UTC"):
                await import_candles(container, file, *key)
        report = await import_candles(container, file, *key, tz="UTC" if file.stem == "naive" else None)
        assert (report.new, report.skipped, report.first) == (3, [], START), file
        kind = "feather" if file.suffix == ".feather" else "Parquet"
        start = f"freqtrade {kind}" if file.stem == "freqtrade" else f"{kind} with names of columns"
        assert report.layout.startswith(start)
        [last] = await container.candle_db_service.find_last_data(*key, 1)
        assert tuple(last.values()) == (START + 2 * HOUR, 3.0, 4.5, 2.0, 3.5, 9.0), file

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("backtest_persist.operations.candles.tables.find_spec", dict[str, Any]().get)
        for file in files_in(tmp_path):
            tz = "UTC" if file.stem == "naive" else None
            again = await import_candles(container, file, "BTCUSDT", "1h", file.name, tz=tz)
            assert (again.new, again.same) == (0, 3), file


async def test_packed_and_encoded_files_are_read(container: Container, tmp_path: Path) -> None:
    """An archive with one file, and every encoding and line end that programs write, is the same series."""
    text = "".join(kline(number) for number in range(20))
    plain = text.encode()
    with zipfile.ZipFile(tmp_path / "BTCUSDT-1m-2024-01.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("__MACOSX/._BTCUSDT-1m-2024-01.csv", b"\0")
        archive.writestr("BTCUSDT-1m-2024-01.csv", plain)
    (tmp_path / "klines.csv.gz").write_bytes(gzip.compress(plain))
    (tmp_path / "mark.csv").write_bytes(b"\xef\xbb\xbf" + plain)
    (tmp_path / "utf-16.csv").write_bytes(text.encode("utf-16"))
    (tmp_path / "utf-16-le.csv").write_bytes(text.encode("utf-16-le"))
    (tmp_path / "dos.csv").write_bytes(plain.replace(b"\n", b"\r\n") + b"\r\n\r\n\x1a")
    (tmp_path / "quoted.csv").write_text("".join(f'"{line}"\n'.replace(",", '","') for line in text.splitlines()))
    (tmp_path / "semicolons.csv").write_text(text.replace(",", ";"))
    (tmp_path / "tabs.txt").write_text(text.replace(",", "\t"))
    expected = {"new": 20, "first": START, "last": START + 19 * MINUTE}
    for file in files_in(tmp_path):
        report = await import_candles(container, file, "BTCUSDT", "1m", file.name)
        assert {name: getattr(report, name) for name in expected} == expected, file
        assert [row for row in report.skipped if row.reason != "the number of its fields is 1, not 12"] == [], file


async def test_a_unit_that_changes_within_a_file_is_read_right(container: Container, tmp_path: Path) -> None:
    """Klines of 2024 in ms and of 2025 in us, one after the other in either order, have the right times."""
    old, new = [kline(n) for n in range(5)], [kline(n, factor=1000) for n in range(5, 10)]
    for name, lines, words in (
        ("up", old + new, "times in milliseconds, from line 6 on in microseconds"),
        ("down", new[::-1] + old[::-1], "times in microseconds, from line 6 on in milliseconds"),
    ):
        file = tmp_path / f"{name}.csv"
        file.write_text("".join(lines))
        report = await import_candles(container, file, "BTCUSDT", "1m", name)
        assert report.layout.endswith(words)
        assert (report.new, report.first, report.last) == (10, START, START + 9 * MINUTE)


async def test_rows_of_one_time_are_found_across_chunks(
    container: Container, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of rows of one time the first is taken, near or far; one that differs is named by its line, dry or not.

    `replace` refuses such a file.
    """
    monkeypatch.setattr("backtest_persist.operations.candles.reading.BATCH", 10)
    lines = [kline(number) for number in range(30)]
    lines[25] = kline(3).replace("12.34567", "99.0")  # differs from line 4, of another chunk
    lines[26] = kline(4)
    lines[8] = kline(7).replace("12.34567", "98.0")  # differs from line 8, of the same chunk
    fields = kline(15).split(",")
    lines[15] = ",".join([fields[0], *4 * ["42000000000"], *fields[5:]])
    lines[28] = kline(28).replace("42100.50000000", "x")
    file = tmp_path / "klines.csv"
    file.write_text("".join(lines))
    dry = await import_candles(container, file, *KEY, dry_run=True)
    assert await container.candle_db_service.count() == 0
    report = await import_candles(container, file, *KEY)
    for each in (dry, report):
        assert (each.rows, each.new, each.same, each.open, each.different) == (30, 25, 1, [], [])
        assert [row.line for row in each.skipped] == [9, 16, 26, 29]
        assert [row.reason for row in each.skipped] == [
            "it differs from line 8, which has the same time and comes first",
            "it has a price in another unit than the rows around it; to store it, give allow_outliers "
            "(--allow-outliers)",
            "it differs from line 4, which has the same time and comes first",
            "its high is 'x', not a number",
        ]
        assert not each.is_complete
    [seventh] = await container.candle_db_service.find_data(*KEY, START + 7 * MINUTE, 1)
    assert seventh["volume"] == 12.34567
    for dry_run in (True, False):
        again = await import_candles(container, file, *KEY, dry_run=dry_run)
        assert (again.new, again.same, again.different) == (0, 26, [])
    file.write_text("".join([*lines[:15], *lines[16:28]]))
    with pytest.raises(
        InvalidPayloadError, match=r"nothing was replaced.*\(2\), such as line 9: it differs from line 8"
    ):
        await import_candles(container, file, *KEY, replace=True)
    assert await container.candle_db_service.count() == 25


async def test_the_open_candle_at_the_end_of_a_file_is_not_stored(container: Container, tmp_path: Path) -> None:
    """A last candle that had not closed when the file was written is left out, unless that date is not its own."""
    file = write_klines(tmp_path / "klines.csv", 20)
    written = START / 1000 + 19 * 60 + 42
    os.utime(file, (written, written))
    report = await import_candles(container, file, *KEY)
    assert (report.new, report.open, report.is_complete) == (19, [(20, START + 19 * MINUTE)], True)
    given = await import_candles(container, file, *KEY, as_of=datetime(2024, 1, 1, 0, 20, tzinfo=UTC))
    assert (given.new, given.same, given.open) == (1, 19, [])
    for name, date in (("of an archive", 315_532_800), ("of a build", 1)):
        os.utime(file, (date, date))
        kept = await import_candles(container, file, "BTCUSDT", "1m", name)
        assert (kept.new, kept.open) == (20, [])
    early = await import_candles(container, file, "BTCUSDT", "1m", "early", as_of=START + 10 * MINUTE)
    assert (early.new, len(early.open)) == (10, 10)


async def test_an_adjusted_history_replaces_what_is_stored(container: Container, tmp_path: Path) -> None:
    """With `replace`, the range becomes that of the file; a row that cannot be stored leaves it as it is."""
    file = write_klines(tmp_path / "klines.csv", 40)
    await import_candles(container, file, *KEY)
    adjusted = write_klines(tmp_path / "adjusted.csv", 20, first=10)
    lines = adjusted.read_text().replace("41900.1", "20950.05").splitlines(keepends=True)
    adjusted.write_text("".join([*lines, "x\n"]))
    with pytest.raises(InvalidPayloadError, match=r"nothing was replaced, .*\(1\), such as line 21: "):
        await import_candles(container, adjusted, *KEY, replace=True)
    adjusted.write_text("".join(lines[:5] + lines[6:]))
    dry = await import_candles(container, adjusted, *KEY, replace=True, dry_run=True)
    assert (dry.new, len(dry.different), await container.candle_db_service.count()) == (0, 19, 40)
    report = await import_candles(container, adjusted, *KEY, replace=True)
    assert (report.rows, report.new, report.different) == (19, 19, [])
    stored = await container.candle_db_service.find_data(*KEY, START, 40)
    assert [candle["low"] for candle in stored] == [41900.1] * 10 + [20950.05] * 19 + [41900.1] * 10
    again = await import_candles(container, adjusted, *KEY, replace=True)
    assert (again.new, again.same) == (0, 19)
    adjusted.write_text("".join([*lines[:5], *lines[7:10], lines[8], *lines[10:]]))
    lacking = await import_candles(container, adjusted, *KEY, replace=True)  # one that is stored, and repeats another
    assert (lacking.new, lacking.same, await container.candle_db_service.count()) == (18, 1, 38)
    again = await import_candles(container, adjusted, *KEY, replace=True)
    assert (again.new, again.same) == (0, 19)
    again = await import_candles(container, file, *KEY, replace=True)
    assert (again.new, again.same, await container.candle_db_service.count()) == (40, 0, 40)
    file.write_text("".join(kline(number) for number in (*range(10), *range(12, 40))))
    files = JsonBackend(tmp_path / "dump").services
    for services in (container, files):
        await import_candles(services, write_klines(tmp_path / "whole.csv", 40), *KEY)
        report = await import_candles(services, file, *KEY, replace=True)
        stored = await services.db_service(CandleDbService).find_data(*KEY, START, 40)
        assert (report.rows, len(stored)) == (38, 38)


async def test_nothing_is_stored_of_a_file_of_another_interval(container: Container, tmp_path: Path) -> None:
    """The distance of rows is compared with the interval before the first one is stored, and further on."""
    file = write_klines(tmp_path / "klines.csv", 30)
    with pytest.raises(InvalidPayloadError, match=r"klines.csv: its rows are 1m apart, and the interval .* is 5m"):
        await import_candles(container, file, "BTCUSDT", "5m", "binance")
    assert await container.candle_db_service.count() == 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("backtest_persist.operations.candles.reading.BATCH", 10)
        patch.setattr("backtest_persist.operations.candles.reading._MANY", 9)
        patch.setattr("backtest_persist.operations.candles.detection.SAMPLE", 10)
        file.write_text("".join(kline(n) for n in (*range(20), *range(20, 70, 5))))
        with pytest.raises(InvalidPayloadError, match=r"from line 21 on its rows are 5m apart, not 1m; split it there"):
            await import_candles(container, file, *KEY)
    assert await container.candle_db_service.count() == 20


async def test_an_import_goes_on_after_it_was_killed(container: Container, settings: Settings, tmp_path: Path) -> None:
    """What a killed import has stored is the same for the next one, and nothing is stored twice."""
    count = 30_000
    file = write_klines(tmp_path / "klines.csv", count)
    arguments = ("candles", "import", str(file), "--symbol", "BTCUSDT", "--interval", "1m", "--exchange", "binance")
    db = container.candle_db_service
    await db.wait_for_init()
    for number, killed in ((signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 130)):
        before = -1
        while before != (stored := await db.count()):  # the server completes the bulk of a killed process
            before = stored
            await asyncio.sleep(0.3)
        process = await start_program(
            CLI_PROGRAM,
            *arguments,
            environment=settings_environment(settings),
            stderr=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.DEVNULL,
        )
        async with asyncio.timeout(60):
            while await db.count() == before:
                await asyncio.sleep(0.02)
        process.send_signal(number)
        _, errors = await process.communicate()
        assert process.returncode == killed, errors
        assert before < await db.count() < count
        if number == signal.SIGINT:
            assert await db.count() % 10_000 == 0  # whole chunks
            assert b"Run the same command again to go on" in errors
    stored = await db.count()
    report = await import_candles(container, file, *KEY)
    assert (report.new, report.same, report.rows, report.different) == (count - stored, stored, count, [])
    assert await db.count() == count


async def test_a_file_is_imported_into_json_files(tmp_path: Path) -> None:
    """The services of the JSON backend take a file as the container does."""
    services = JsonBackend(tmp_path / "dump").services
    dry = await import_candles(services, FILES / "yahoo.csv", "AAPL", "1d", "yahoo", dry_run=True)
    assert (dry.new, (tmp_path / "dump").exists()) == (4, False)
    report = await import_candles(services, FILES / "yahoo.csv", "AAPL", "1d", "yahoo")
    assert (report.new, [tuple(row) for row in report.skipped]) == (4, [(4, "it has no prices")])
    again = await import_candles(services, FILES / "yahoo.csv", "AAPL", "1d", "yahoo")
    assert (again.new, again.same) == (0, 4)
    found = await services.db_service(CandleDbService).find_data("AAPL", "1d", "yahoo", JANUARY_2, 7)
    assert [candle["close"] for candle in found] == [185.639999, 184.25, 181.179993, 185.559998]


async def test_the_command_prints_a_report(container: Container, settings: Settings, tmp_path: Path) -> None:
    """It shows layout, counts, lines and what to do; 3 when something was skipped; --json is the whole report."""

    async def run(*arguments: str) -> tuple[int, str, str]:
        series = ("--symbol", "BTCUSDT", "--interval", "1m", "--exchange", "binance")
        done = await run_cli("candles", "import", *arguments, *series, settings=settings, cwd=tmp_path)
        return done.returncode, done.stdout, done.stderr

    os.utime(write_klines(tmp_path / "one.csv", 40), (START / 1000 + 2390, START / 1000 + 2390))
    write_klines(tmp_path / "two.csv", 40, first=40)
    status, output, errors = await run("one.csv", "two.csv", "--dry-run")
    assert (status, await container.candle_db_service.count()) == (0, 0), errors
    assert "one.csv: Binance spot klines, no header, times in milliseconds.\n" in output
    assert [each in output for each in ("39 would be stored, 0 there", "40 would be stored, 0 there")] == [True, True]
    assert "Not closed when the file was written (see --as-of), and not stored: 1, from 2024-01-01 00:39 on." in output
    assert "They reach from 2024-01-01 00:40 to 2024-01-01 01:19, in UTC." in output
    assert "Nothing was written" in output
    assert "Reading one.csv" in errors  # the progress bar
    status, output, errors = await run("one.csv", "two.csv", "--json")
    assert [each["new"] for each in json.loads(output)] == [39, 40], errors
    status, output, errors = await run("one.csv", "none.csv", "two.csv", "--json")
    assert (status, [each["same"] for each in json.loads(output)]) == (1, [39]), errors
    assert "none.csv" in errors
    status, output, errors = await run("one.csv", "--as-of", "2024-01-01T00:30Z", "--dry-run")
    assert "\nNot closed at --as-of, and not stored: 10, from 2024-01-01 00:30 on.\n" in output

    text = (tmp_path / "one.csv").read_text().replace("41900.1", "41800.1", 2)
    (tmp_path / "one.csv").write_text(text + "".join(f"{line}\n" for line in ["1,2,3"] * 30))
    status, output, errors = await run("one.csv")
    assert status == 3, errors
    assert "Stored with other numbers, which were kept: 2\n  line 1: 2024-01-01 00:00\n" in output
    assert "If the file is right, --replace deletes what is stored in its range" in output
    assert "Skipped rows: 30\n  line 41: the number of its fields is 3, not 12\n" in output
    assert "  10 more; --json names them all." in output
    status, output, errors = await run("one.csv", "--json")
    assert status == 3, errors
    report = json.loads(output)
    assert report["different"] == [{"line": 1, "timestamp": START}, {"line": 2, "timestamp": START + MINUTE}]
    assert (len(report["skipped"]), report["skipped"][29]) == (
        30,
        {"line": 70, "reason": "the number of its fields is 3, not 12"},
    )
