"""Simulation time."""

import time
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import numpy as np
import pandas as pd
import pytest
from bson.int64 import Int64

from backtest_persist import InvalidKeyError, InvalidWhenError
from backtest_persist.core.keys import STORED, checked_timestamp
from backtest_persist.core.row import to_horizon, to_millis, wire_when
from backtest_persist.domains.candle import CandleContext


@pytest.mark.parametrize(
    ("when", "millis"),
    [
        (0, 0),
        (1_700_000_000_000, 1_700_000_000_000),
        (np.int64(-5), -5),
        (pd.Timestamp("2024-01-01T00:00:00.001999999", tz="UTC"), 1_704_067_200_001),
        (datetime(1970, 1, 1, tzinfo=UTC), 0),
        (datetime(1970, 1, 1, 1, tzinfo=timezone(timedelta(hours=1))), 0),
        (datetime(2024, 1, 1, microsecond=1999, tzinfo=UTC), 1_704_067_200_001),
        (datetime(1969, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC), -1),
        (datetime(9999, 12, 31, 23, 59, 59, 999_000, tzinfo=UTC), 253_402_300_799_999),
    ],
)
def test_an_instant_becomes_whole_ms(when: Any, millis: int) -> None:
    """Aware datetimes and ints are taken exactly; a finer part is cut off, never rounded into the future."""
    assert to_millis(when) == millis
    assert type(to_millis(when)) is int
    assert type(wire_when(when)) is Int64


NO_INSTANTS: list[Any] = [None, True, 1.0, float("nan"), "2024", datetime(2024, 1, 1), 2**63, -(2**63) - 1]
FOREIGN: list[Any] = [pd.NaT, np.array([1, 2]), np.bool_(True), np.datetime64(1, "ms")]


@pytest.mark.parametrize("bad", NO_INSTANTS + FOREIGN, ids=repr)
def test_anything_else_is_refused(bad: Any) -> None:
    """Naive datetimes, floats, bool, None and what does not fit 64 bits are an InvalidWhenError."""
    with pytest.raises(InvalidWhenError):
        to_millis(bad)


def test_without_when_there_is_no_horizon() -> None:
    """A reader without a time sees everything."""
    assert to_horizon(None) == 2**63 - 1
    assert to_horizon(-5) == -5


OTHER_UNITS = {
    1_735_689_600: "seconds: multiply it by 1000",
    1: "seconds: multiply it by 1000",
    10**11 - 1: "seconds: multiply it by 1000",
    10**14: "microseconds: divide it by 1000",
    -(10**14): "microseconds: divide it by 1000",
    1_735_689_600_000_000: "microseconds: divide it by 1000",
    10**17: "nanoseconds: divide it by 1000000",
    time.time_ns(): "nanoseconds: divide it by 1000000",
}


@pytest.mark.parametrize("instant", OTHER_UNITS, ids=OTHER_UNITS.values())
def test_an_int_of_another_unit_is_refused(instant: int) -> None:
    """The message names what was given, its unit and the factor; numpy's ints and whole floats are no exception."""
    problem = f"must be in ms since the epoch; {instant} looks like {OTHER_UNITS[instant]}"
    whens: list[Any] = [instant, np.int64(instant), Int64(instant)]
    for when in whens:
        with pytest.raises(InvalidWhenError, match=f"when {problem}"):
            to_millis(when)
    for value in (instant, float(instant)):
        with pytest.raises(InvalidKeyError, match="since must be in ms since the epoch"):
            checked_timestamp(value, "since")
    with pytest.raises(InvalidKeyError, match=f"timestamp {problem}"):
        CandleContext(exchange_name="e", symbol="s", interval="1m", timestamp=instant)


def test_an_early_int_is_an_instant_if_it_is_admitted() -> None:
    """Microseconds are refused all the same; datetimes of these years need no permission."""
    for early in (1, 86_400_000, 10**11 - 1):
        assert to_millis(early, lambda: True) == early
        assert to_millis(datetime.fromtimestamp(early / 1000, UTC)) == early
        context = {"exchange_name": "e", "symbol": "s", "interval": "1m", "timestamp": early}
        assert CandleContext.model_validate(context, context=lambda: True).timestamp == early
        assert CandleContext.model_validate(context, context=STORED).timestamp == early
    with pytest.raises(InvalidWhenError, match="microseconds"):
        to_millis(10**14, lambda: True)
    for edge in (0, -1, -(10**14) + 1, 10**11, 10**14 - 1):
        assert to_millis(edge) == edge
