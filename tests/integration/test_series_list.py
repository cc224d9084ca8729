"""`list_series`: every stored series with its range, its candles and its gaps, in each backend."""

import random
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from bson.decimal128 import Decimal128
from bson.int64 import Int64

from backtest_persist import Container, DummyBackend, InvalidKeyError, JsonBackend, SettingsError
from backtest_persist.core.candles import mongo_series
from backtest_persist.core.candles.ohlcv import Series
from backtest_persist.core.candles.series_summary import SeriesSummary
from backtest_persist.domains.candle import CandleDbService
from backtest_persist.run.candles import unit_over
from tests.support.dumps import CANDLE_TEXT, CANDLE_TIME, MINUTE, write_dump

pytestmark = pytest.mark.parametrize("driver", ["motor"], indirect=True)

HOUR, DAY = 3_600_000, 86_400_000
START = 1_704_067_200_000


def candles(times: list[int]) -> list[dict[str, Any]]:
    return [{"timestamp": at, "open": 1.0, "high": 2.0, "low": 0.5, "close": 1.5, "volume": 1.0} for at in times]


async def fill(db: CandleDbService) -> list[SeriesSummary]:
    """Store some series, and return what is to be said of them."""
    long = "x" * 300
    expected = [
        SeriesSummary("BTC/USDT", "5m", "a", START, START, 1, 0, 0),
        SeriesSummary("BTC/USDT", "1h", "a", START, START + 9 * HOUR, 6, 4, 2),
        SeriesSummary("BTC_USDT", "1d", "a", -2 * DAY, 2 * DAY, 5, 0, 0),
        SeriesSummary(long, "1m", "a", START, START + MINUTE, 2, 0, 0),
        SeriesSummary("BTC/USDT", "1m", "x_y", START, START + 10**9 * MINUTE // 1000, 2, 10**6 - 1, 1),
    ]
    await db.create_many("BTC/USDT", "5m", "a", candles([START]))
    await db.create_many("BTC/USDT", "1h", "a", candles([START + n * HOUR for n in (0, 1, 4, 5, 8, 9)]))
    days = [
        {**row, "timestamp": datetime.fromtimestamp(n * 86_400, UTC)}
        for n, row in zip(range(-2, 3), candles([0] * 5), strict=True)
    ]
    await db.create_many("BTC_USDT", "1d", "a", days)
    await db.create_many(long, "1m", "a", candles([START, START + MINUTE]))
    await db.create_many("BTC/USDT", "1m", "x_y", candles([START, START + 10**6 * MINUTE]))
    return expected


@pytest.mark.parametrize("backend", ["mongo", "json"])
async def test_each_backend_lists_its_series_with_range_count_and_gaps(
    container: Container, tmp_path: Path, backend: str
) -> None:
    """By exchange, symbol and length of the interval, all or those with given names."""
    services = container if backend == "mongo" else JsonBackend(tmp_path).services
    db = services.db_service(CandleDbService)
    assert await db.list_series() == []
    expected = await fill(db)
    assert await db.list_series() == expected
    assert await db.list_series("BTC/USDT") == [expected[0], expected[1], expected[4]]
    assert await db.list_series(exchange_name="x_y") == expected[4:]
    assert await db.list_series("BTC/USDT", "1h", "a") == expected[1:2]
    assert await db.list_series(interval="1d") == expected[2:3]
    assert await db.list_series("none") == []
    with pytest.raises(InvalidKeyError, match="symbol must be a str"):
        await db.list_series({"$gt": ""})  # pyright: ignore[reportArgumentType]
    await db.delete_range("BTC/USDT", "1m", "x_y")
    assert await db.list_series() == expected[:4]
    unit = unit_over(JsonBackend(tmp_path))
    with pytest.raises(SettingsError, match="not listed in a unit of work"):
        await unit.buffered(CandleDbService).list_series()
    assert await DummyBackend().services.db_service(CandleDbService).list_series() == []


async def test_what_other_programs_have_stored_hides_no_series(container: Container) -> None:
    """Times of no candle are counted apart, an unknown interval has no gaps, and what has no names is passed over."""
    db = container.candle_db_service
    await db.create_many("S", "1h", "e", candles([START, START + 2 * HOUR]))
    dates = {"createDate": datetime.now(UTC), "updatedDate": datetime.now(UTC)}
    numbers = {"open": 1.0, "high": 1.0, "low": 1.0, "close": 1.0, "volume": 1.0}

    def foreign(symbol: Any, interval: Any, exchange: Any, timestamp: Any) -> dict[str, Any]:
        names = {"symbol": symbol, "interval": interval, "exchangeName": exchange, "timestamp": timestamp}
        return {**names, **numbers, **dates}

    await container.mongo_service.collection("candle-items").insert_many(
        [
            foreign("S", "1h", "e", START - HOUR // 2),
            foreign("S", "1h", "e", float(START + HOUR // 2)),
            foreign("S", "1h", "e", Decimal128(str(START + 3 * HOUR))),
            foreign("S", "1h", "e", Int64(START + 3 * HOUR + 1)),
            foreign("S", "1h", "e", "2024"),
            foreign("S", "1w", "e", START),
            foreign("S", "1w", "e", START + 7 * DAY),
            foreign("ODD", "1d", "e", START + 9 * HOUR),
            foreign(["A", "Z"], "1h", "e", START),
            foreign("S", "1h", ["a", "z"], START),
            foreign(None, "1h", "e", START),
            foreign("S", None, None, START),
            foreign(5, "1h", "e", START),
            foreign("", "1h", "e", START),
            foreign("S", "1h", "f", None),
        ]
    )
    assert await db.list_series() == [
        SeriesSummary("ODD", "1d", "e", START + 9 * HOUR, START + 9 * HOUR, 0, 0, 0, 1),
        SeriesSummary("S", "1h", "e", START - HOUR // 2, START + 3 * HOUR + 1, 3, 1, 1, 3),
        SeriesSummary("S", "1w", "e", START, START + 7 * DAY, 2, None, None),
    ]
    assert [summary.interval for summary in await db.list_series("S", exchange_name="e")] == ["1h", "1w"]
    assert [summary.symbol for summary in await db.list_series(interval="1w")] == ["S"]
    assert await db.list_series(interval="3w") == []


async def test_a_time_that_no_candle_can_have_hides_no_series(container: Container) -> None:
    """Arrays and numbers beyond 64 bits, or nearly so, are passed over or misaligned; the gaps are those without."""
    db, collection = container.candle_db_service, container.mongo_service.collection("candle-items")
    times: list[Any] = [[Int64(START)], [Int64(START + 7 * HOUR), Int64(START + 8 * HOUR)], 1e300, -1e300]
    times += [Decimal128("1E+400"), Decimal128("NaN"), Int64(2**63 - 1), Int64(-(2**63)), Int64(2**63 - 10**12)]
    await db.create_many("S", "1h", "e", candles([START + 2 * HOUR, START + 4 * HOUR]))
    numbers = {"open": 1.0, "high": 1.0, "low": 1.0, "close": 1.0, "volume": 1.0}
    dates = {"createDate": datetime.now(UTC), "updatedDate": datetime.now(UTC)}
    await collection.insert_many(
        {"symbol": symbol, "interval": "1h", "exchangeName": "e", "timestamp": at, **numbers, **dates}
        for symbol in ("S", "T")
        for at in times
    )
    assert await db.list_series() == [SeriesSummary("S", "1h", "e", START + 2 * HOUR, START + 4 * HOUR, 2, 1, 1, 1)]
    assert await db.candles.find_bounds(Series("S", "1h", "e")) == (START + 2 * HOUR, START + 4 * HOUR)
    gaps = [(START, START + 2 * HOUR), (START + 3 * HOUR, START + 4 * HOUR), (START + 5 * HOUR, START + 9 * HOUR)]
    assert await db.find_gaps("S", "1h", "e", START, START + 9 * HOUR) == gaps


async def test_gaps_are_counted_as_they_are_found(container: Container, monkeypatch: pytest.MonkeyPatch) -> None:
    """However they lie across the parts in which a series is counted."""
    monkeypatch.setattr(mongo_series, "PART", 7)
    monkeypatch.setattr(mongo_series, "_FEW", 2)
    monkeypatch.setattr(mongo_series, "_MAX_HALVES", 3)
    chance = random.Random(5)
    db = container.candle_db_service
    for number, share in enumerate((0.02, 0.2, 0.5, 0.8, 0.9, 0.95, 0.97)):
        times = [START + n * MINUTE for n in range(400) if chance.random() > share]
        await db.create_many(f"S{number}", "1m", "e", candles(times))
    for summary in await db.list_series():
        found = await db.find_gaps(summary.symbol, "1m", "e", summary.first, summary.last + 1)
        assert (summary.gaps, summary.missing) == (len(found), sum(after - at for at, after in found) // MINUTE)
        assert summary.count == await db.count({"symbol": summary.symbol})


async def test_series_of_the_framework_are_listed(tmp_path: Path, container: Container) -> None:
    """A symbol with a slash is two directories there; one that both have written is one series."""
    text = CANDLE_TEXT % CANDLE_TIME
    write_dump(
        tmp_path,
        {
            f"data/candle/binance/BTC/USDT/1m/{CANDLE_TIME}.json": text,
            f"data/candle/binance/ETH/USDT/1m/{CANDLE_TIME}.json": text,
            f"data/candle/binance/BNB/1w/{CANDLE_TIME}.json": text,
            "data/candle/binance/BNB/1m/notes.txt": "",
        },
    )
    db = JsonBackend(tmp_path).services.db_service(CandleDbService)
    await db.create_many("ETH/USDT", "1m", "binance", candles([CANDLE_TIME + 2 * MINUTE]))
    assert await db.list_series() == [
        SeriesSummary("BNB", "1w", "binance", CANDLE_TIME, CANDLE_TIME, 1, None, None),
        SeriesSummary("BTC/USDT", "1m", "binance", CANDLE_TIME, CANDLE_TIME, 1, 0, 0),
        SeriesSummary("ETH/USDT", "1m", "binance", CANDLE_TIME, CANDLE_TIME + 2 * MINUTE, 2, 1, 1),
    ]
