"""Candle memory under faults: an error is that of the window which meets it, and nothing remembers it."""

import asyncio

import pytest

from backtest_persist import Container, StoreUnavailableError
from backtest_persist.run.candle_chunks import SLOTS
from backtest_persist.run.candle_memory import CandleMemory
from tests.support.fail_points import Failing

MINUTE = 60_000
START = 1_600_000_000_000 // (SLOTS * MINUTE) * SLOTS * MINUTE  # where a chunk begins
KEY = ("BTCUSDT", "1m", "binance")
PRICES = {"open": 10.0, "high": 12.0, "low": 9.0, "close": 11.0}


@pytest.mark.parametrize("driver", ["motor"], indirect=True)
async def test_a_find_that_fails_is_not_remembered(container: Container, failing: Failing) -> None:
    """All who wait for it get its error; the next window asks again, and what fails ahead of time fails nobody."""
    db = container.candle_db_service
    candles = [{"timestamp": START + n * MINUTE, **PRICES, "volume": 1.0 + n} for n in range(SLOTS + 100)]
    await db.create_many(*KEY, [row for row in candles if row["volume"] != 201.0])
    memory = CandleMemory(db, 64 << 20)

    async def last(number: int) -> int:
        window = await memory.window(*KEY, 20, START + (number + 1) * MINUTE)
        return int(window["volume"][-1]) - 1

    for number in (100, 210):  # a chunk, and a gap in it
        async with failing("find", times=100, errorCode=13):
            found = await asyncio.gather(last(number), last(number + 1), return_exceptions=True)
        assert {type(error) for error in found} == {StoreUnavailableError}
        assert await last(number) == number
    async with failing("find", times=100, errorCode=13):
        assert await last(SLOTS - 1) == SLOTS - 1
        await asyncio.sleep(0.1)
    assert await last(SLOTS + 50) == SLOTS + 50
    await memory.close()
