"""Outliers: candles with a price in another unit than those around them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from operator import itemgetter

from backtest_persist.contracts import CandleData

__all__ = ("find_outliers",)

_HIGH, _LOW = itemgetter("high"), itemgetter("low")
_FACTOR = 1e5
_MAX_PAUSE = 30 * 86_400_000
"""The time in ms after which a price says nothing about the next one: coins have risen by such a factor in a year."""


def find_outliers(candles: Mapping[int, CandleData]) -> list[int]:
    """Return the times of the candles, given by time, with a price that can only be an error of unit or decimal point.

    Checked candles fall into levels: each is of the level of which the last close is nearest to it, if all of its
    prices are within a factor of 10^5 of that close, and begins another one otherwise. If more than half of them are of
    one level, the others are outliers. A series may therefore rise by any factor step by step, and a block of wrong
    candles is found unless it is half of all. Only positive prices are compared, and only those of candles between
    which there is no pause of more than 30 days.
    """
    ordered = [candles[at] for at in sorted(candles)]
    if not ordered or _are_near(ordered):
        return []
    return [at for stretch in _stretches(ordered) for at in _outliers_of(stretch)]


def _are_near(candles: Sequence[CandleData]) -> bool:
    """Whether all positive prices are within the factor of each other, so that none of them is an outlier."""
    highest, lowest = max(map(_HIGH, candles)), min(map(_LOW, candles))
    if lowest <= 0:
        lowest = min((price for candle in candles for price in _positive_prices(candle)), default=highest)
    return highest < lowest * _FACTOR


def _stretches(ordered: Sequence[CandleData]) -> Iterator[Sequence[CandleData]]:
    """Cut candles where nothing is known of a price for so long that it may have become any other."""
    start = 0
    for place in range(1, len(ordered)):
        if ordered[place]["timestamp"] - ordered[place - 1]["timestamp"] > _MAX_PAUSE:
            yield ordered[start:place]
            start = place
    yield ordered[start:]


@dataclass
class _Level:
    """Candles in one unit, as far as their prices tell."""

    close: float = 0
    """Their last close."""
    times: list[int] = field(default_factory=list[int])


def _outliers_of(candles: Sequence[CandleData]) -> list[int]:
    levels: list[_Level] = []
    times: list[int] = []
    for candle in candles:
        low, high, close = candle["low"], candle["high"], candle["close"]
        if low <= 0:
            prices = [*_positive_prices(candle)]
            if not prices:
                continue
            low, high = min(prices), max(prices)
        times.append(candle["timestamp"])
        if high >= low * _FACTOR:
            continue  # it is of no level
        near = [level for level in levels if high < level.close * _FACTOR and level.close < low * _FACTOR]
        if not near:
            levels.append(level := _Level())
        elif len(near) == 1:
            level = near[0]
        else:
            level = min(near, key=lambda one: max(low, one.close) / min(high, one.close))
        level.times.append(candle["timestamp"])
        level.close = close if close > 0 else high
    largest = max((level.times for level in levels), key=len, default=list[int]())
    if 2 * len(largest) <= len(times):
        return []
    right = set(largest)
    return [at for at in times if at not in right]


def _positive_prices(candle: CandleData) -> Iterator[float]:
    prices = (candle["open"], candle["high"], candle["low"], candle["close"])
    return (price for price in prices if price > 0)
