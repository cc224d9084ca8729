"""``backtest-persist demo``: the servers, the exchange and the strategy, put together and run."""

# pyright: reportMissingTypeStubs=false

import os
import sys
import time
from asyncio import gather
from contextlib import AsyncExitStack
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

from basana import BarEvent, FifoQueueEventSource, backtesting_dispatcher
from basana.backtesting.exchange import Exchange
from basana.backtesting.fees import Percentage
from basana.backtesting.liquidity import InfiniteLiquidity

from backtest_persist import CandleData, Mode, SettingsError, embedded, ioc, persist, setup
from backtest_persist.demo.bars import DAY, Sample, load, millis
from backtest_persist.demo.report import Backend, Result, count_domains, count_files, progress, show, show_json
from backtest_persist.demo.strategy import SLOW, SmaCross

__all__ = ("replay", "run")

FEE_PERCENT = Decimal("0.1")
LONGEST_BREAK = 60
"""Days without a bar that the search for the last `SLOW` candles allows for, weekends aside."""


async def run(
    *,
    mode: Mode,
    symbol: str,
    data_dir: Path | None,
    stop_after: int | None,
    limit: int | None,
    backend: Backend,
    servers: Literal["embedded", "env"],
    as_json: bool,
) -> int:
    """Run the demo and print its report; returns the exit status."""
    if data_dir is not None and (backend == "dummy" or (backend == "mongo" and servers == "env")):
        keeper = "--backend dummy keeps nothing" if backend == "dummy" else "--servers env keeps it where CC_* says"
        raise SettingsError(f"--data-dir says where the state is kept, but {keeper}; leave one of them out.")
    sample = load(symbol)
    directory = None
    async with AsyncExitStack() as stack:
        if backend == "mongo":
            setup(await stack.enter_async_context(embedded(data_dir)) if servers == "embedded" else None)
            await stack.enter_async_context(ioc)
        elif backend == "json":
            directory = data_dir or Path(stack.enter_context(TemporaryDirectory(prefix="backtest-persist-")))
            persist.use_json(directory)
        else:
            persist.use_dummy()

        strategy = SmaCross(persist, mode, sample.pair, sample.frame)
        resumed_from = (await strategy.restore()).bars
        _check(strategy, sample, data_dir)
        total = max(resumed_from, min(limit or len(sample.events), len(sample.events)))
        _say(_opening(strategy, total))
        started = time.perf_counter()
        if resumed_from < total:
            await replay(strategy, sample, total, stop_after)
        seconds = time.perf_counter() - started
        result = Result(
            symbol=symbol,
            mode=mode,
            frame=sample.frame,
            total_bars=total,
            resumed_from=resumed_from,
            widened=sample.widened,
            first_close=sample.events[0].bar.close,
            last_close=sample.events[total - 1].bar.close,
            backend=backend,
            temporary=data_dir is None and (backend == "json" or servers == "embedded"),
            data_dir=data_dir,
            session=strategy.session,
            trades=await strategy.trades(),
            domains=await count_domains(ioc) if backend == "mongo" else {},
            files=await count_files(directory) if directory else {},
            seconds=seconds,
        )
    (show_json if as_json else show)(result)
    return 0


async def replay(strategy: SmaCross, sample: Sample, total: int, stop_after: int | None = None) -> None:
    """Send the bars that the session does not hold yet through basana, up to `total` of the sample.

    After `stop_after` of them this process ends at once, without a word to anyone.
    """
    session = strategy.session
    dispatcher = backtesting_dispatcher()
    dispatcher.stop_on_handler_exceptions = True
    exchange = Exchange(
        dispatcher,
        {sample.pair.quote_symbol: session.cash, sample.pair.base_symbol: session.shares},
        liquidity_strategy_factory=InfiniteLiquidity,  # orders this small move no price, and are never filled in part
        fee_strategy=Percentage(FEE_PERCENT),
    )
    strategy.trade_on(exchange, await _last_candles(strategy))
    # The last committed bar comes again: it tells the exchange the price at which the working order was given.
    exchange.add_bar_source(FifoQueueEventSource(events=[*sample.events[max(session.bars - 1, 0) : total]]))
    failures: list[Exception] = []
    stop_at = total if stop_after is None else session.bars + stop_after

    with progress() as bar:
        task = bar.add_task(f"{strategy.symbol}, {strategy.mode}", total=total, completed=session.bars)

        async def on_bar(event: BarEvent) -> None:
            try:
                await strategy.on_bar(event)
            except Exception as error:  # basana would log it, and forget it
                failures.append(error)
                dispatcher.stop()
                return
            bar.update(task, completed=session.bars)
            if stop_after is not None and session.bars == stop_at:
                bar.stop()
                _say(f"Stopped hard after {stop_after:,} bars, {session.bars:,} of {total:,} in all.")
                os._exit(0)

        exchange.subscribe_to_bar_events(sample.pair, on_bar)
        await dispatcher.run(stop_signals=[])  # Ctrl-C is asyncio's
    if failures:
        raise failures[0]
    if session.bars < total:  # an error in the exchange, of which basana tells its logger alone
        raise RuntimeError(f"basana stopped after bar {session.bars:,} of {total:,}; the error is in its log.")


def _check(strategy: SmaCross, sample: Sample, data_dir: Path | None) -> None:
    """Refuse a session that other bars than these have led to."""
    bars, last = strategy.session.bars, strategy.session.last_bar
    if bars and (bars > len(sample.events) or millis(sample.events[bars - 1].bar.begin) != last):
        where = f"--data-dir {data_dir}" if data_dir else "this database"
        raise SettingsError(f"The session in {where} was made with another version of the sample; use another one.")


def _opening(strategy: SmaCross, total: int) -> str:
    bars, name = strategy.session.bars, f"{strategy.symbol}, {strategy.mode}"
    if bars >= total:
        return f"{name}: this run is complete, nothing is done twice."
    if bars:
        return f"{name}: resuming after bar {bars:,}; {total - bars:,} to go."
    return f"{name}: {total:,} daily bars through basana."


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


async def _last_candles(strategy: SmaCross) -> list[CandleData]:
    """The last `SLOW` candles of the session, asked for day by day: a day without trade is a gap, and no error."""
    last, day = strategy.session.last_bar, DAY // timedelta(milliseconds=1)
    if last < 0:
        return []
    days = range(SLOW * 7 // 5 + LONGEST_BREAK)
    windows = await gather(*(strategy.candles.read_candles_data(1, last - back * day) for back in reversed(days)))
    return [candle for window in windows for candle in window or ()][-SLOW:]
