"""The times of candles as the command line shows them."""

from datetime import UTC, datetime

__all__ = ("shown_time",)


def shown_time(timestamp: int) -> str:
    """Return an instant in ms as text, in UTC."""
    try:
        text = datetime.fromtimestamp(timestamp / 1000, UTC).isoformat(" ", "milliseconds")
    except (OSError, OverflowError, ValueError):
        return str(timestamp)
    return text.removesuffix("+00:00").removesuffix(".000").removesuffix(":00")
