"""Sessions of exchanges: daily candles under the UTC day of their close are never seen before it."""

from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from typing import Any, cast
from zoneinfo import ZoneInfo

import pandas
import pytest

from backtest_persist import (
    Container,
    DummyBackend,
    InvalidKeyError,
    JsonBackend,
    Mode,
    PersistCandleInstance,
    Registry,
    session_day,
)
from backtest_persist.core.candles.ohlcv import COLUMNS
from backtest_persist.operations import import_candles

DAY = 86_400_000
START = 1_704_067_200_000
"""Monday, 2024-01-01."""
DAYS = ("AAPL", "1d", "nasdaq")

MARKETS: dict[str, tuple[str, time, timedelta]] = {
    "tokyo": ("Asia/Tokyo", time(9), timedelta(hours=6, minutes=30)),
    "new york": ("America/New_York", time(9, 30), timedelta(hours=6, minutes=30)),
    "foreign exchange": ("America/New_York", time(17), timedelta(hours=24)),
    "sydney": ("Australia/Sydney", time(10), timedelta(hours=6)),
    "auckland": ("Pacific/Auckland", time(10), timedelta(hours=6, minutes=45)),
    "okx": ("Asia/Hong_Kong", time(0), timedelta(hours=24)),
}
DATES = [
    date(2024, 3, 8),  # New York changes its clock on 10 March and 3 November, the south on 7 April and 6 October
    date(2024, 3, 11),
    date(2024, 4, 5),
    date(2024, 4, 8),
    date(2024, 10, 4),
    date(2024, 10, 7),
    date(2024, 11, 1),
    date(2024, 11, 4),
]


@pytest.fixture(scope="session")
def driver() -> str:
    """One driver: this is about times."""
    return "motor"


def openings(market: str) -> list[tuple[datetime, datetime]]:
    """Return the opening and the close of the sessions of a market that open on the dates."""
    zone, opening, length = MARKETS[market]
    starts = [datetime.combine(day, opening, ZoneInfo(zone)) for day in DATES]
    return [(start, start.astimezone(UTC) + length) for start in starts]


async def candles_of(adapter: Any, market: str) -> list[dict[str, Any]]:
    """Store the sessions of a market, and return the candles."""
    length = MARKETS[market][2]
    candles: list[dict[str, Any]] = [
        {"timestamp": session_day(start, length), "open": 10.0, "high": 12.0, "low": 9.0, "close": 11.0, "volume": 1.0}
        for start, _ in openings(market)
    ]
    await adapter.write_candles_data(candles)
    return candles


@pytest.mark.parametrize("backend", ["mongo", "json"])
async def test_no_session_is_seen_before_its_close(backend: str, container: Container, tmp_path: Path) -> None:
    """By windows and by the last candles, on the days round the changes of clocks, in every market."""
    registry = Registry(container)
    if backend == "json":
        registry.use_json(tmp_path)
    for market in MARKETS:
        adapter = await registry.candle(market, "1d", "exchange")
        candles = await candles_of(adapter, market)
        assert len({candle["timestamp"] for candle in candles}) == len(DATES)
        for number, (candle, (start, close)) in enumerate(zip(candles, openings(market), strict=True)):
            seen = datetime.fromtimestamp((candle["timestamp"] + DAY) / 1000, UTC)
            assert start < close <= seen < close + timedelta(days=1)
            before = candles[max(number - 1, 0) : number]
            for instant in (start, close - timedelta(milliseconds=1), seen - timedelta(milliseconds=1)):
                assert await adapter.read_last_candles(1, instant) == before
                assert await adapter.read_candles_data(1, candle["timestamp"], instant) is None
            assert await adapter.read_last_candles(1, seen) == [candle]
            assert await adapter.read_candles_data(1, candle["timestamp"], seen) == [candle]


async def test_a_bar_sees_a_session_when_its_day_has_ended(container: Container) -> None:
    """In a run, where the instant is that of the bar."""
    registry = Registry(container)
    candles = await candles_of(PersistCandleInstance("BHP", "1d", "asx", ioc=container), "sydney")
    names: Any = {"strategy": "gap", "exchange": "asx", "symbol": "BHP", "frame": "2024", "mode": Mode.BACKTEST}
    async with registry.run(**names, session=dict[str, Any]) as run:
        for number, instant in enumerate((candles[0]["timestamp"] + DAY - 1, candles[0]["timestamp"] + DAY)):
            async with run.bar(instant) as bar:
                assert await bar.candles("1d", 5) == candles[:number]


def days_of_2024(count: int) -> list[dict[str, Any]]:
    """Return the candles of the first working days of 2024, of which the first is a Monday."""
    days = [START + number * DAY for number in range(count) if number % 7 < 5]
    return [
        {"timestamp": at, "open": 10.0 + n, "high": 12.0 + n, "low": 9.0 + n, "close": 11.0 + n, "volume": 1.0}
        for n, at in enumerate(days)
    ]


@pytest.mark.parametrize("backend", ["mongo", "json", "dummy"])
async def test_weeks_are_seen_once_they_have_closed(backend: str, container: Container, tmp_path: Path) -> None:
    """By every backend: whole weeks of five days in [since, until), and of months those that have ended."""
    adapter: Any = {
        "mongo": lambda: PersistCandleInstance(*DAYS, ioc=container),
        "json": lambda: JsonBackend(tmp_path)["candle"](*DAYS),
        "dummy": lambda: DummyBackend()["candle"](*DAYS),
    }[backend]()
    candles = days_of_2024(40)
    await adapter.write_candles_data(candles)

    async def found(resample: str, since: Any = None, until: Any = None) -> list[int]:
        frame = await adapter.db.find_frame(*DAYS, since, until, resample=resample)
        assert (frame.symbol, frame.interval, frame.exchange_name) == ("AAPL", resample, "nasdaq")
        return [(at - START) // DAY for at in frame.columns["timestamp"].tolist()]

    if backend == "dummy":
        assert await found("1w") == []
    else:
        assert await found("1w") == [0, 7, 14, 21, 28, 35]
        assert await found("1w", START, START + 14 * DAY) == [0, 7]
        assert await found("1w", START, START + 14 * DAY - 1) == [0]
        assert await found("1w", "2024-01-02", "2024-01-22") == [7, 14]
        assert await found("1M", date(2024, 1, 1), date(2024, 2, 1)) == [0]
        assert await found("1M", until=START + 31 * DAY - 1) == []
        columns = (await adapter.db.find_frame(*DAYS, resample="1w")).columns
        assert [columns[name][0] for name in COLUMNS] == [START, 10.0, 16.0, 9.0, 15.0, 5.0]
    with pytest.raises(InvalidKeyError, match="Candles of 1d can be resampled to 1d 3d 1w 1M, not to '12h'"):
        await found("12h")


async def test_a_run_sees_no_week_that_has_not_closed(container: Container) -> None:
    """Nor a part of one, whatever `until` says; the candles that a bar has written count."""
    await container.candle_db_service.store(*DAYS, days_of_2024(12))
    names: Any = {"strategy": "weeks", "exchange": "nasdaq", "symbol": "AAPL", "frame": "2024", "mode": Mode.BACKTEST}
    async with Registry(container).run(**names, session=dict[str, Any]) as run:
        for instant, weeks in ((START + 7 * DAY - 1, 0), (START + 7 * DAY, 1), (START + 14 * DAY, 2)):
            async with run.bar(instant) as bar:
                db = bar.candle("1d").db
                for until in (None, instant, START + 60 * DAY):
                    frame = await db.find_frame(*DAYS, until=until, resample="1w")
                    assert len(frame) == weeks
        async with run.bar(START + 21 * DAY) as bar:
            await bar.candle("1d").write_candles_data([{**days_of_2024(1)[0], "timestamp": START + 14 * DAY}])
            assert len(await bar.candle("1d").db.find_frame(*DAYS, resample="1w")) == 3


async def test_a_price_in_another_unit_is_a_skipped_row_of_a_file(container: Container, tmp_path: Path) -> None:
    """With its line, in a dry run as well, and never taken for an open one; it is stored only if that is allowed."""
    file = tmp_path / "AAPL.csv"
    prices = {2: "504", 3: "505", 4: "50600000000", 5: "507", 8: "508", 9: "50900000000"}
    rows = [f"2024-01-{day:02},{price},{price},{price},{price},100\n" for day, price in prices.items()]
    file.write_text("Date,Open,High,Low,Close,Volume\n" + "".join(rows))
    key = ("AAPL", "1d", "nasdaq")
    for dry_run in (True, False):
        report = await import_candles(container, file, *key, dry_run=dry_run)
        assert (report.new, report.is_complete, report.open) == (4, False, [])
        assert [line for line, reason in report.skipped if "in another unit" in reason] == [4, 7]
        assert len(report.skipped) == 2
    for dry_run in (True, False):
        report = await import_candles(container, file, *key, dry_run=dry_run, allow_outliers=True)
        assert (report.new, report.same, report.skipped) == (2, 4, [])
    for dry_run in (True, False):
        report = await import_candles(container, file, *key, dry_run=dry_run)
        assert (report.new, report.same, report.is_complete) == (0, 6, True)


LOCAL_MIDNIGHTS = {
    "Asia/Tokyo": ["2024-03-08 00:00:00+09:00", "2024-03-11 00:00:00+09:00"],
    "America/New_York": ["2024-03-08 00:00:00-05:00", "2024-03-11 00:00:00-04:00"],
    "Europe/London": ["2024-03-08 00:00:00+00:00", "2024-03-11 00:00:00+00:00"],
}


@pytest.mark.parametrize("zone", LOCAL_MIDNIGHTS)
async def test_a_day_that_is_named_by_its_local_midnight_is_never_stored_too_early(
    zone: str, container: Container, tmp_path: Path
) -> None:
    """As yfinance writes it, in CSV and Parquet, and as a date with a zone: its session is not the day before."""
    moments, pd = LOCAL_MIDNIGHTS[zone], cast("Any", pandas)
    numbers = ",1,2,0.5,1.5,100\n"
    frame = pd.DataFrame({name: [1.0, 1.0] for name in COLUMNS[1:]})
    frame.insert(0, "Date", pd.to_datetime(moments, utc=True).tz_convert(zone))
    frame.to_parquet(tmp_path / "zoned.parquet", index=False)
    header = "Date,Open,High,Low,Close,Volume\n"
    (tmp_path / "zoned.csv").write_text(header + "".join(moment + numbers for moment in moments))
    (tmp_path / "dates.csv").write_text(header + "".join(moment[:10] + numbers for moment in moments))
    expected = [datetime(2024, 3, day, tzinfo=UTC) for day in (8, 11)]
    for name, tz in (("zoned.csv", None), ("zoned.parquet", None), ("dates.csv", zone)):
        for length in (timedelta(hours=6, minutes=30), timedelta(hours=24)):
            key = (f"{name} {length}", "1d", zone)
            report = await import_candles(container, tmp_path / name, *key, session_length=length, tz=tz)
            assert (report.new, report.skipped) == (2, [])
            rows = await container.candle_db_service.find_last(*key, 5)
            found = [datetime.fromtimestamp(row.timestamp / 1000, UTC) for row in rows]
            late = zone == "America/New_York" and length == timedelta(hours=24)  # it lasts until 05:00 UTC
            assert found == [day + timedelta(days=late) for day in expected]
