"""A moving-average strategy that survives a kill: run it, kill it, and run it again.

``python survive.py`` keeps its state on the servers of the CC_* settings,
``python survive.py DIR`` in files.
"""

import asyncio
import random
import sys
from contextlib import aclosing
from statistics import fmean

from pydantic import BaseModel

from backtest_persist import Bar, CandleData, Mode, Run, ioc, persist, setup

MINUTE, START = 60_000, 1_704_067_200_000  # ms; 2024-01-01 00:00 UTC


class Session(BaseModel):
    cash: float = 10_000.0
    coins: float = 0.0
    signal: str | None = None


def history(count: int = 2000) -> list[CandleData]:
    chance, price, candles = random.Random(1), 40_000.0, list[CandleData]()
    for number in range(count):
        close = round(price * chance.uniform(0.999, 1.001), 2)
        candle = CandleData(
            timestamp=START + number * MINUTE,
            open=price,
            high=max(price, close),
            low=min(price, close),
            close=close,
            volume=1.0,
        )
        candles.append(candle)
        price = close
    return candles


def open_run() -> Run[Session]:
    return persist.run(
        strategy="cross",
        exchange="binance",
        symbol="BTCUSDT",
        frame="january",
        mode=Mode.BACKTEST,
        session=Session,
    )


async def on_bar(bar: Bar[Session]) -> None:
    session = bar.session
    closes = [candle["close"] for candle in await bar.candles("1m", 30)]
    price, fast, slow = closes[-1], fmean(closes[-10:]), fmean(closes)
    if session.signal is None and fast > slow:
        session.signal = bar.new_id()
        session.coins, session.cash = session.cash / price, 0.0
        await bar.signal.write_signal_data({"id": session.signal, "priceOpen": price})
        await note(bar, f"bought at {price}")
    elif session.signal is not None and fast < slow:
        session.cash, session.coins = session.coins * price, 0.0
        trade = {"id": session.signal, "priceClose": price, "cash": session.cash}
        await bar.storage.write_storage_data([trade])
        await bar.signal.write_signal_data(None)
        await note(bar, f"sold at {price}")
        session.signal = None


async def note(bar: Bar[Session], text: str) -> None:
    await bar.log.write_log_data([{"id": bar.new_id("log"), "text": text}])


async def main() -> None:
    persist.use_json(sys.argv[1]) if len(sys.argv) > 1 else setup()
    async with aclosing(ioc), open_run() as run:
        candles = await persist.candle("BTCUSDT", "1m", "binance")
        await candles.write_candles_data(history())
        print(f"{run.bars} bars are stored", flush=True)
        for candle in history():
            closes_at = candle["timestamp"] + MINUTE
            if not run.seen(closes_at):
                async with run.bar(closes_at) as bar:
                    await on_bar(bar)
        trades = await run.adapters.storage.read_storage_data()
        print(f"{run.bars} bars, {len(trades)} trades: {run.session}")


if __name__ == "__main__":
    asyncio.run(main())
