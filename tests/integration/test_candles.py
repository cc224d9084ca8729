"""Candles: immutable, one query per window, refused when they cannot be real."""

import time
from typing import Any

import pytest

from backtest_persist import Container, InvalidKeyError, InvalidPayloadError, PersistCandleInstance, Settings
from tests.commands import Commands, listened_client

MINUTE = 60_000
START = 1_600_000_020_000
KEY = ("BTC/USDT:USDT", "1m", "binance")


def candle(number: int, **changes: Any) -> dict[str, Any]:
    return {
        "timestamp": START + number * MINUTE,
        "open": 10.0,
        "high": 12.0,
        "low": 9.0,
        "close": 11.0,
        "volume": 1.0 + number,
        **changes,
    }


async def test_the_first_write_of_a_candle_wins(container: Container) -> None:
    """A second candle of the same time changes nothing, whether alone, in bulk, or twice in one bulk."""
    db = container.candle_db_service
    first = await db.create(*KEY, candle(0))
    assert (await db.create(*KEY, candle(0, close=9.5))) == first
    assert await db.create_many(*KEY, [candle(0, close=9.5), candle(1), candle(1, close=9.5), candle(2)]) == 2
    assert [row.close for row in await db.find_range(*KEY, START, 3)] == [11.0, 11.0, 11.0]
    assert await db.count() == 3


async def test_exchanges_and_intervals_do_not_share_candles(container: Container) -> None:
    """The same symbol and time on another exchange, or in another interval, is another candle."""
    db = container.candle_db_service
    aligned = START - START % 300_000
    await db.create("BTCUSDT", "1m", "binance", candle(0, timestamp=aligned))
    await db.create("BTCUSDT", "1m", "bybit", candle(0, timestamp=aligned, close=9.5))
    await db.create("BTCUSDT", "5m", "binance", candle(0, timestamp=aligned, close=10.5))
    assert [await db.has_candle("BTCUSDT", "1m", name, aligned) for name in ("binance", "bybit", "okx")] == [
        True,
        True,
        False,
    ]
    rows = [await db.find_by_context("BTCUSDT", "1m", name, aligned) for name in ("binance", "bybit")]
    assert [row and row.close for row in rows] == [11.0, 9.5]


async def test_a_window_is_whole_or_none(container: Container) -> None:
    """A window comes back whole and in order; with any candle missing it is None."""
    adapter = PersistCandleInstance("BTC/USDT:USDT", "1m", "binance", ioc=container)
    await adapter.write_candles_data([candle(n) for n in reversed(range(10)) if n != 7])
    window = await adapter.read_candles_data(7, START)
    assert window == [candle(n) for n in range(7)]
    assert await adapter.read_candles_data(8, START) is None
    assert await adapter.read_candles_data(2, START + 8 * MINUTE) == [candle(8), candle(9)]
    assert await adapter.read_candles_data(0, START) == []
    await adapter.write_candles_data([candle(7)])
    assert await adapter.read_candles_data(10, START) == [candle(n) for n in range(10)]


async def test_a_window_that_closes_after_until_is_none(container: Container) -> None:
    """A candle whose close lies after `until_timestamp` does not exist yet for the reader."""
    adapter = PersistCandleInstance("BTC/USDT:USDT", "1m", "binance", ioc=container)
    await adapter.write_candles_data([candle(n) for n in range(3)])
    assert await adapter.read_candles_data(3, START, START + 3 * MINUTE) == [candle(n) for n in range(3)]
    assert await adapter.read_candles_data(3, START, START + 3 * MINUTE - 1) is None


async def test_a_candle_that_has_not_closed_is_skipped(container: Container) -> None:
    """The candle of the present minute is not stored; those before it are."""
    adapter = PersistCandleInstance("BTC/USDT:USDT", "1m", "binance", ioc=container)
    now = int(time.time() * 1000)
    open_now = now - now % MINUTE + MINUTE  # the coming minute: surely unfinished
    closed = open_now - 2 * MINUTE
    await adapter.write_candles_data([candle(0, timestamp=closed), candle(0, timestamp=open_now)])
    rows = await container.candle_db_service.find_all()
    assert [row.timestamp for row in rows] == [closed]


@pytest.mark.parametrize(
    "changes",
    [
        {"timestamp": START + 1},
        {"timestamp": None},
        {"timestamp": True},
        {"open": float("nan")},
        {"high": float("inf")},
        {"close": "11"},
        {"close": None},
        {"close": True},
        {"high": 10.5},
        {"low": 10.5},
        {"volume": -1.0},
    ],
    ids=str,
)
async def test_a_candle_that_cannot_be_real_is_refused_before_anything_is_sent(
    container: Container, changes: dict[str, Any]
) -> None:
    """One bad candle among good ones is an InvalidPayloadError and none of them is stored."""
    adapter = PersistCandleInstance("BTC/USDT:USDT", "1m", "binance", ioc=container)
    with pytest.raises(InvalidPayloadError):
        await adapter.write_candles_data([candle(0), candle(1, **changes)])
    with pytest.raises(InvalidPayloadError):
        await container.candle_db_service.create(*KEY, candle(1, **changes))
    assert await container.candle_db_service.count() == 0


async def test_a_bad_window_is_a_typed_error(container: Container) -> None:
    """A negative or foreign limit, an unaligned start and an unknown interval say what is wrong."""
    adapter = PersistCandleInstance("BTC/USDT:USDT", "1m", "binance", ioc=container)
    bad_limits: list[Any] = [-1, 1.5, True, None, "10"]
    for limit in bad_limits:
        with pytest.raises(InvalidKeyError, match="limit"):
            await adapter.read_candles_data(limit, START)
    with pytest.raises(InvalidKeyError, match=f"starts at {START}"):
        await adapter.read_candles_data(1, START + 1)
    with pytest.raises(InvalidKeyError, match="1m 3m 5m 15m 30m 1h 2h 4h 6h 8h 1d"):
        await container.candle_db_service.find_range("BTCUSDT", "7m", "binance", START, 1)
    with pytest.raises(InvalidKeyError, match="interval"):
        await container.candle_cache_service.get_candle_id("BTCUSDT", "1w", "binance", START)


async def test_gaps_are_found_at_both_ends_and_in_between(container: Container) -> None:
    """Each gap is (first missing opening time, opening time after it); a whole series has none."""
    db = container.candle_db_service
    await db.create_many(*KEY, [candle(n) for n in (2, 3, 5, 9)])

    def at(number: int) -> int:
        return START + number * MINUTE

    assert await db.find_gaps(*KEY, at(0), at(12)) == [
        (at(0), at(2)),
        (at(4), at(5)),
        (at(6), at(9)),
        (at(10), at(12)),
    ]
    assert await db.find_gaps(*KEY, at(2), at(4)) == []
    assert await db.find_gaps("none", "1m", "binance", at(0), at(3)) == [(at(0), at(3))]
    assert await db.find_gaps(*KEY, at(3), at(3)) == []


async def test_ten_thousand_candles_take_few_commands(settings: Settings, driver: str) -> None:
    """Ten thousand candles are written by at most 20 commands and read by one query, ids pipelined to Redis."""
    commands = Commands()
    client = listened_client(settings, driver, commands)
    container = Container(settings, mongo_client=client)
    db = container.candle_db_service
    await db.wait_for_init()
    commands.names.clear()

    assert await db.create_many(*KEY, (candle(n) for n in range(10_000))) == 10_000
    assert set(commands.names) == {"find", "insert"}
    assert len(commands.names) <= 20
    assert await container.candle_cache_service.size() == 10_000
    row = (await db.find_range(*KEY, START, 1))[0]
    assert await container.candle_cache_service.get_candle_id(*KEY, START) == row.id

    commands.names.clear()
    assert len(await db.find_range(*KEY, START, 10_000)) == 10_000
    assert commands.names.count("find") == 1
    assert set(commands.names) <= {"find", "getMore"}

    await container.close()
    await client.admin.command("ping")  # an injected client stays open
    closing = client.close()
    if closing is not None:
        await closing


async def test_the_backfill_of_candle_ids_can_be_turned_off(settings: Settings) -> None:
    """With CC_CANDLE_CACHE off a bulk write puts nothing into Redis, and reads work all the same."""
    async with Container(settings.model_copy(update={"candle_cache": False})) as container:
        await container.candle_db_service.create_many(*KEY, [candle(n) for n in range(5)])
        assert await container.candle_cache_service.size() == 0
        assert await container.candle_db_service.has_candle(*KEY, START) is True
