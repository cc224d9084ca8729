"""Session days: the UTC day under which the daily candle of a session is stored."""

from datetime import timedelta

from backtest_persist.contracts import When
from backtest_persist.core.instants import checked_instant, checked_int64, to_int
from backtest_persist.errors import InvalidKeyError

__all__ = ("session_day",)

_DAY = 86_400_000
_MILLISECOND = timedelta(milliseconds=1)
_MIN_LENGTH, _MAX_LENGTH = 60_000, 7 * _DAY
_MAX_SECONDS = _MAX_LENGTH // 1000
"""The longest length in seconds; in ms it is ten minutes."""


def session_day(opening: When, length: timedelta | int) -> int:
    """Return the start, in ms UTC, of the UTC day in which a session closes that opens at `opening`.

    `opening` is when trading begins, not the midnight by which a source may name the day. `length` is a timedelta or an
    int in ms, such as ``timedelta(hours=6, minutes=30)`` for New York. On a half day the usual length is as good: a
    length that is too long shows a candle too late, never too soon. A session that closes at 00:00 UTC belongs to the
    day that ends then.

    A candle of ``1d`` is seen once its UTC day has ended. Under this day it is therefore never seen before its session
    has closed, and less than 24 hours after that. `InvalidKeyError` for what is no instant, for a length below a minute
    or above seven days, and for an int of at most 604,800, which would be a length in seconds.
    """
    start = checked_instant(opening, "opening")
    if isinstance(length, timedelta):
        duration = -(-length // _MILLISECOND)  # a part of a ms is counted as a whole one
    else:
        duration = to_int(length)
        if duration is not None and _MAX_SECONDS < duration * 1000 <= _MAX_LENGTH:
            raise InvalidKeyError(
                f"length must be a timedelta, or an int in ms; {duration} looks like seconds: multiply it by 1000."
            )
    if duration is None or not _MIN_LENGTH <= duration <= _MAX_LENGTH:
        raise InvalidKeyError(
            f"length must be a timedelta, or an int in ms, from a minute to seven days, not {length!r:.60}."
        )
    return checked_int64((start + duration - 1) // _DAY * _DAY, "the session day")
