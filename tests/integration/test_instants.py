"""Instants: an int in another unit than ms is refused in every call of every backend, unless a setting admits it."""

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from backtest_persist import Container, InvalidKeyError, InvalidPayloadError, InvalidWhenError, Registry, Settings
from backtest_persist.domains.candle import CandleDbService
from tests.own_domain.funding import FUNDING

KEY = ("BTCUSDT", "1d", "binance")
DAY = 86_400_000
EARLY = 365 * DAY  # of 1971
EARLY_DATE = datetime(1971, 1, 1, tzinfo=UTC)
PRICES = dict.fromkeys(("open", "high", "low", "close", "volume"), 1.0)


def candle_calls(db: CandleDbService) -> list[Callable[[Any], Awaitable[Any]]]:
    return [
        lambda at: db.find_by_context(*KEY, at),
        lambda at: db.has_candle(*KEY, at),
        lambda at: db.find_range(*KEY, at, 1),
        lambda at: db.find_data(*KEY, at, 1),
        lambda at: db.find_columns(*KEY, at, 1),
        lambda at: db.find_gaps(*KEY, at, 0),
        lambda at: db.find_gaps(*KEY, 0, at),
    ]


async def test_the_candles_of_mongodb_have_instants_alone(container: Container) -> None:
    """Seconds, microseconds and naive datetimes are refused by each call, those of the cache service included."""
    db, cache = container.candle_db_service, container.candle_cache_service
    of_cache: list[Callable[[Any], Awaitable[Any]]] = [
        lambda at: cache.has_candle_id(*KEY, at),
        lambda at: cache.get_candle_id(*KEY, at),
    ]
    for call in (*candle_calls(db), *of_cache):
        for bad in (1_704_067_200, 1_704_067_200_000_000, datetime(2024, 1, 1)):
            with pytest.raises(InvalidKeyError, match="naive" if isinstance(bad, datetime) else "looks like"):
                await call(bad)
        await call(datetime(2024, 1, 1, tzinfo=UTC))
    for bad in (1_704_067_200, 1_704_067_200_000_000):
        with pytest.raises(InvalidPayloadError, match="looks like"):
            await db.create(*KEY, {"timestamp": bad, **PRICES})
        with pytest.raises(InvalidPayloadError, match="looks like"):
            await db.create_many(*KEY, [{"timestamp": bad, **PRICES}])
    assert await db.count() == 0


async def test_a_setting_admits_early_ints(settings: Settings, tmp_path: Path) -> None:
    """It holds for every backend of its container, for domains of a user's, too; a datetime needs no setting."""
    for allowed in (True, False):
        given = settings.model_copy(update={"allow_early_times": allowed})
        async with Container(given, domains=[FUNDING]) as container:
            persist = Registry(container)
            await use_early_times(persist, allowed)
            persist.use_json(tmp_path / str(allowed))
            await use_early_times(persist, allowed)
            persist.use_dummy()
            await use_early_times(persist, allowed)
            cache = container.candle_cache_service
            if allowed:
                assert [row.timestamp for row in await container.candle_db_service.find_range(*KEY, EARLY, 1)] == [
                    EARLY
                ]
                assert await cache.has_candle_id(*KEY, EARLY)
            else:
                with pytest.raises(InvalidKeyError, match="seconds"):
                    await cache.has_candle_id(*KEY, EARLY)


async def use_early_times(persist: Registry, allowed: bool) -> None:
    series: Any = await persist.candle("BTCUSDT", "1d", "binance")
    funding: Any = await persist.entry(FUNDING)("BTCUSDT", "binance")
    await series.read_candles_data(1, EARLY_DATE, EARLY_DATE)
    await funding.write_funding_data({"n": 1}, EARLY_DATE)
    calls: list[Callable[[], Awaitable[Any]]] = [
        lambda: series.write_candles_data([{"timestamp": EARLY, **PRICES}]),
        lambda: series.read_candles_data(1, EARLY, EARLY + DAY),
        lambda: funding.write_funding_data({"n": 1}, EARLY),
        lambda: funding.read_funding_data(when=EARLY),
    ]
    for call in calls:
        if allowed:
            await call()
        else:
            with pytest.raises((InvalidKeyError, InvalidPayloadError, InvalidWhenError), match="seconds"):
                await call()
