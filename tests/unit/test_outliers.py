"""Outliers: a price in another unit is found, and what markets have really done is not."""

import random
from typing import Any

import pytest

from backtest_persist.core.candles.outliers import find_outliers

MINUTE = 60_000


def found(*candles: float | dict[str, float]) -> list[int]:
    """Return the positions of the outliers among candles, each given by its close or by its prices."""
    given: dict[int, Any] = {}
    for position, prices in enumerate(candles):
        flat = prices if isinstance(prices, dict) else {"close": prices}
        bounds = {"open": flat["close"], "high": max(flat.values()), "low": min(flat.values())}
        whole = {**bounds, "volume": 1.0, **flat}
        given[position * MINUTE] = {"timestamp": position * MINUTE, **whole}
    shuffled = list(given.items())
    random.Random(1).shuffle(shuffled)
    return [at // MINUTE for at in find_outliers(dict(shuffled))]


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


def test_what_markets_have_done_is_no_outlier() -> None:
    """A flash crash from 320 to 0.10, a rise by 10^6, and a fall by as much in days, are kept."""
    crash = {"open": 317.81, "high": 319.5, "low": 0.10, "close": 300.0}
    assert found(*[317.0] * 20, crash, *[300.0] * 20) == []
    assert found(317.0, crash, 300.0) == []
    assert found(*(0.06 * 1.005**n for n in range(2800))) == []
    luna = [80.0] * 60 + [77.0, 71.0, 64.0, 30.0, 17.0, 1.1, 0.005, 0.00005] + [0.0002] * 60
    assert found(*luna) == []
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
    assert found(18.0, 18.3, 18.27, oil, 10.01, 13.78, 16.5) == []
    assert found(*[-5.0] * 5, 0.00001, *[-5.0] * 5) == []
    assert found(*[0.0] * 5, 7.0, *[0.0] * 5) == []
    assert found(*[100.0] * 5, {"close": 100.0, "low": 0.0}, *[100.0] * 5) == []
    assert found(*[100.0] * 5, -1e9, *[100.0] * 5) == []
    assert found(18.0, 18.3, oil, 18.27, 18e6, 10.01, 13.78, 16.5) == [4]
    assert found(*[1e308] * 5, 1.0, *[1e308] * 5) == [5]
    assert found(*[5e-324] * 5, 1.0, *[5e-324] * 5) == [5]
