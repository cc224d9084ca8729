"""A moving-average crossover that keeps everything it knows in the domains of the registry.

It buys when the fast average of the closes crosses above the slow one: at the next open, or, when the price has run
away from its average, with a limit order that waits for a pullback. It sells at the stop, at the target, or when the
averages cross back. Orders go to basana's backtesting exchange in every mode.

It is called within a bar of a run, which is stored as a whole: in which order it writes does not matter.
"""

# pyright: reportMissingTypeStubs=false

from collections.abc import Sequence
from datetime import UTC, datetime
from decimal import ROUND_DOWN, Decimal
from typing import Literal

import basana
from basana import OrderOperation, Pair
from basana.backtesting.exchange import Exchange, OrderInfo
from pydantic import BaseModel, ConfigDict
from pydantic.alias_generators import to_camel

from backtest_persist import Bar, CandleData, PersistRiskInstance, Run
from backtest_persist.demo.bars import CENT, DAY, millis

__all__ = ("CASH", "STRATEGY", "Order", "Session", "Signal", "SmaCross", "closed_signals", "percent")

STRATEGY = "sma-cross"
CASH = Decimal(10_000)
INVESTED = Decimal("0.95")
"""Share of the cash that goes into a position; the rest is for the fee and a higher open."""

FAST, SLOW = 20, 50
STRETCHED = Decimal("1.03")
"""A close this far above the slow average does not buy at the next open, but waits for a pullback."""
PATIENCE = 10
"""Bars after which a waiting entry is given up."""
STOP, TARGET, BREAKEVEN = Decimal("0.92"), Decimal("1.60"), Decimal("1.10")
"""Multiples of the entry price: where to get out, and where the stop moves to the entry price."""
LEVELS = (10, 20, 30)
"""Profits, in percent, that are worth a notification."""


class Document(BaseModel):
    """A payload: snake_case here, camelCase in the database, like the fields around it."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True)


class Signal(Document):
    """A long position, from the idea to the end."""

    id: str
    symbol: str
    position: Literal["long"] = "long"
    status: Literal["scheduled", "ordered", "open", "closed", "cancelled"]
    note: str
    scheduled_at: datetime
    amount: Decimal
    price_open: Decimal
    price_take_profit: Decimal
    price_stop_loss: Decimal
    opened_at: datetime | None = None
    cost: Decimal | None = None
    closed_at: datetime | None = None
    price_close: Decimal | None = None
    profit: Decimal | None = None
    why_closed: str | None = None


class Order(Document):
    """The working order; there is never more than one."""

    purpose: Literal["entry", "stop", "exit"]
    amount: Decimal
    price: Decimal | None = None
    """The limit of an entry, the trigger of a stop; without it, the next open."""
    reason: str


class Session(Document):
    """The state from which a run is resumed, as of the close of its last bar."""

    cash: Decimal = CASH
    shares: Decimal = Decimal(0)
    signal: Signal | None = None
    order: Order | None = None
    waited: int = 0
    """Bars for which the entry has waited."""
    pullback: Decimal = CENT
    """The average daily range of the last week that had five bars."""
    equity: Decimal = CASH
    highest_equity: Decimal = CASH
    drawdown: Decimal = Decimal(0)
    """The largest fall of the equity below its highest value, in percent."""


class SmaCross:
    """The strategy on an exchange; its state is in the session and in the adapters of the bar."""

    def __init__(self, run: Run[Session], pair: Pair, exchange: Exchange) -> None:
        self.run = run
        self.pair = pair
        self.symbol = pair.base_symbol
        self.exchange = exchange
        self.order_id = ""
        self.days: list[CandleData] = []
        """The last candles. At each bar the gaps of weekends would be asked of the store again; so they are kept."""

    async def on_bar(self, bar: Bar[Session], prices: basana.Bar) -> None:
        """Do what there is to do at the close of a bar."""
        session = bar.session
        day = candle(prices)
        await bar.candle("1d").write_candles_data([day])
        self.days = [*self.days[-SLOW:], day] if self.days else await bar.candles("1d", SLOW + 1)
        crossed, slow = await self.averages(bar)
        self.measure_week(session, prices)
        await self.take_stock(session, prices)
        await self.settle(bar)
        if session.signal is None:
            if crossed == "up":
                await self.enter(bar, prices, slow)
        elif session.signal.status == "open":
            await self.manage(bar, session.signal, prices, crossed)
        elif crossed == "down":
            await self.cancel(bar, session.signal, "the averages crossed back before the price came")
        months = bar.interval(f"monthly-report:{self.run.id}")
        if await months.claim_interval_data({"equity": session.equity}, f"{prices.begin:%Y-%m}"):
            await notify(bar, "month", f"the account stands at {session.equity}")

    async def averages(self, bar: Bar[Session]) -> tuple[Literal["up", "down"] | None, Decimal]:
        """Return how the averages have crossed since the last bar, and the slow one; both are measured once a day."""
        if len(self.days) <= SLOW:
            return None, Decimal(0)
        closes = [Decimal(str(day["close"])) for day in self.days]
        measured = bar.measure(f"sma-{FAST}-{SLOW}:{self.symbol}")
        before = await measured.read_measure_data(date(self.run.last_when or 0)) or averages_of(closes[:-1])
        now = averages_of(closes)
        await measured.write_measure_data(now, date(bar.when))
        if before["fast"] <= before["slow"] and now["fast"] > now["slow"]:
            return "up", now["slow"]
        if before["fast"] >= before["slow"] and now["fast"] < now["slow"]:
            return "down", now["slow"]
        return None, now["slow"]

    def measure_week(self, session: Session, prices: basana.Bar) -> None:
        """On Fridays, measure the daily swing of the week; one with a holiday lacks a candle and is passed over."""
        if prices.begin.isoweekday() == 5:
            monday = millis(prices.begin - 4 * DAY)
            week = [day for day in self.days[-5:] if day["timestamp"] >= monday]
            if len(week) == 5:
                swings = sum((Decimal(str(day["high"])) - Decimal(str(day["low"])) for day in week), Decimal(0))
                session.pullback = max(CENT, (swings / 5).quantize(CENT))

    async def take_stock(self, session: Session, prices: basana.Bar) -> None:
        """Read the account after the trades of this bar."""
        balances = await self.exchange.get_balances()
        session.cash = balances[self.pair.quote_symbol].total.quantize(CENT)  # 0 and 0.00 are two values of BSON
        session.shares = balances[self.symbol].total.quantize(Decimal(1))
        session.equity = session.cash + session.shares * prices.close
        session.highest_equity = max(session.highest_equity, session.equity)
        fall = 100 * (1 - session.equity / session.highest_equity)
        session.drawdown = max(session.drawdown, fall.quantize(CENT))

    async def settle(self, bar: Bar[Session]) -> None:
        """Look up the result of the working order after this bar."""
        order, signal = bar.session.order, bar.session.signal
        if order is None or signal is None:
            return
        result = await self.exchange.get_order_info(self.order_id)
        if result.is_open:
            if order.purpose == "entry":
                bar.session.waited += 1
                if bar.session.waited == PATIENCE:
                    await self.cancel(bar, signal, f"the price did not come back within {PATIENCE} bars")
            return
        bar.session.order = None
        await bar.strategy.write_strategy_data(None)
        if result.fills and order.purpose == "entry":
            await self.opened(bar, signal, result)
        elif result.fills:
            await self.closed(bar, signal, result, order.reason)
        elif order.purpose == "entry":
            await self.cancel(bar, signal, "the exchange did not fill the order")

    # --- the life of a signal ---

    async def enter(self, bar: Bar[Session], prices: basana.Bar, slow: Decimal) -> None:
        """Turn a cross into a signal: for the next open, or one that waits for its price."""
        session = bar.session
        waits = prices.close > slow * STRETCHED
        price = prices.close - session.pullback if waits else prices.close
        amount = (session.cash * INVESTED / price).quantize(Decimal(1), ROUND_DOWN)
        if await self.risk(bar).read_position_data() or not amount:
            await decided(bar, "skipped", "a cross, but no room for a position")
            return
        signal = session.signal = Signal(
            id=bar.new_id(),
            symbol=self.symbol,
            status="scheduled" if waits else "ordered",
            note=f"the {FAST}-day average crossed above the {SLOW}-day average at {prices.close}",
            scheduled_at=moment(bar),
            amount=amount,
            price_open=price,
            price_take_profit=(price * TARGET).quantize(CENT),
            price_stop_loss=(price * STOP).quantize(CENT),
        )
        await bar.schedule.write_schedule_data(signal if waits else None)
        await bar.signal.write_signal_data(None if waits else signal)
        await decided(bar, "entry", f"{signal.note}; {f'waits for {price}' if waits else 'buys at the next open'}")
        await self.give(bar, Order(purpose="entry", amount=amount, price=price if waits else None, reason=signal.note))
        await publish(bar, signal, prices.close)

    async def opened(self, bar: Bar[Session], signal: Signal, result: OrderInfo) -> None:
        """Turn the signal into a position, after its entry was filled."""
        price = result.fills[0].price
        signal.status = "open"
        signal.opened_at = result.fills[0].when
        signal.price_open = price
        signal.price_take_profit = (price * TARGET).quantize(CENT)
        signal.price_stop_loss = (price * STOP).quantize(CENT)
        signal.cost = result.quote_amount_filled + result.fees.get(self.pair.quote_symbol, Decimal(0))
        await notify(bar, "opened", f"bought {signal.amount} {self.symbol} at {price}")
        await decided(bar, "opened", f"bought at {price}, stop {signal.price_stop_loss}")
        await bar.memory(signal.id, "notes").write_memory_data({"why": signal.note, "price": price}, "entry")
        await self.write_levels(bar, signal)
        await self.risk(bar).write_position_data([{"signalId": signal.id, "amount": signal.amount, "priceOpen": price}])
        await bar.partial.write_partial_data({"profitLevels": []}, signal.id)
        await bar.breakeven.write_breakeven_data({"reached": False}, signal.id)
        await bar.schedule.write_schedule_data(None)
        await bar.signal.write_signal_data(signal)

    async def manage(
        self, bar: Bar[Session], signal: Signal, prices: basana.Bar, crossed: Literal["up", "down"] | None
    ) -> None:
        """Look after an open position at the close of a bar."""
        price, profit = prices.close, percent(prices.close, signal.price_open)
        state = bar.state(signal.id, "position")
        known = await state.read_state_data() or {"best": price, "worst": price}
        best, worst = max(price, known["best"]), min(price, known["worst"])
        await state.write_state_data({"best": best, "worst": worst, "profitPercent": profit})
        await publish(bar, signal, price)
        if best == price:
            await bar.memory(signal.id, "notes").write_memory_data({"price": best, "at": moment(bar)}, "best-close")

        passed = (await bar.partial.read_partial_data(signal.id)).get("profitLevels", [])
        new = [level for level in LEVELS if level <= profit and level not in passed]
        for level in new:
            await notify(bar, f"profit-{level}", f"{self.symbol} is {profit} % up")
        if new:
            await bar.partial.write_partial_data({"profitLevels": [*passed, *new]}, signal.id)

        if signal.price_stop_loss < signal.price_open and price >= signal.price_open * BREAKEVEN:
            signal.price_stop_loss = signal.price_open
            await notify(bar, "breakeven", f"the stop of {self.symbol} moves to its entry price")
            await decided(bar, "breakeven", f"{profit} % up: the stop moves to {signal.price_open}")
            await self.write_levels(bar, signal)
            await bar.breakeven.write_breakeven_data({"reached": True, "price": signal.price_open}, signal.id)
            await bar.signal.write_signal_data(signal)

        if crossed == "down":
            await self.give(bar, Order(purpose="exit", amount=signal.amount, reason="crossed back"))
        elif price >= signal.price_take_profit:
            await self.give(bar, Order(purpose="exit", amount=signal.amount, reason="target"))
        else:
            stop = signal.price_stop_loss
            reason = "stop loss" if stop < signal.price_open else "breakeven stop"
            order = Order(purpose="stop", amount=signal.amount, price=stop, reason=reason)
            if order != bar.session.order:
                await self.give(bar, order)

    async def closed(self, bar: Bar[Session], signal: Signal, result: OrderInfo, reason: str) -> None:
        """Keep the trade, after the position was sold, and forget what only mattered while it was open."""
        price = result.fills[0].price
        proceeds = result.quote_amount_filled - result.fees.get(self.pair.quote_symbol, Decimal(0))
        signal.status = "closed"
        signal.closed_at = result.fills[0].when
        signal.price_close = price
        signal.profit = proceeds - (signal.cost or Decimal(0))
        signal.why_closed = reason
        await notify(bar, "closed", f"sold {signal.amount} {self.symbol} at {price}: {signal.profit:+}")
        await decided(bar, "closed", f"sold at {price} ({reason}): {signal.profit:+}")
        await bar.memory(signal.id, "notes").remove_memory_data("best-close")
        await self.risk(bar).write_position_data([])
        await self.end(bar, signal, price)

    async def cancel(self, bar: Bar[Session], signal: Signal, reason: str) -> None:
        """Give up an entry that was not filled."""
        if bar.session.order is not None:
            await self.exchange.cancel_order(self.order_id)
            bar.session.order = None
            await bar.strategy.write_strategy_data(None)
        signal.status = "cancelled"
        signal.closed_at = moment(bar)
        signal.why_closed = reason
        await notify(bar, "cancelled", f"no entry into {self.symbol}: {reason}")
        await decided(bar, "cancelled", reason)
        await bar.schedule.write_schedule_data(None)
        await self.end(bar, signal, signal.price_open)

    async def end(self, bar: Bar[Session], signal: Signal, price: Decimal) -> None:
        """Store a signal that has ended, and make room for another one."""
        await bar.storage.write_storage_data([signal])
        await publish(bar, signal, price)
        await bar.signal.write_signal_data(None)
        bar.session.signal = None

    def risk(self, bar: Bar[Session]) -> PersistRiskInstance:
        """Return the adapter of the open positions in the symbol."""
        return bar.risk(f"one-position-in-{self.symbol}")

    async def write_levels(self, bar: Bar[Session], signal: Signal) -> None:
        """Store where a position is sold."""
        levels = {"stop": signal.price_stop_loss, "target": signal.price_take_profit}
        await bar.dictionary(signal.id, "levels").write_dictionary_data(levels)

    # --- orders ---

    async def give(self, bar: Bar[Session], order: Order) -> None:
        """Put an order in the place of the working one."""
        if bar.session.order is not None:
            await self.exchange.cancel_order(self.order_id)
        bar.session.order, bar.session.waited = order, 0
        await bar.strategy.write_strategy_data(order)
        await self.submit(order)

    async def submit(self, order: Order | None) -> None:
        """Hand an order to the exchange, which tries to fill it from the next bar on."""
        if order is None:
            return
        side = OrderOperation.BUY if order.purpose == "entry" else OrderOperation.SELL
        if order.price is None:
            created = await self.exchange.create_market_order(side, self.pair, order.amount)
        elif order.purpose == "entry":
            created = await self.exchange.create_limit_order(side, self.pair, order.amount, order.price)
        else:
            created = await self.exchange.create_stop_order(side, self.pair, order.amount, order.price)
        self.order_id = created.id


# --- what others see ---


async def publish(bar: Bar[Session], signal: Signal, price: Decimal) -> None:
    """Store the public snapshot, which a dashboard shows."""
    await bar.recent.write_recent_data({**signal.model_dump(by_alias=True, exclude_none=True), "price": price})


async def notify(bar: Bar[Session], kind: str, text: str) -> None:
    """Tell the user."""
    entry = {"id": bar.new_id("notification"), "kind": kind, "text": text, "at": moment(bar)}
    await bar.notification.write_notification_data([entry])


async def decided(bar: Bar[Session], kind: str, text: str) -> None:
    """Note a decision and its reason."""
    await bar.log.write_log_data([{"id": bar.new_id("log"), "kind": kind, "text": text, "at": moment(bar)}])


async def closed_signals(run: Run[Session]) -> list[Signal]:
    """Return the closed positions of a run, oldest first."""
    signals = [Signal.model_validate(payload) for payload in await run.adapters.storage.read_storage_data()]
    own = [signal for signal in signals if signal.id.startswith(f"{run.id}:") and signal.status == "closed"]
    return sorted(own, key=lambda signal: signal.scheduled_at)


def moment(bar: Bar[Session]) -> datetime:
    """Return the instant of a bar."""
    return datetime.fromtimestamp(bar.when / 1000, UTC)


def date(when: int) -> str:
    """Return the date of an instant in ms UTC."""
    return f"{datetime.fromtimestamp(when / 1000, UTC):%Y-%m-%d}"


def averages_of(closes: Sequence[Decimal]) -> dict[str, Decimal]:
    """Return the fast and the slow average of the last closes."""
    lengths = {"fast": FAST, "slow": SLOW}
    return {
        name: (sum(closes[-length:], Decimal(0)) / length).quantize(Decimal("0.0001"))
        for name, length in lengths.items()
    }


def candle(bar: basana.Bar) -> CandleData:
    """Return the candle of a bar; its floats represent cents exactly enough to come back as they were."""
    return CandleData(
        timestamp=millis(bar.begin),
        open=float(bar.open),
        high=float(bar.high),
        low=float(bar.low),
        close=float(bar.close),
        volume=float(bar.volume),
    )


def percent(price: Decimal, base: Decimal) -> Decimal:
    """Return how far a price lies above another, in percent."""
    return (100 * (price / base - 1)).quantize(CENT)
