"""Simulation time."""

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import numpy as np
import pandas as pd
import pytest
from bson.int64 import Int64

from backtest_persist import InvalidWhenError
from backtest_persist.core.row import to_horizon, to_millis, wire_when


@pytest.mark.parametrize(
    ("when", "millis"),
    [
        (0, 0),
        (1_700_000_000_000, 1_700_000_000_000),
        (np.int64(5), 5),
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
    assert to_horizon(5) == 5
