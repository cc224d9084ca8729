"""The demo: private servers, a backtesting exchange and a strategy with all its state in the registry.

Needs the extra ``demo``. It prints nothing: an `Observer` is told of the progress, and the command line shows the
`Result`.
"""

# pyright: reportMissingTypeStubs=false

import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal, Protocol

from basana import BarEvent, FifoQueueEventSource, backtesting_dispatcher
from basana.backtesting.exchange import Exchange
from basana.backtesting.fees import Percentage
from basana.backtesting.liquidity import InfiniteLiquidity

from backtest_persist import Mode, SettingsError, embedded, ioc, persist, setup
from backtest_persist.demo.bars import DAY, Sample, load, millis
from backtest_persist.demo.report import Backend, Result, count_domains, count_files
from backtest_persist.demo.strategy import SLOW, SmaCross

__all__ = ("Observer", "replay", "run")

FEE_PERCENT = Decimal("0.1")


class Observer(Protocol):
    """Is told how far a run is."""

    def started(self, strategy: SmaCross, total: int) -> None:
        """Note that the session is restored; `total` is the number of bars that it will have at the end."""
        ...

    def committed(self, bars: int) -> None:
        """Note the number of bars that the session has after a bar."""
        ...


async def run(
    *,
    mode: Mode,
    symbol: str,
    data_dir: Path | None,
    limit: int | None,
    backend: Backend,
    servers: Literal["embedded", "env"],
    observer: Observer,
) -> Result:
    """Run the demo, or resume it where the session in `data_dir` ends; `limit` is a number of bars.

    `SettingsError` for options that exclude each other, and for a session of another version of the sample.
    """
    if data_dir is not None and (backend == "dummy" or (backend == "mongo" and servers == "env")):
        place = "--backend dummy keeps nothing" if backend == "dummy" else "--servers env keeps it where CC_* says"
        raise SettingsError(f"--data-dir says where the state is kept, but {place}; leave one of them out.")
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
        observer.started(strategy, total)
        started = time.perf_counter()
        if resumed_from < total:
            await replay(strategy, sample, total, observer.committed)
        seconds = time.perf_counter() - started
        return Result(
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
            domains=await count_domains(ioc) if backend == "mongo" else [],
            files=await count_files(ioc, directory) if directory else [],
            seconds=seconds,
        )


async def replay(
    strategy: SmaCross, sample: Sample, total: int, committed: Callable[[int], None] | None = None
) -> None:
    """Send the bars that the session does not have yet through basana, up to `total` of the sample.

    After each of them `committed` is called with the number of bars that the session has.
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
    closed = session.last_bar + DAY // timedelta(milliseconds=1)
    strategy.trade_on(exchange, await strategy.candles.read_last_candles(SLOW, closed) if session.bars else [])
    # The last committed bar is sent again: it tells the exchange the price at which the working order was submitted.
    exchange.add_bar_source(FifoQueueEventSource(events=[*sample.events[max(session.bars - 1, 0) : total]]))
    failures: list[Exception] = []

    async def on_bar(event: BarEvent) -> None:
        try:
            await strategy.on_bar(event)
        except Exception as error:  # basana would only log it
            failures.append(error)
            dispatcher.stop()
            return
        if committed is not None:
            committed(session.bars)

    exchange.subscribe_to_bar_events(sample.pair, on_bar)
    await dispatcher.run(stop_signals=[])  # asyncio handles Ctrl-C
    if failures:
        raise failures[0]
    if session.bars < total:  # an error in the exchange, which basana only logs
        raise RuntimeError(f"basana stopped after bar {session.bars:,} of {total:,}; the error is in its log.")


def _check(strategy: SmaCross, sample: Sample, data_dir: Path | None) -> None:
    """Refuse a session that was made from other bars than these."""
    bars, last = strategy.session.bars, strategy.session.last_bar
    if bars and (bars > len(sample.events) or millis(sample.events[bars - 1].bar.begin) != last):
        where = f"--data-dir {data_dir}" if data_dir else "this database"
        raise SettingsError(f"The session in {where} was made with another version of the sample; use another one.")
