"""The bars of the sample, sent through basana's dispatcher and exchange to the strategy."""

# pyright: reportMissingTypeStubs=false

from decimal import Decimal
from typing import Protocol

from basana import BarEvent, FifoQueueEventSource, backtesting_dispatcher
from basana.backtesting.exchange import Exchange
from basana.backtesting.fees import Percentage
from basana.backtesting.liquidity import InfiniteLiquidity

from backtest_persist import Mode, Registry, Run
from backtest_persist.demo.bars import Sample
from backtest_persist.demo.strategy import STRATEGY, Session, Signal, SmaCross

__all__ = ("Observer", "account", "open_run", "replay")

FEE_PERCENT = Decimal("0.1")


class Observer(Protocol):
    """Is told how far a run is."""

    def started(self, bars: int, total: int) -> None:
        """Note how many bars a run has that begins or goes on here, and how many it will have at the end."""
        ...

    def ended(self, bars: int, equity: Decimal) -> None:
        """Note that a bar has ended: the number of bars and the equity that the run has now."""
        ...

    def traded(self, signal: Signal) -> None:
        """Note a position that was closed."""
        ...

    def killed(self, bars: int) -> None:
        """Note that the child was killed after it had ended so many bars."""
        ...


def account(mode: Mode) -> str:
    """Return the exchange of a run; paper and live are both `backtest=False`, so the mode is a part of it."""
    return f"basana-{mode}"


def open_run(persist: Registry, mode: Mode, sample: Sample) -> Run[Session]:
    """Return the run of the strategy on a sample."""
    return persist.run(
        strategy=STRATEGY,
        exchange=account(mode),
        symbol=sample.pair.base_symbol,
        frame=sample.frame,
        mode=mode,
        session=Session,
    )


async def replay(run: Run[Session], sample: Sample, total: int, observer: Observer | None = None) -> list[Signal]:
    """Send the bars that a run does not have yet through basana, up to `total` of the sample; returns the trades."""
    dispatcher = backtesting_dispatcher()
    dispatcher.stop_on_handler_exceptions = True
    exchange = Exchange(
        dispatcher,
        {sample.pair.quote_symbol: run.session.cash, sample.pair.base_symbol: run.session.shares},
        liquidity_strategy_factory=InfiniteLiquidity,  # orders this small move no price, and are never filled in part
        fee_strategy=Percentage(FEE_PERCENT),
    )
    strategy = SmaCross(run, sample.pair, exchange)
    # The last bar of the run is sent again: it tells the exchange the price at which the working order was submitted.
    exchange.add_bar_source(FifoQueueEventSource(events=[*sample.events[max(run.bars - 1, 0) : total]]))
    trades: list[Signal] = []
    failures: list[Exception] = []

    async def on_bar(event: BarEvent) -> None:
        if run.seen(event.when):
            await strategy.submit(run.session.order)
            return
        before = run.session.signal
        async with run.bar(event.when) as bar:
            await strategy.on_bar(bar, event.bar)
        if before is not None and before.status == "closed":
            trades.append(before)
            if observer is not None:
                observer.traded(before)
        if observer is not None:
            observer.ended(run.bars, run.session.equity)

    async def on_event(event: BarEvent) -> None:
        try:
            await on_bar(event)
        except Exception as error:  # basana would only log it
            failures.append(error)
            dispatcher.stop()

    exchange.subscribe_to_bar_events(sample.pair, on_event)
    await dispatcher.run(stop_signals=[])  # asyncio handles Ctrl-C
    if failures:
        raise failures[0]
    if run.bars < total:  # an error in the exchange, which basana only logs
        raise RuntimeError(f"basana stopped after bar {run.bars:,} of {total:,}; the error is in its log.")
    return trades
