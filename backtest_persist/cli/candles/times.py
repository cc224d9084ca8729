"""The times of candles on the command line: how they are given, and how they are shown."""

import re
from datetime import UTC, datetime, timedelta

from backtest_persist.core.row import utc_now
from backtest_persist.errors import InvalidKeyError

__all__ = ("parse_instant", "parse_length", "parse_period", "shown_time")

_AGO = re.compile(r"(\d{1,5})([mhdw])")
_UNITS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_LENGTH = re.compile(r"(?=\d)(?:(\d{1,4})h)?(?:(\d{1,5})m)?", re.ASCII)
_MS = re.compile(r"-?\d{9,}")


def parse_instant(text: str, option: str) -> datetime | int:
    """Return the instant of an option; `InvalidKeyError` for what is none.

    It is a date, which is the start of that day in UTC, a time with its zone, ms, or a time ago, such as ``30d``.
    """
    if ago := _AGO.fullmatch(text):
        return utc_now() - timedelta(**{_UNITS[ago[2]]: int(ago[1])})
    try:
        if _MS.fullmatch(text):
            return int(text)
        instant = datetime.fromisoformat(text)
    except ValueError:
        raise InvalidKeyError(
            f"{option} must be a time such as 2024-05-01, 2024-05-01T12:00Z or 30d (ago), or ms since 1970, not "
            f"{text!r:.40}."
        ) from None
    if instant.tzinfo is not None:
        return instant
    if len(text) > len("2024-05-01"):
        raise InvalidKeyError(f"{option} is a time without a zone; for UTC write {text.replace(' ', 'T'):.40}Z.")
    return instant.replace(tzinfo=UTC)


def parse_period(since: str | None, until: str | None) -> tuple[datetime | int | None, datetime | int | None]:
    """Return the instants of ``--since`` and ``--until``; None for one that was not given."""
    return (
        None if since is None else parse_instant(since, "--since"),
        None if until is None else parse_instant(until, "--until"),
    )


def parse_length(text: str, option: str) -> timedelta:
    """Return the length of a session, such as ``6h30m``; `InvalidKeyError` for what is none."""
    found = _LENGTH.fullmatch(text)
    length = timedelta(hours=int(found[1] or 0), minutes=int(found[2] or 0)) if found else timedelta()
    if not length:
        raise InvalidKeyError(f"{option} must be hours and minutes, such as 6h30m or 24h, not {text!r:.40}.")
    return length


def shown_time(timestamp: int) -> str:
    """Return an instant in ms as text, in UTC."""
    try:
        text = datetime.fromtimestamp(timestamp / 1000, UTC).isoformat(" ", "milliseconds")
    except (OSError, OverflowError, ValueError):
        return str(timestamp)
    return text.removesuffix("+00:00").removesuffix(".000").removesuffix(":00")
