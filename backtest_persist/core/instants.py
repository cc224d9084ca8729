"""Instants: the check that every `timestamp`, `since`, `until` and `when` passes, of every call and backend."""

import operator
from collections.abc import Callable
from datetime import UTC, date, datetime, time, timedelta
from typing import Any

from backtest_persist.errors import BacktestPersistError, InvalidKeyError

__all__ = (
    "INT64_MAX",
    "INT64_MIN",
    "MAX_SECONDS",
    "MIN_MICROSECONDS",
    "MIN_NANOSECONDS",
    "EarlyTimes",
    "admitted",
    "checked_bound",
    "checked_instant",
    "checked_int64",
    "refused",
    "to_int",
)

INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1
EarlyTimes = Callable[[], bool]
"""Tells whether an int may be an instant of 1970 to 1973; it is asked only about one that would be.

As the validation context of a `Context` it is asked about the instants in it.
"""

_EPOCH = datetime.fromtimestamp(0, UTC)
_MILLISECOND = timedelta(milliseconds=1)
MAX_SECONDS = 10**11
"""In ms this is March 1973, in s the year 5138."""
MIN_MICROSECONDS, MIN_NANOSECONDS = 10**14, 10**17
"""March 1973 in these units; in ms the first is the year 5138."""


def refused() -> bool:
    """Admit no int as an instant of 1970 to 1973, as `EarlyTimes` of a caller that knows no settings."""
    return False


def admitted() -> bool:
    """Admit any, as `EarlyTimes` for instants that are in ms for certain, such as those that are stored."""
    return True


def checked_instant(
    value: Any, what: str, early: EarlyTimes = refused, error: type[BacktestPersistError] = InvalidKeyError
) -> int:
    """Return an instant as whole ms since the epoch (UTC); a finer part of a datetime is cut off, never rounded up.

    It is a timezone-aware datetime, or an int that can be ms: one that looks like seconds, microseconds or nanoseconds
    is refused, because the reader who gives ms would never see it, or see it too soon. `error` is raised for these, and
    for a naive datetime, bool, float, None and what does not fit 64 bits; `what` opens its message.
    """
    if type(value) is int:
        millis: int | None = value
    elif isinstance(value, datetime) and value == value:  # pandas.NaT is a datetime, too
        if value.utcoffset() is None:
            raise error(f"{what} is a naive datetime; give it a time zone, such as datetime.UTC.")
        return (value - _EPOCH) // _MILLISECOND
    else:
        millis = to_int(value)
    if millis is None:
        given = type(value).__name__
        raise error(f"{what} must be a timezone-aware datetime or an int in ms since the epoch, not {given}.")
    if not INT64_MIN <= millis <= INT64_MAX:
        raise error(f"{what} does not fit 64 bits.")
    if abs(millis) >= MIN_MICROSECONDS:
        unit, factor = ("nanoseconds", 1_000_000) if abs(millis) >= MIN_NANOSECONDS else ("microseconds", 1000)
        raise error(f"{what} must be in ms since the epoch; {millis} looks like {unit}: divide it by {factor}.")
    if 0 < millis < MAX_SECONDS and not early():
        raise error(
            f"{what} must be in ms since the epoch; {millis} looks like seconds: multiply it by 1000. For an instant "
            "of 1970 to 1973 give a datetime, or set CC_ALLOW_EARLY_TIMES=true."
        )
    return millis


def checked_bound(value: Any, what: str, early: EarlyTimes = refused) -> int:
    """Return an end of a range as ms since the epoch (UTC); `InvalidKeyError` for what is none.

    It is an instant, see `checked_instant`, a date, which is the beginning of its UTC day, or either in ISO format.
    """
    given = value
    if isinstance(value, str):
        value = _from_iso(value, what)
    if isinstance(value, date) and not isinstance(value, datetime):
        value = datetime.combine(value, time(), UTC)
    if isinstance(given, str) and value.utcoffset() is None:
        raise InvalidKeyError(
            f"{what} {given!r:.40} is a time without an offset; write {value.isoformat()}Z for UTC, or end it with the "
            "offset, such as +01:00."
        )
    if not isinstance(value, datetime) and to_int(value) is None:
        raise InvalidKeyError(
            f"{what} must be a timezone-aware datetime, an int in ms since the epoch, a date, or either in ISO format, "
            f"such as '2024-01-31', not {type(value).__name__}."
        )
    return checked_instant(value, what, early)


def _from_iso(text: str, what: str) -> date | datetime:
    for parse in (date.fromisoformat, datetime.fromisoformat):
        try:
            return parse(text.strip())
        except ValueError:
            continue
    raise InvalidKeyError(
        f"{what} {text!r:.40} is neither a date, such as '2024-01-31', nor a date and time with an offset, such as "
        "'2024-01-31T09:30Z'."
    )


def checked_int64(value: int, what: str) -> int:
    """Return an int that was computed from checked ones; `InvalidKeyError` for one that does not fit 64 bits."""
    if not INT64_MIN <= value <= INT64_MAX:
        raise InvalidKeyError(f"{what} does not fit 64 bits.")
    return value


def to_int(value: Any) -> int | None:
    """Return the int that a value is, numpy's included; None for anything else, such as a bool, a float or an array."""
    try:
        return None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        return None
