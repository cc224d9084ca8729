"""The times of candles on the command line: how they are given, and how they are shown."""

from datetime import UTC, datetime

from backtest_persist.errors import InvalidKeyError

__all__ = ("parse_instant", "shown_time")


def parse_instant(text: str | None, option: str) -> datetime | int | None:
    """Return the instant of an option: a date, which is the start of that day in UTC, a time with its zone, or ms.

    None if it was not given; `InvalidKeyError` for anything else.
    """
    if text is None:
        return None
    try:
        if text.removeprefix("-").isdecimal() and len(text) > len("20240101"):
            return int(text)
        instant = datetime.fromisoformat(text)
    except ValueError:
        raise InvalidKeyError(
            f"{option} must be a date such as 2024-05-01, or a time such as 2024-05-01T12:00Z, not {text!r:.40}."
        ) from None
    if instant.tzinfo is not None:
        return instant
    if len(text) > len("2024-05-01"):
        raise InvalidKeyError(f"{option} is a time without a zone; for UTC write {text.replace(' ', 'T'):.40}Z.")
    return instant.replace(tzinfo=UTC)


def shown_time(timestamp: int) -> str:
    """Return an instant in ms as text, in UTC."""
    try:
        text = datetime.fromtimestamp(timestamp / 1000, UTC).isoformat(" ", "milliseconds")
    except (OSError, OverflowError, ValueError):
        return str(timestamp)
    return text.removesuffix("+00:00").removesuffix(".000").removesuffix(":00")
