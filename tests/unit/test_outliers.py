"""Outliers: a price in another unit is found, and what markets have really done is not."""

import random
from typing import Any

import pytest

from backtest_persist.core.candles.outliers import find_outliers

MINUTE = 60_000


def found(*candles: float | dict[str, float], step: int = MINUTE) -> list[int]:
    """Return the positions of the outliers among candles, each given by its close or by its prices."""
    given: dict[int, Any] = {}
    for position, prices in enumerate(candles):
        flat = prices if isinstance(prices, dict) else {"close": prices}
        bounds = {"high": max(flat.values()), "low": min(flat.values())}
        whole = {"open": flat["close"], "volume": 1.0, **flat, **bounds}
        given[position * step] = {"timestamp": position * step, **whole}
    shuffled = list(given.items())
    random.Random(1).shuffle(shuffled)
    return [at // step for at in find_outliers(dict(shuffled))]


@pytest.mark.parametrize("factor", [1e6, 1e-6, 1e8, 1e-8, 1e5])
def test_candles_in_another_unit_are_found_wherever_they_are(factor: float) -> None:
    """A whole candle, one of its prices, or ten in a row, at the beginning, in the middle and at the end."""
    price = 42_000.0
    for count in (3, 4, 25, 2500):
        for wrong in {0, 1, count // 2, count - 1}:
            assert found(*(price * factor if n == wrong else price for n in range(count))) == [wrong]
    many = [*range(990, 1000)]
    assert found(*(price * factor if n in many else price for n in range(2500))) == many
    assert found(*[price] * 20, *[price * factor] * 5) == [*range(20, 25)]
    for name in ("open", "high", "low", "close"):
        one = {"close": price, name: price * factor}
        assert found(*[price] * 30, one, *[price] * 30) == [30]
        assert found(one, price, price) == [0]


@pytest.mark.parametrize("factor", [1e6, 1e-6, 1e8, 1e-8])
def test_a_block_in_another_unit_is_found_however_long_it_is(factor: float) -> None:
    """At the beginning, in the middle and at the end, while the right prices move, up to half of all."""
    for count, first, size in ((225, 100, 25), (40, 30, 10), (40, 0, 10), (200, 0, 99), (200, 50, 99), (200, 101, 99)):
        prices = [42_000.0 * 1.01**n for n in range(count)]
        block = [*range(first, first + size)]
        assert found(*(price * factor if n in block else price for n, price in enumerate(prices))) == block
    assert found(100.0, 1e7, 200.0, 70.0, 100.0) == [1]  # near both, and nearer to the right ones
    grown = [1e-3 * 1.005**n for n in range(4000)]
    assert found(*grown[:2000], grown[2000] * factor, *grown[2001:]) == [2000]
    assert found(*[1.0] * 60, *[1e-20] * 20, *[1e20] * 20) == [*range(60, 100)]


def test_prices_long_apart_are_not_compared() -> None:
    """A coin that has risen by 10^6 in years is kept however few of its candles are given."""
    day = 86_400_000
    assert found(*(0.06 * 10**n for n in range(12)), step=365 * day) == []
    assert found(*(0.06 * 10**n for n in range(12)), step=30 * day) == []
    assert found(0.06, 60_000.0, 60_000.0, 61_000.0, step=31 * day) == []
    assert found(0.06, 60_000.0, 60_000.0, 61_000.0, step=30 * day) == [0]
    quotes = {n * day: 0.06 if n < 100 else 60_000.0 for n in (*range(100), *range(131, 400))}
    candles: Any = {
        at: {"timestamp": at, "volume": 1.0, **dict.fromkeys(("open", "high", "low", "close"), price)}
        for at, price in quotes.items()
    }
    assert find_outliers(candles) == []
    candles[200 * day] |= {"high": 6e10}
    assert find_outliers(candles) == [200 * day]


def test_what_markets_have_done_is_no_outlier() -> None:
    """A flash crash from 320 to 0.10, a rise by 10^6, and a fall by as much in days, are kept."""
    crash = {"open": 317.81, "high": 319.5, "low": 0.10, "close": 300.0}
    assert found(*[317.0] * 20, crash, *[300.0] * 20) == []
    assert found(317.0, crash, 300.0) == []
    assert found(*(0.06 * 1.005**n for n in range(2800))) == []
    luna = [80.0] * 60 + [77.0, 71.0, 64.0, 30.0, 17.0, 1.1, 0.005, 0.00005] + [0.0002] * 60
    assert found(*luna) == found(*luna[:-55]) == found(*luna[50:]) == []
    assert found(*[42_000.0] * 20, {"close": 42_000.0, "low": 0.43}, *[42_000.0] * 20) == []


def test_nobody_can_tell_without_more_right_candles_than_wrong_ones() -> None:
    """Two candles, two halves, and a whole batch in another unit."""
    assert found() == found(1.0) == found(1.0, 1e6) == []
    assert found(1.0, 1.0, 1e6, 1e6) == []
    assert found(*[1.0] * 20, *[1e6] * 20) == []
    assert found(*[1e6] * 40) == []


def test_only_positive_prices_are_compared() -> None:
    """Zero and negative prices, as some futures have been, are neither outliers nor make others ones."""
    oil = {"open": 17.73, "high": 17.85, "low": -40.32, "close": -37.63}
    assert found(18.0, 18.3, 18.27, oil, 10.01, 13.78, 16.5) == found(oil, 10.01, 13.78, 16.5) == []
    assert found(*[-5.0] * 5, 0.00001, *[-5.0] * 5) == []
    assert found(*[0.0] * 5, 7.0, *[0.0] * 5) == []
    assert found(*[100.0] * 5, {"close": 100.0, "low": 0.0}, *[100.0] * 5) == []
    assert found(*[100.0] * 5, -1e9, *[100.0] * 5) == []
    assert found(18.0, 18.3, oil, 18.27, 18e6, 10.01, 13.78, 16.5) == [4]
    assert found(*[1e308] * 5, 1.0, *[1e308] * 5) == [5]
    assert found(*[5e-324] * 5, 1.0, *[5e-324] * 5) == [5]
