"""Outliers: candles with a price in another unit than those around them."""

from collections.abc import Iterator, Mapping, Sequence
from operator import itemgetter

from backtest_persist.contracts import CandleData

__all__ = ("find_outliers",)

_HIGH, _LOW = itemgetter("high"), itemgetter("low")
_FACTOR = 1e5
_AROUND = 10
"""The candles before, and those after, that a candle is compared with."""
_ENOUGH = 3
_BLOCK = 200
"""Candles that are looked at together, because nearly always none of them needs to be looked at alone."""


def find_outliers(candles: Mapping[int, CandleData]) -> list[int]:
    """Return the times of the candles, given by time, with a price that can only be an error of unit or decimal point.

    One of the prices is at least 10^5 times, or at most 10^-5 of, the median close of the candles around it: those that
    were given of the ten before it, the ten after it, and itself. That is far beyond a crash of one minute, and no
    coin that has risen by 10^6 in years is concerned. Only positive prices are compared. Of two candles nobody can tell
    which is wrong, nor of two halves, nor of many candles that are all wrong: that takes more right ones than wrong
    ones around.
    """
    ordered = [candles[at] for at in sorted(candles)]
    outliers: list[int] = []
    for start in range(0, len(ordered), _BLOCK):
        end = min(start + _BLOCK, len(ordered))
        if not _are_near(ordered[max(0, start - _AROUND) : end + _AROUND]):
            outliers += (ordered[place]["timestamp"] for place in range(start, end) if _is_outlier(ordered, place))
    return outliers


def _are_near(candles: Sequence[CandleData]) -> bool:
    """Whether all positive prices are within the factor of each other, so that none of them is an outlier."""
    highest, lowest = max(map(_HIGH, candles)), min(map(_LOW, candles))
    if lowest <= 0:
        lowest = min((price for candle in candles for price in _positive_prices(candle)), default=highest)
    return highest < lowest * _FACTOR


def _is_outlier(ordered: Sequence[CandleData], place: int) -> bool:
    around = ordered[max(0, place - _AROUND) : place + _AROUND + 1]
    closes = sorted(candle["close"] for candle in around if candle["close"] > 0)
    if len(closes) < _ENOUGH:
        return False
    lower, upper = closes[(len(closes) - 1) // 2], closes[len(closes) // 2]  # far apart if there are two halves
    return any(price >= upper * _FACTOR or price * _FACTOR <= lower for price in _positive_prices(ordered[place]))


def _positive_prices(candle: CandleData) -> Iterator[float]:
    prices = (candle["open"], candle["high"], candle["low"], candle["close"])
    return (price for price in prices if price > 0)
