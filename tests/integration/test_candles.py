"""Candles: immutable, one query per window, refused when they cannot be real."""

import random
import time
import tracemalloc
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from enum import Enum
from fractions import Fraction
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
import pytest
from bson import Decimal128
from pydantic import BaseModel

from backtest_persist import Container, InvalidKeyError, InvalidPayloadError, PersistCandleInstance, Settings
from tests.support.commands import Commands, close_client, monitored_client

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
    """A second candle of the same time changes nothing, alone or in bulk; the same one may be twice in a bulk."""
    db = container.candle_db_service
    first = await db.create(*KEY, candle(0))
    assert (await db.create(*KEY, candle(0, close=9.5))) == first
    assert await db.create_many(*KEY, [candle(0, close=9.5), candle(1), candle(1), candle(2)]) == 2
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


async def test_a_candle_between_the_times_of_a_window_stands_for_none(container: Container) -> None:
    """Candles that another program stored at other times than multiples of the interval do not affect a window."""
    adapter = PersistCandleInstance("BTC/USDT:USDT", "1m", "binance", ioc=container)
    await adapter.write_candles_data([candle(0), candle(2)])
    stored = container.mongo_service.database["candle-items"]
    between: Any = await stored.find_one({"timestamp": START})
    between.pop("_id")
    await stored.insert_one({**between, "timestamp": START + MINUTE + 500})
    assert await adapter.read_candles_data(3, START) is None
    assert await adapter.read_candle_columns(3, START) is None
    assert await container.candle_db_service.find_gaps(*KEY, START, START + 3 * MINUTE) == [
        (START + MINUTE, START + 2 * MINUTE)
    ]
    await adapter.write_candles_data([candle(1)])
    assert await adapter.read_candles_data(3, START) == [candle(n) for n in range(3)]
    columns = await adapter.read_candle_columns(3, START)
    assert columns is not None
    assert columns["timestamp"].tolist() == [START + n * MINUTE for n in range(3)]
    assert {len(column) for column in columns.values()} == {3}
    assert await container.candle_db_service.find_gaps(*KEY, START, START + 3 * MINUTE) == []


async def test_a_window_costs_what_is_stored_of_it(container: Container) -> None:
    """However many candles are asked for, nothing is made for those that are missing."""
    adapter = PersistCandleInstance("BTC/USDT:USDT", "1m", "binance", ioc=container)
    await adapter.write_candles_data([candle(n) for n in range(10)])
    tracemalloc.start()
    try:
        assert await adapter.read_candles_data(10**6, START) is None
        assert await adapter.read_candle_columns(10**6, START) is None
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


NO_NUMBERS: list[Any] = [None, ..., "x", [1.0], {}, datetime.now(UTC)]


@pytest.mark.parametrize("field", ["timestamp", "open", "volume"])
async def test_a_damaged_candle_is_named_by_every_read(container: Container, field: str) -> None:
    """Rows, windows and columns name the damaged document, and an invalid time does not close a gap."""
    candles = container.candle_db_service
    await candles.create_many(*KEY, [candle(0), candle(1)])
    stored = container.mongo_service.database["candle-items"]
    damages = [START + 0.5, Decimal128(f"{START}.0"), [START]] if field == "timestamp" else NO_NUMBERS
    for value in damages:
        damage: dict[str, Any] = {"$unset": {field: 1}} if value is ... else {"$set": {field: value}}
        damaged: Any = await stored.find_one_and_update({"timestamp": {"$lt": START + MINUTE}}, damage)
        for read in (candles.find_range, candles.find_data, candles.find_columns):
            with pytest.raises(InvalidPayloadError, match=f"{damaged['_id']}.*{field}"):
                await read(*KEY, START, 2)
        if value != [START]:
            gaps = await candles.find_gaps(*KEY, START, START + 2 * MINUTE)
            assert gaps == ([(START, START + MINUTE)] if value == START + 0.5 else [])


async def test_fractions_of_a_time_close_no_gap(container: Container) -> None:
    """Wherever they are among candles and gaps, they fill no gap and keep no candle from being written."""
    candles = container.candle_db_service
    stored = container.mongo_service.database["candle-items"]
    await candles.wait_for_init()
    for seed in range(40):
        chance = random.Random(seed)
        whole = [n for n in range(8) if chance.random() < 0.6]
        fractions = [n for n in range(8) if chance.random() < 0.4]
        template = {"symbol": KEY[0], "interval": KEY[1], "exchangeName": KEY[2]}
        if fractions:
            await stored.insert_many([{**template, "timestamp": START + n * MINUTE + 0.5} for n in fractions])
        assert await candles.create_many(*KEY, [candle(n) for n in whole]) == len(whole)
        missing = [START + n * MINUTE for n in range(8) if n not in whole]
        gaps = await candles.find_gaps(*KEY, START, START + 8 * MINUTE)
        assert [at for first, end in gaps for at in range(first, end, MINUTE)] == missing, seed
        assert all(end < first for (_, end), (first, _) in pairwise(gaps)), seed
        await stored.delete_many({})


@dataclass
class Bar:
    timestamp: Any
    open: Any = 10.0
    high: Any = 12.0
    low: Any = 9.0
    close: Any = 11.0
    volume: Any = 1.0


class Model(BaseModel):
    timestamp: int
    open: float = 10.0
    high: float = 12.0
    low: float = 9.0
    close: float = 11.0
    volume: float = 2.0


async def test_a_candle_is_a_mapping_a_model_or_a_dataclass(container: Container) -> None:
    """Its numbers may be of any type that is a number."""
    adapter = PersistCandleInstance("BTC/USDT:USDT", "1m", "binance", ioc=container)
    third = Bar(np.int64(START + 2 * MINUTE), 10, np.float32(12), Decimal("9.0"), Fraction(11), np.int64(3))
    candles: list[Any] = [Bar(START), Model(timestamp=START + MINUTE), third]
    await adapter.write_candles_data(candles)
    assert await adapter.read_candles_data(3, START) == [candle(n) for n in range(3)]
    bad: list[Any] = [5, "text", [START], Bar, None]
    for one in bad:
        with pytest.raises(InvalidPayloadError, match="candle"):
            await adapter.write_candles_data([one])
    nothing: list[Any] = [None, 5]
    for none in nothing:
        with pytest.raises(InvalidPayloadError, match="candle-items"):
            await adapter.write_candles_data(none)
        with pytest.raises(InvalidPayloadError, match="candle-items"):
            await container.candle_db_service.create_many(*KEY, none)


class Market(str, Enum):  # noqa: UP042  # whose str() is the name of the member
    SYMBOL = "BTC/USDT:USDT"
    MINUTE = "1m"


async def test_a_series_may_be_named_by_members_of_an_enum(container: Container) -> None:
    """Bulks, ranges and the ids in Redis have the content of a (str, Enum), like single reads."""
    db, named = container.candle_db_service, (Market.SYMBOL, Market.MINUTE, "binance")
    assert await db.create_many(*named, [candle(0)]) == 1
    row = await db.find_by_context(*KEY, START)
    assert row is not None
    assert db.stats.hits == 1
    assert await db.find_range(*named, START, 1) == [row]


async def test_a_bad_series_is_refused_with_nothing_to_do_as_well(container: Container) -> None:
    """No candles, or no rows, are no reason to accept a bad key."""
    db = container.candle_db_service
    for key in (("", "1m", "e"), ("s", "7m", "e"), ("s", "1m", "")):
        with pytest.raises(InvalidKeyError):
            await db.create_many(*key, [])
        with pytest.raises(InvalidKeyError):
            await db.find_range(*key, START, 0)
        with pytest.raises(InvalidKeyError):
            await db.find_gaps(*key, START, START)


async def test_a_window_beyond_64_bits_is_a_typed_error(container: Container) -> None:
    """The end of a window is a timestamp, too."""
    db, limits = container.candle_db_service, (2**63, 2**62)
    adapter = PersistCandleInstance("BTC/USDT:USDT", "1m", "binance", ioc=container)
    assert await adapter.read_candles_data(2**47, 0) is None
    for limit in limits:
        with pytest.raises(InvalidKeyError, match="64 bits"):
            await db.find_range(*KEY, 0, limit)
        with pytest.raises(InvalidKeyError, match="64 bits"):
            await adapter.read_candles_data(limit, 0)


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
        {"timestamp": pd.NaT},
        {"timestamp": np.array([1, 2])},
        {"timestamp": 2**63},
        {"open": float("nan")},
        {"high": float("inf")},
        {"close": "eleven"},
        {"close": "1_1"},
        {"close": "nan"},
        {"close": None},
        {"close": True},
        {"volume": np.bool_(True)},
        {"close": np.array([11.0, 11.0])},
        {"close": np.timedelta64(11, "s")},
        {"close": np.str_("0x11")},
        {"close": 10**400},
        {"close": Decimal("sNaN")},
        {"close": pd.NA},
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
    with pytest.raises(InvalidKeyError, match=f"since_timestamp {START + 1} is not the start of a 1m candle"):
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
    """Ten thousand candles are written by at most 20 commands to each server, and read by one query."""
    commands = Commands()
    client = monitored_client(settings, driver, commands)
    container = Container(settings, mongo_client=client)
    db = container.candle_db_service
    await db.wait_for_init()
    commands.names.clear()
    redis: Any = container.redis_service.client

    async def set_calls() -> int:
        statistics: dict[str, Any] = await redis.info("commandstats")
        return sum(statistics.get(f"cmdstat_{name}", {"calls": 0})["calls"] for name in ("set", "mset"))

    before = await set_calls()
    assert await db.create_many(*KEY, (candle(n) for n in range(10_000))) == 10_000
    assert set(commands.names) == {"find", "insert"}
    assert len(commands.names) <= 20
    assert 1 <= await set_calls() - before <= 20
    assert await container.candle_cache_service.size() == 10_000
    row = (await db.find_range(*KEY, START, 1))[0]
    assert await container.candle_cache_service.get_candle_id(*KEY, START) == row.id

    commands.names.clear()
    assert len(await db.find_range(*KEY, START, 10_000)) == 10_000
    assert commands.names.count("find") == 1
    assert set(commands.names) <= {"find", "getMore"}

    await container.close()
    await client.admin.command("ping")  # an injected client stays open
    await close_client(client)


async def test_the_backfill_of_candle_ids_can_be_turned_off(settings: Settings) -> None:
    """With CC_CANDLE_CACHE off a bulk write puts nothing into Redis, and reads work all the same."""
    async with Container(settings.model_copy(update={"candle_cache": False})) as container:
        await container.candle_db_service.create_many(*KEY, [candle(n) for n in range(5)])
        assert await container.candle_cache_service.size() == 0
        assert await container.candle_db_service.has_candle(*KEY, START) is True


async def test_a_window_comes_as_columns(container: Container) -> None:
    """Arrays of int64 and float64 that equal the candles, whichever numbers a writer left; None with a hole."""
    adapter = PersistCandleInstance("BTC/USDT:USDT", "1m", "binance", ioc=container)
    await adapter.write_candles_data([candle(n) for n in range(300) if n != 200])
    await container.mongo_service.collection("candle-items").update_one(
        {"timestamp": START + MINUTE}, {"$set": {"open": 10, "timestamp": float(START + MINUTE), "volume": 7}}
    )
    columns = await adapter.read_candle_columns(200, START)
    rows = await adapter.read_candles_data(200, START)
    assert columns is not None
    assert rows is not None
    assert list(columns) == ["timestamp", "open", "high", "low", "close", "volume"]
    assert [str(column.dtype) for column in columns.values()] == ["int64", *["float64"] * 5]
    for name, column in columns.items():
        assert column.tolist() == [row[name] for row in rows]
        assert column.flags.writeable
    assert await adapter.read_candle_columns(201, START) is None
    assert await adapter.read_candle_columns(5, START, START + 5 * MINUTE - 1) is None
    empty = await adapter.read_candle_columns(0, START)
    assert empty is not None
    assert [len(column) for column in empty.values()] == [0] * 6
    big = PersistCandleInstance("BIG", "1m", "binance", ioc=container)
    await big.write_candles_data([candle(n) for n in range(12_000)])
    many = await big.read_candle_columns(12_000, START)
    assert many is not None
    assert many["volume"].sum() == sum(1.0 + n for n in range(12_000))
    with pytest.raises(InvalidKeyError, match="is not the start"):
        await adapter.read_candle_columns(1, START + 1)
