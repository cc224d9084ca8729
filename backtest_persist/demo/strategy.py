"""A moving-average crossover that keeps everything it knows in the domains of the registry.

It buys when the fast average of the closes crosses above the slow one: at the next open, or, when the price has run
away from its average, with a limit order that waits for a pullback. It sells at the stop, at the target, or when the
averages cross back. Orders go to basana's backtesting exchange in every mode.

Two rules make a run that was killed at any instant end exactly like one that was not:

- The session is written last, once per bar. It holds all that a resumed run starts from: the account, the signal, the
  working order. A bar without it is simply done again.
- Every other write may therefore happen twice: its key and its content follow from the bar, and a mark that something
  is done is written after what it stands for.
"""

# pyright: reportMissingTypeStubs=false

from asyncio import gather
from collections import deque
from datetime import UTC, datetime
from decimal import ROUND_DOWN, Decimal
from typing import Literal

from basana import Bar, BarEvent, OrderOperation, Pair
from basana.backtesting.exchange import Exchange, OrderInfo
from pydantic import BaseModel, ConfigDict
from pydantic.alias_generators import to_camel

from backtest_persist import CandleData, Mode, Registry
from backtest_persist.demo.bars import CENT, DAY, millis

__all__ = ("CASH", "MARKET", "SLOW", "STRATEGY", "Order", "Session", "Signal", "SmaCross", "percent")

STRATEGY = "sma-cross"
MARKET = "basana"
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
    scheduled_bar: int
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

    bars: int = 0
    last_bar: int = -1
    cash: Decimal = CASH
    shares: Decimal = Decimal(0)
    signal: Signal | None = None
    order: Order | None = None
    pullback: Decimal = CENT
    """The average daily range of the last week that had five bars."""
    equity: Decimal = CASH
    highest_equity: Decimal = CASH
    drawdown: Decimal = Decimal(0)
    """The largest fall of the equity below its highest value, in percent."""


class SmaCross:
    """The strategy; it uses the store through `persist` alone."""

    def __init__(self, persist: Registry, mode: Mode, pair: Pair, frame: str) -> None:
        self.persist = persist
        self.mode = mode
        self.pair = pair
        self.symbol = pair.base_symbol
        self.frame = frame
        self.run = f"{self.symbol}:{mode}"
        self.account = f"{MARKET}-{mode}"  # paper and live are both `backtest=False`: the account keeps them apart
        self.session = Session()
        self.closes: deque[Decimal] = deque(maxlen=SLOW)
        self.exchange: Exchange
        self.order_id = ""

    # --- start, or start again ---

    async def restore(self) -> Session:
        """Open the adapters and read the session as its last bar has left it."""
        persist, symbol, account, backtest = self.persist, self.symbol, self.account, self.mode.backtest
        self.candles = await persist.candle(symbol, "1d", MARKET)
        self.signals = await persist.signal(symbol, STRATEGY, account)
        self.schedule = await persist.schedule(symbol, STRATEGY, account)
        self.risk = await persist.risk(f"one-position-in-{symbol}", account)
        self.deferred = await persist.strategy(symbol, STRATEGY, account)
        self.partial = await persist.partial(symbol, STRATEGY, account)
        self.breakeven = await persist.breakeven(symbol, STRATEGY, account)
        self.storage = await persist.storage(backtest)
        self.notifications = await persist.notification(backtest)
        self.log = await persist.log()
        self.averages = await persist.measure(f"sma-{FAST}-{SLOW}:{symbol}")
        self.months = await persist.interval(f"monthly-report:{self.run}")
        self.recent = await persist.recent(symbol, STRATEGY, account, self.frame, backtest)
        self.sessions = await persist.session(STRATEGY, account, self.frame, symbol, backtest)

        stored = await self.sessions.read_session_data()
        if stored is not None:
            self.session = Session.model_validate(stored)
        return self.session

    def trade_on(self, exchange: Exchange, history: list[CandleData]) -> None:
        """Use this exchange, and start the averages from the last candles of the session."""
        self.exchange = exchange
        self.closes.extend(Decimal(str(candle["close"])) for candle in history)

    # --- one bar ---

    async def on_bar(self, event: BarEvent) -> None:
        """Do what there is to do when a bar has closed, then commit it."""
        bar, when, session = event.bar, event.when, self.session
        if millis(bar.begin) == session.last_bar:  # a resumed run begins with the bar it has committed last,
            await self.submit(session.order)  # at whose close it had given this order
            return

        self.closes.append(bar.close)
        _, (crossed, slow) = await gather(
            self.candles.write_candles_data([candle(bar)]),
            self.measure_averages(bar, when),
        )
        await self.measure_week(bar, when)
        await self.take_stock(bar)
        await self.settle(when)
        if session.signal is None:
            if crossed == "up":
                await self.enter(bar, slow, when)
        elif session.signal.status == "open":
            await self.manage(session.signal, bar, crossed, when)
        elif crossed == "down":
            await self.cancel(session.signal, "the averages crossed back before the price came", when)

        await self.report_month(bar, when)
        session.bars += 1
        session.last_bar = millis(bar.begin)
        await self.sessions.write_session_data(session, when)  # the bar is done

    async def measure_week(self, bar: Bar, when: datetime) -> None:
        """On Fridays, measure the daily swing of the week; one with a holiday lacks a candle and is passed over."""
        if bar.begin.isoweekday() == 5:
            week = await self.candles.read_candles_data(5, millis(bar.begin - 4 * DAY), millis(when))
            if week is not None:
                swings = sum((Decimal(str(day["high"])) - Decimal(str(day["low"])) for day in week), Decimal(0))
                self.session.pullback = max(CENT, (swings / 5).quantize(CENT))

    async def measure_averages(self, bar: Bar, when: datetime) -> tuple[Literal["up", "down"] | None, Decimal]:
        """Return how the averages have crossed since the last bar, and the slow one; both are stored per day."""
        if len(self.closes) < SLOW:
            return None, Decimal(0)
        closes = list(self.closes)
        fast = (sum(closes[-FAST:], Decimal(0)) / FAST).quantize(Decimal("0.0001"))
        slow = (sum(closes, Decimal(0)) / SLOW).quantize(Decimal("0.0001"))
        last_bar = datetime.fromtimestamp(self.session.last_bar / 1000, UTC)
        before, _ = await gather(
            self.averages.read_measure_data(f"{last_bar:%Y-%m-%d}"),
            self.averages.write_measure_data({"fast": fast, "slow": slow}, f"{bar.begin:%Y-%m-%d}", when),
        )
        if before is not None and before["fast"] <= before["slow"] and fast > slow:
            return "up", slow
        if before is not None and before["fast"] >= before["slow"] and fast < slow:
            return "down", slow
        return None, slow

    async def take_stock(self, bar: Bar) -> None:
        """Read the account after the trades of this bar."""
        session = self.session
        balances = await self.exchange.get_balances()
        session.cash = balances[self.pair.quote_symbol].total.quantize(CENT)  # 0 and 0.00 are two values of BSON
        session.shares = balances[self.symbol].total.quantize(Decimal(1))
        session.equity = session.cash + session.shares * bar.close
        session.highest_equity = max(session.highest_equity, session.equity)
        fall = 100 * (1 - session.equity / session.highest_equity)
        session.drawdown = max(session.drawdown, fall.quantize(CENT))

    async def settle(self, when: datetime) -> None:
        """Look up the result of the working order after this bar."""
        order, signal = self.session.order, self.session.signal
        if order is None or signal is None:
            return
        result = await self.exchange.get_order_info(self.order_id)
        if result.is_open:
            if order.purpose == "entry" and self.session.bars - signal.scheduled_bar >= PATIENCE:
                await self.cancel(signal, f"the price did not come back within {PATIENCE} bars", when)
            return
        self.session.order = None
        await self.deferred.write_strategy_data(None)
        if result.fills and order.purpose == "entry":
            await self.opened(signal, result, when)
        elif result.fills:
            await self.closed(signal, result, order.reason, when)
        elif order.purpose == "entry":
            await self.cancel(signal, "the exchange did not fill the order", when)

    # --- the life of a signal ---

    async def enter(self, bar: Bar, slow: Decimal, when: datetime) -> None:
        """Turn a cross into a signal: for the next open, or one that waits for its price."""
        waits = bar.close > slow * STRETCHED
        price = bar.close - self.session.pullback if waits else bar.close
        amount = (self.session.cash * INVESTED / price).quantize(Decimal(1), ROUND_DOWN)
        if await self.risk.read_position_data(when) or not amount:
            await self.decided("skipped", "a cross, but no room for a position", when)
            return
        signal = Signal(
            id=f"{self.run}:{bar.begin:%Y-%m-%d}",
            symbol=self.symbol,
            status="scheduled" if waits else "ordered",
            note=f"the {FAST}-day average crossed above the {SLOW}-day average at {bar.close}",
            scheduled_at=when,
            scheduled_bar=self.session.bars,
            amount=amount,
            price_open=price,
            price_take_profit=(price * TARGET).quantize(CENT),
            price_stop_loss=(price * STOP).quantize(CENT),
        )
        await self.schedule.write_schedule_data(signal if waits else None)
        await self.signals.write_signal_data(None if waits else signal)
        await self.decided(
            "entry", f"{signal.note}; {f'waits for {price}' if waits else 'buys at the next open'}", when
        )
        self.session.signal = signal
        await self.give(Order(purpose="entry", amount=amount, price=price if waits else None, reason=signal.note))
        await self.publish(signal, bar.close, when)

    async def opened(self, signal: Signal, result: OrderInfo, when: datetime) -> None:
        """Turn the signal into a position, after its entry was filled."""
        price = result.fills[0].price
        signal.status = "open"
        signal.opened_at = result.fills[0].when
        signal.price_open = price
        signal.price_take_profit = (price * TARGET).quantize(CENT)
        signal.price_stop_loss = (price * STOP).quantize(CENT)
        signal.cost = result.quote_amount_filled + result.fees.get(self.pair.quote_symbol, Decimal(0))
        await self.notify("opened", f"bought {signal.amount} {self.symbol} at {price}", when)
        await self.decided("opened", f"bought at {price}, stop {signal.price_stop_loss}", when)
        memory = await self.persist.memory(signal.id, "notes")
        await memory.write_memory_data({"why": signal.note, "price": price}, "entry", when)
        levels = await self.persist.dictionary(signal.id, "levels")
        await levels.write_dictionary_data({"stop": signal.price_stop_loss, "target": signal.price_take_profit}, when)
        position = {"signalId": signal.id, "symbol": self.symbol, "amount": signal.amount, "priceOpen": price}
        await self.risk.write_position_data([position], when)
        await self.partial.write_partial_data({"profitLevels": []}, signal.id, when)
        await self.breakeven.write_breakeven_data({"reached": False}, signal.id, when)
        await self.schedule.write_schedule_data(None)
        await self.signals.write_signal_data(signal)

    async def manage(self, signal: Signal, bar: Bar, crossed: Literal["up", "down"] | None, when: datetime) -> None:
        """Look after an open position at the close of a bar."""
        price, profit = bar.close, percent(bar.close, signal.price_open)
        state = await self.persist.state(signal.id, "position")
        known, marks, moved = await gather(
            state.read_state_data(when=when),
            self.partial.read_partial_data(signal.id, when),
            self.breakeven.read_breakeven_data(signal.id, when),
        )
        known = known or {"best": price, "worst": price}
        best, worst = max(price, known["best"]), min(price, known["worst"])
        await gather(
            state.write_state_data({"best": best, "worst": worst, "profitPercent": profit}, when),
            self.publish(signal, price, when),
        )
        if best == price:
            memory = await self.persist.memory(signal.id, "notes")
            await memory.write_memory_data({"price": best, "at": when}, "best-close", when)

        passed, safe = marks.get("profitLevels", []), moved.get("reached", False)
        new = [level for level in LEVELS if level <= profit and level not in passed]
        for level in new:
            await self.notify(f"profit-{level}", f"{self.symbol} is {profit} % up", when)
        if new:
            await self.partial.write_partial_data({"profitLevels": [*passed, *new]}, signal.id, when)

        if not safe and price >= signal.price_open * BREAKEVEN:
            safe = True
            await self.notify("breakeven", f"the stop of {self.symbol} moves to its entry price", when)
            await self.decided("breakeven", f"{profit} % up: the stop moves to {signal.price_open}", when)
            levels = await self.persist.dictionary(signal.id, "levels")
            await levels.write_dictionary_data({"stop": signal.price_open, "target": signal.price_take_profit}, when)
            await self.breakeven.write_breakeven_data({"reached": True, "price": signal.price_open}, signal.id, when)

        if crossed == "down":
            await self.give(Order(purpose="exit", amount=signal.amount, reason="crossed back"))
        elif price >= signal.price_take_profit:
            await self.give(Order(purpose="exit", amount=signal.amount, reason="target"))
        else:
            stop = signal.price_open if safe else signal.price_stop_loss
            order = Order(
                purpose="stop", amount=signal.amount, price=stop, reason="breakeven stop" if safe else "stop loss"
            )
            if order != self.session.order:
                await self.give(order)

    async def closed(self, signal: Signal, result: OrderInfo, reason: str, when: datetime) -> None:
        """The position was sold: keep the trade, and forget what only mattered while it was open."""
        memory = await self.persist.memory(signal.id, "notes")
        state = await self.persist.state(signal.id, "position")
        price = result.fills[0].price
        proceeds = result.quote_amount_filled - result.fees.get(self.pair.quote_symbol, Decimal(0))
        signal.status = "closed"
        signal.closed_at = result.fills[0].when
        signal.price_close = price
        signal.profit = proceeds - (signal.cost or Decimal(0))
        signal.why_closed = reason
        await self.storage.write_storage_data([signal])
        await self.notify("closed", f"sold {signal.amount} {self.symbol} at {price}: {signal.profit:+}", when)
        await self.decided("closed", f"sold at {price} ({reason}): {signal.profit:+}", when)
        await self.publish(signal, price, when)
        await memory.remove_memory_data("best-close")
        await self.risk.write_position_data([], when)
        await self.signals.write_signal_data(None)
        self.session.signal = None
        await memory.dispose()
        await state.dispose()

    async def cancel(self, signal: Signal, reason: str, when: datetime) -> None:
        """Give up an entry that was not filled."""
        if self.session.order is not None:
            await self.exchange.cancel_order(self.order_id)
            self.session.order = None
            await self.deferred.write_strategy_data(None)
        signal.status = "cancelled"
        signal.closed_at = when
        signal.why_closed = reason
        await self.storage.write_storage_data([signal])
        await self.notify("cancelled", f"no entry into {self.symbol}: {reason}", when)
        await self.decided("cancelled", reason, when)
        await self.publish(signal, signal.price_open, when)
        await self.schedule.write_schedule_data(None)
        await self.signals.write_signal_data(None)
        self.session.signal = None

    # --- orders ---

    async def give(self, order: Order) -> None:
        """Put an order in the place of the working one."""
        if self.session.order is not None:
            await self.exchange.cancel_order(self.order_id)
        self.session.order = order
        await self.deferred.write_strategy_data(order)
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

    async def publish(self, signal: Signal, price: Decimal, when: datetime) -> None:
        """Store the public snapshot, which a dashboard shows."""
        snapshot = {**signal.model_dump(by_alias=True, exclude_none=True), "price": price}
        await self.recent.write_recent_data(snapshot, when)

    async def notify(self, kind: str, text: str, when: datetime) -> None:
        """Tell the user."""
        entry = {"id": f"{self.run}:{when:%Y-%m-%d}:{kind}", "kind": kind, "text": text, "at": when}
        await self.notifications.write_notification_data([entry])

    async def decided(self, kind: str, text: str, when: datetime) -> None:
        """Note a decision and its reason."""
        await self.log.write_log_data(
            [{"id": f"{self.run}:{when:%Y-%m-%d}:{kind}", "kind": kind, "text": text, "at": when}]
        )

    async def report_month(self, bar: Bar, when: datetime) -> None:
        """Once per month, at its first bar: a report of the account."""
        month = f"{bar.begin:%Y-%m}"
        if await self.months.read_interval_data(month, when=when) is None:
            await self.notify("month", f"the account stands at {self.session.equity}", when)
            await self.months.write_interval_data({"equity": self.session.equity}, month, when)

    async def trades(self) -> list[Signal]:
        """Return the closed positions of this run, oldest first."""
        payloads = [p for p in await self.storage.read_storage_data() if p["id"].startswith(f"{self.run}:")]
        signals = sorted((Signal.model_validate(payload) for payload in payloads), key=lambda signal: signal.id)
        return [signal for signal in signals if signal.status == "closed"]


def candle(bar: Bar) -> CandleData:
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
