"""Times as arguments of the commands on candles."""

import re
from datetime import UTC, datetime, timedelta

from backtest_persist.core.row import utc_now
from backtest_persist.errors import InvalidKeyError

__all__ = ("format_time", "parse_time")

_AGO = re.compile(r"(\d{1,5})([mhdw])")
_UNITS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_MS = re.compile(r"-?\d{9,}")


def parse_time(option: str, text: str) -> datetime | int:
    """Return the instant that an option names: ISO 8601, in UTC without a zone, ms, or a time ago such as ``30d``."""
    if ago := _AGO.fullmatch(text):
        return utc_now() - timedelta(**{_UNITS[ago[2]]: int(ago[1])})
    try:
        if _MS.fullmatch(text):
            return int(text)
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise InvalidKeyError(
            f"{option} must be a time such as 2024-05-01, 2024-05-01T12:00Z or 30d (ago), or ms since 1970, not "
            f"{text!r:.40}."
        ) from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def format_time(timestamp: int) -> str:
    """Return an instant in ms as text, in UTC."""
    return f"{datetime.fromtimestamp(timestamp / 1000, UTC):%Y-%m-%d %H:%M}"
