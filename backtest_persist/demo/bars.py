"""The sample's stocks as basana bars."""

# pyright: reportMissingTypeStubs=false

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, cast

from basana import Bar, BarEvent, Pair
from bokeh_sampledata import stocks

__all__ = ("CENT", "DAY", "Sample", "load", "millis")

CENT = Decimal("0.01")
DAY = timedelta(days=1)


@dataclass(frozen=True)
class Sample:
    """The daily bars of one stock, oldest first."""

    pair: Pair
    events: list[BarEvent]
    widened: int
    """Bars whose high or low lay inside the body in the source, and were widened to hold it."""

    @property
    def frame(self) -> str:
        """The period, by which a run is named."""
        return f"{self.events[0].bar.begin:%Y-%m-%d}/{self.events[-1].bar.begin:%Y-%m-%d}"


def load(symbol: str) -> Sample:
    """Return the bars of a stock, adjusted for splits and dividends, in cents of the last day.

    A bar opens at midnight UTC of its date; its event happens a day later, when it has closed.
    """
    columns = cast("dict[str, list[Any]]", getattr(stocks, symbol))
    pair = Pair(symbol, "USD")
    adjusted = [_decimal(value) for value in columns["adj_close"]]
    closes = [_decimal(value) for value in columns["close"]]
    today = closes[-1] / adjusted[-1]
    events: list[BarEvent] = []
    widened = 0
    for index, date in enumerate(columns["date"]):
        factor = adjusted[index] / closes[index] * today
        prices = (_decimal(columns[name][index]) for name in ("open", "high", "low", "close"))
        open_, high, low, close = ((price * factor).quantize(CENT) for price in prices)
        widened += high < max(open_, close) or low > min(open_, close)
        bar = Bar(
            datetime.fromisoformat(date).replace(tzinfo=UTC),
            pair,
            open=open_,
            high=max(open_, high, low, close),
            low=min(open_, high, low, close),
            close=close,
            volume=(_decimal(columns["volume"][index]) / factor).quantize(Decimal(1)),
            duration=DAY,
        )
        events.append(BarEvent(bar.begin + DAY, bar))
    return Sample(pair, events, widened)


def millis(instant: datetime) -> int:
    """Return an instant as ms since the epoch."""
    return int(instant.timestamp()) * 1000


def _decimal(value: float) -> Decimal:
    return Decimal(str(value))
