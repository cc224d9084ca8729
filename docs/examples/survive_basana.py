"""The strategy of survive.py, called by the event loop of basana."""

import asyncio
import sys
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from decimal import Decimal

from basana import Bar, BarEvent, FifoQueueEventSource, Pair, backtesting_dispatcher
from basana.backtesting.exchange import Exchange

from backtest_persist import ioc, persist, setup
from survive import history, on_bar, open_run


def events(pair: Pair) -> list[BarEvent]:
    found: list[BarEvent] = []
    for candle in history():
        begin = datetime.fromtimestamp(candle["timestamp"] / 1000, UTC)
        names = ("open", "high", "low", "close", "volume")
        open_, high, low, close, volume = (Decimal(str(candle[name])) for name in names)
        length = timedelta(minutes=1)
        bar = Bar(begin, pair, open_, high, low, close, volume, length)
        found.append(BarEvent(begin + length, bar))
    return found


async def main() -> None:
    persist.use_json(sys.argv[1]) if len(sys.argv) > 1 else setup()
    pair, dispatcher = Pair("BTC", "USDT"), backtesting_dispatcher()
    dispatcher.stop_on_handler_exceptions = True
    exchange = Exchange(dispatcher, {"USDT": Decimal(10_000)})
    exchange.add_bar_source(FifoQueueEventSource(events=[*events(pair)]))
    async with aclosing(ioc), open_run() as run:
        candles = await persist.candle("BTCUSDT", "1m", "binance")
        await candles.write_candles_data(history())
        print(f"{run.bars} bars are stored", flush=True)

        async def on_event(event: BarEvent) -> None:
            if not run.seen(event.when):
                async with run.bar(event.when) as bar:
                    await on_bar(bar)

        exchange.subscribe_to_bar_events(pair, on_event)
        await dispatcher.run()
        trades = await run.adapters.storage.read_storage_data()
        print(f"{run.bars} bars, {len(trades)} trades: {run.session}")


if __name__ == "__main__":
    asyncio.run(main())
