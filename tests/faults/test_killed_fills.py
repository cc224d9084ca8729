"""Fills whose process is killed at any instant: the next one goes on from there, and the series becomes whole."""

import asyncio
import os
import random
import signal

import pytest

from backtest_persist import Container
from backtest_persist.operations.candles.filling import fill_candles
from tests.support.exchange_server import DAY, LISTED, MINUTE, ExchangeServer, open_exchange
from tests.support.killed_fills import killed_fills
from tests.support.stopwatch import HANG


async def kill_often(container: Container, days: int, kills: int) -> None:
    """Fill so many days of minutes by processes that are killed, and compare the series with that of the exchange."""
    since, until = LISTED - 500 * DAY, LISTED + days * DAY
    draw = random.Random(days)
    holes = [(at, at + draw.randint(1, 60) * MINUTE) for at in range(LISTED + MINUTE, until, DAY // 3)]
    pages = days * DAY // MINUTE // 1000 + 1
    async with ExchangeServer(holes=holes) as server, killed_fills(container.settings, server.url) as start:
        marks = sorted(draw.sample(range(pages * 3 // 4), kills))
        for number in marks:
            pid = await start(since, until)
            try:
                async with asyncio.timeout(HANG):
                    while len(server.asked) <= number:
                        await asyncio.sleep(0.001)
                await asyncio.sleep(draw.random() * 0.1)
            finally:
                os.kill(pid, signal.SIGKILL)
        killed_at = len(server.asked)
        assert killed_at < pages, "the last process was not killed in the middle"
        async with open_exchange(server.url) as exchange:
            report = await fill_candles(container, exchange, "BTCUSDT", "1m", since, until)
        assert report.requests < pages, "the last fill has not gone on"
        assert len(server.asked) <= pages + 2 * kills
        found = await container.candle_db_service.find_data(
            "BTCUSDT", "1m", "binance", LISTED, (until - LISTED) // MINUTE
        )
        assert [list(candle.values()) for candle in found] == server.candles(LISTED, until)
        assert report.missing == [(since, LISTED), *holes]
        assert not report.remaining
        months = len(await container.interval_db_service.list_keys("missing-candles:binance:BTCUSDT:1m"))
        assert months <= days // 28 + 3


@pytest.mark.parametrize("driver", ["motor"], indirect=True)
async def test_a_month_of_minutes_with_kills(container: Container) -> None:
    """Of what was fetched, each process that is killed loses one page at most; what is missing is remembered."""
    await kill_often(container, 30, 4)


@pytest.mark.soak
@pytest.mark.parametrize("driver", ["motor"], indirect=True)
async def test_a_year_of_minutes_with_kills(container: Container) -> None:
    """A year of 525,600 minutes becomes whole, although forty processes are killed on the way."""
    await kill_often(container, 365, 40)
