"""Session days: the UTC day in which a session closes, for the markets of the world and their DST changes."""

from datetime import UTC, date, datetime, time, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd
import pytest

from backtest_persist import InvalidKeyError, session_day

DAY, HOUR = 86_400_000, 3_600_000
YEAR = [date(2024, 1, 1) + timedelta(days=number) for number in range(366)]

SESSIONS = [
    # zone, opening and length of a session, and by how many days it opens before the day that it is named by
    ("Asia/Tokyo", time(9), timedelta(hours=6, minutes=30), 0),
    ("America/New_York", time(9, 30), timedelta(hours=6, minutes=30), 0),
    ("America/New_York", time(17), timedelta(hours=24), 1),  # foreign exchange
    ("America/Chicago", time(17), timedelta(hours=23), 1),  # futures
    ("Europe/London", time(8), timedelta(hours=8, minutes=30), 0),
    ("Australia/Sydney", time(10), timedelta(hours=6), 0),
    ("Pacific/Auckland", time(10), timedelta(hours=6, minutes=45), 0),
    ("Asia/Hong_Kong", time(0), timedelta(hours=24), 0),  # the 1d of OKX
    ("UTC", time(0), timedelta(hours=24), 0),
]


@pytest.mark.parametrize(("zone", "opening", "length", "before"), SESSIONS, ids=lambda value: str(value))
def test_the_sessions_of_a_year_are_stored_under_their_dates(
    zone: str, opening: time, length: timedelta, before: int
) -> None:
    """Each market has one session for each date, whatever its DST, and no day starts or ends before the close."""
    for named in YEAR:
        start = datetime.combine(named - timedelta(days=before), opening, ZoneInfo(zone))
        close = start.astimezone(UTC) + length
        found = session_day(start, length)
        assert datetime.fromtimestamp(found / 1000, UTC) == datetime.combine(named, time(), UTC)
        assert 0 <= found + DAY - close.timestamp() * 1000 < DAY
        assert session_day(int(start.timestamp() * 1000), length // timedelta(milliseconds=1)) == found


def test_a_session_that_closes_at_midnight_belongs_to_the_day_that_ends() -> None:
    """A millisecond, or a part of one, after midnight it belongs to the next day."""
    opening = datetime(2024, 3, 4, 12, tzinfo=UTC)
    monday = int(datetime(2024, 3, 4, tzinfo=UTC).timestamp() * 1000)
    assert session_day(opening, timedelta(hours=12)) == monday
    assert session_day(opening, 12 * HOUR) == monday
    assert session_day(opening, 12 * HOUR + 1) == monday + DAY
    assert session_day(opening, timedelta(hours=12, microseconds=1)) == monday + DAY
    assert session_day(opening, 3 * HOUR + HOUR // 2) == monday  # a half day
    of_pandas: Any = (pd.Timestamp("2024-03-04 07:00", tz="America/New_York"), pd.Timedelta("12h"))
    assert session_day(*of_pandas) == session_day(of_pandas[0], np.int64(12 * HOUR)) == monday  # pyright: ignore
    assert session_day(datetime(1969, 12, 31, 12, tzinfo=UTC), 12 * HOUR) == -DAY


def test_what_is_no_session_is_refused() -> None:
    """A naive time, another unit, and a length that is none, too short, too long or not of a time."""
    opening = datetime(2024, 3, 4, 12, tzinfo=UTC)
    bad: Any
    for bad in (datetime(2024, 3, 4, 9, 30), 1_709_553_600, "2024-03-04", None):
        with pytest.raises(InvalidKeyError, match="opening"):
            session_day(bad, timedelta(hours=6))
    for bad in (timedelta(), timedelta(hours=-6), 6.5, "6h30m", None, True, 6, timedelta(days=8), 10**30):
        with pytest.raises(InvalidKeyError, match="length must be a timedelta, or an int in ms"):
            session_day(opening, bad)


@pytest.mark.parametrize("seconds", [3600, 23_400, 86_400, 604_800])
def test_a_length_in_seconds_is_refused(seconds: int) -> None:
    """As ms it would be so short that the candle of a day could be seen before the session has closed."""
    opening = datetime(2024, 3, 4, 22, tzinfo=UTC)
    for length in (seconds, np.int64(seconds)):
        with pytest.raises(InvalidKeyError, match=f"{seconds} looks like seconds: multiply it by 1000"):
            session_day(opening, length)  # pyright: ignore[reportArgumentType]
    assert session_day(opening, seconds * 1000) == session_day(opening, timedelta(seconds=seconds))
    assert session_day(opening, 604_801) == session_day(opening, timedelta(minutes=1))
