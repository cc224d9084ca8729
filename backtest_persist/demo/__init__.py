"""The demo: private servers, a backtesting exchange and a strategy with all its state in the registry.

Needs the extra ``demo``. It prints nothing: an `Observer` is told of the progress, and the command line shows the
`Result`.
"""

# pyright: reportMissingTypeStubs=false

import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from decimal import Decimal
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal, Protocol

from basana import BarEvent, FifoQueueEventSource, backtesting_dispatcher
from basana.backtesting.exchange import Exchange
from basana.backtesting.fees import Percentage
from basana.backtesting.liquidity import InfiniteLiquidity

from backtest_persist import Mode, Run, SettingsError, embedded, ioc, persist, setup
from backtest_persist.demo.bars import Sample, load, millis
from backtest_persist.demo.report import Backend, Result, count_domains, count_files
from backtest_persist.demo.strategy import MARKET, STRATEGY, Session, SmaCross
from backtest_persist.demo.strategy import trades as closed_trades

__all__ = ("Observer", "replay", "run")

FEE_PERCENT = Decimal("0.1")


class Observer(Protocol):
    """Is told how far a run is."""

    def started(self, run: Run[Session], total: int) -> None:
        """Note that a run begins or goes on; `total` is the number of bars that it will have at the end."""
        ...

    def ended(self) -> None:
        """Note that a bar has ended."""
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

        account = f"{MARKET}-{mode}"  # paper and live are both `backtest=False`: the account keeps them apart
        async with persist.run(
            strategy=STRATEGY, exchange=account, symbol=symbol, frame=sample.frame, mode=mode, session=Session
        ) as run:
            _check(run, sample, data_dir)
            resumed_from = run.bars
            total = max(resumed_from, min(limit or len(sample.events), len(sample.events)))
            observer.started(run, total)
            started = time.perf_counter()
            if resumed_from < total:
                await replay(run, sample, total, observer.ended)
                await run.flush()
            seconds = time.perf_counter() - started
            trades = await closed_trades(run)
        return Result(
            symbol=symbol,
            mode=mode,
            frame=sample.frame,
            bars=run.bars,
            total_bars=total,
            resumed_from=resumed_from,
            widened=sample.widened,
            first_close=sample.events[0].bar.close,
            last_close=sample.events[total - 1].bar.close,
            backend=backend,
            temporary=data_dir is None and (backend == "json" or servers == "embedded"),
            data_dir=data_dir,
            session=run.session,
            trades=trades,
            domains=await count_domains(ioc) if backend == "mongo" else [],
            files=await count_files(ioc, directory) if directory else [],
            seconds=seconds,
        )


async def replay(run: Run[Session], sample: Sample, total: int, ended: Callable[[], None] | None = None) -> None:
    """Send the bars that a run does not have yet through basana, up to `total` of the sample.

    After each of them `ended` is called.
    """
    session = run.session
    dispatcher = backtesting_dispatcher()
    dispatcher.stop_on_handler_exceptions = True
    exchange = Exchange(
        dispatcher,
        {sample.pair.quote_symbol: session.cash, sample.pair.base_symbol: session.shares},
        liquidity_strategy_factory=InfiniteLiquidity,  # orders this small move no price, and are never filled in part
        fee_strategy=Percentage(FEE_PERCENT),
    )
    strategy = SmaCross(run, sample.pair, exchange)
    # The last bar of the run is sent again: it tells the exchange the price at which the working order was submitted.
    exchange.add_bar_source(FifoQueueEventSource(events=[*sample.events[max(run.bars - 1, 0) : total]]))
    failures: list[Exception] = []

    async def on_bar(event: BarEvent) -> None:
        try:
            if not run.seen(event.when):
                async with run.bar(event.when) as bar:
                    await strategy.on_bar(bar, event.bar)
            elif run.session.order is not None:
                await strategy.submit(run.session.order)
        except Exception as error:  # basana would only log it
            failures.append(error)
            dispatcher.stop()
            return
        if ended is not None:
            ended()

    exchange.subscribe_to_bar_events(sample.pair, on_bar)
    await dispatcher.run(stop_signals=[])  # asyncio handles Ctrl-C
    if failures:
        raise failures[0]
    if run.bars < total:  # an error in the exchange, which basana only logs
        raise RuntimeError(f"basana stopped after bar {run.bars:,} of {total:,}; the error is in its log.")


def _check(run: Run[Session], sample: Sample, data_dir: Path | None) -> None:
    """Refuse a session that was made from other bars than these."""
    if run.bars and (run.bars > len(sample.events) or millis(sample.events[run.bars - 1].when) != run.last_when):
        where = f"--data-dir {data_dir}" if data_dir else "this database"
        raise SettingsError(f"The session in {where} was made with another version of the sample; use another one.")
