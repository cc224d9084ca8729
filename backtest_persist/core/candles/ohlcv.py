"""OHLCV: what a candle, a series and a window are, without storage."""

import math
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from decimal import Decimal
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, cast, get_args

from bson.int64 import Int64

from backtest_persist.contracts import CandleData, CandleInterval, When
from backtest_persist.core.instants import EarlyTimes, checked_int64, refused
from backtest_persist.core.keys import checked_limit, checked_name, checked_timestamp, join_key
from backtest_persist.errors import InvalidKeyError, InvalidPayloadError, SettingsError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = (
    "CANDLES",
    "COLUMNS",
    "INTERVALS",
    "NUMBERS",
    "ImpossibleCandleError",
    "Series",
    "candle_columns",
    "candle_numbers",
    "checked_window",
    "import_numpy",
    "interval_step_ms",
    "on_grid",
    "opening_time",
    "plain_candle",
)

CANDLES = "candle-items"
"""The collection of candles, which messages name."""
NUMBERS = ("open", "high", "low", "close", "volume")
"""The numbers of a candle."""
COLUMNS = ("timestamp", *NUMBERS)
"""The fields of a candle beside its series."""
_UNIT_MS = {"m": 60_000, "h": 3_600_000, "d": 86_400_000}
_STEP_MS: Mapping[str, int] = {name: int(name[:-1]) * _UNIT_MS[name[-1]] for name in get_args(CandleInterval)}
INTERVALS = tuple(_STEP_MS)
"""The intervals of candles, shortest first."""
_TOLERANCE = 1e-9
"""The part of a price by which a high or a low may miss the body: what scaling of prices leaves."""
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_WHOLE = re.compile(r"[+-]?\d+", re.ASCII)
_FLOATS = {float}
_MAX = sys.float_info.max
_EXACT_DIGITS = 15
"""Every number of so many digits comes back from a float as it was."""


class ImpossibleCandleError(ValueError):
    """A candle cannot be real; the message says why, without its series."""


@dataclass(frozen=True)
class Series:
    """The candles of one symbol, interval and exchange; `InvalidKeyError` for a part that no series has."""

    symbol: str
    interval: str
    exchange_name: str

    def __post_init__(self) -> None:
        """Check the parts, and take the content of members of an enum."""
        interval_step_ms(self.interval)
        for name in ("symbol", "interval", "exchange_name"):
            object.__setattr__(self, name, checked_name(getattr(self, name), name))

    @property
    def step(self) -> int:
        """The length of its interval in ms."""
        return _STEP_MS[self.interval]

    def parts(self) -> dict[str, Any]:
        """Return the names, in snake_case, and values of the part of the context that its candles share."""
        return {"exchange_name": self.exchange_name, "symbol": self.symbol, "interval": self.interval}

    def filter(self) -> dict[str, Any]:
        """Return the filter that selects its candles."""
        return {"exchangeName": self.exchange_name, "symbol": self.symbol, "interval": self.interval}

    def window(self, since: int | None, until: int | None) -> dict[str, Any]:
        """Return the filter that selects what is stored in [since, until), in ms UTC; None is no bound."""
        bounds = {"$gte": since, "$lt": until}
        times = {name: Int64(bound) for name, bound in bounds.items() if bound is not None}
        return {**self.filter(), "timestamp": times} if times else self.filter()

    def cache_key(self, timestamp: int) -> str:
        """Return the Redis key of a candle inside ``candle_cache``."""
        return join_key(self.exchange_name, self.symbol, self.interval, timestamp)

    def describe(self, timestamp: int | None = None) -> str:
        """Return the collection and the context for a message."""
        parts = self.parts() if timestamp is None else {**self.parts(), "timestamp": timestamp}
        return f"{CANDLES} ({', '.join(f'{name}={value!r:.80}' for name, value in parts.items())})"

    def error(self, problem: str, timestamp: int | None = None) -> InvalidPayloadError:
        """Return the error about candles of this series."""
        context = self.parts() if timestamp is None else {**self.parts(), "timestamp": timestamp}
        return InvalidPayloadError(f"{self.describe(timestamp)}: {problem}.", collection=CANDLES, context=context)


def interval_step_ms(interval: str) -> int:
    """Length of an interval in ms; `InvalidKeyError` for one that is not stored."""
    step = _STEP_MS.get(checked_name(interval, "interval"))
    if step is None:
        raise InvalidKeyError(f"interval must be one of {' '.join(_STEP_MS)}, not {interval!r:.40}.")
    return step


def candle_columns(candles: Sequence[CandleData]) -> "dict[str, NDArray[Any]]":
    """Candles as numpy arrays by field: `timestamp` int64 (ms UTC), the others float64; needs numpy."""
    numpy = import_numpy()
    columns: dict[str, NDArray[Any]] = {
        name: numpy.array(
            [cast("Mapping[str, Any]", candle)[name] for candle in candles],
            dtype="int64" if name == "timestamp" else "float64",
        )
        for name in COLUMNS
    }
    return columns


def on_grid(columns: "dict[str, NDArray[Any]]", step: int) -> "dict[str, NDArray[Any]]":
    """Leave out of columns the candles of other programs at times that are no multiple of the interval."""
    is_aligned = columns["timestamp"] % step == 0
    return columns if is_aligned.all() else {name: column[is_aligned] for name, column in columns.items()}


def plain_candle(row: Any) -> CandleData:
    """Return the candle of a row as plain data, without context and dates."""
    return cast("CandleData", {name: getattr(row, name) for name in COLUMNS})


def import_numpy() -> Any:
    """Return numpy; `SettingsError` where it is not installed."""
    try:
        import numpy
    except ModuleNotFoundError:
        raise SettingsError("Candle columns need numpy; run: pip install numpy") from None
    return numpy


def checked_window(
    interval: str, limit: int, since: When, until: When | None, early: EarlyTimes = refused
) -> range | None:
    """The opening times (ms UTC) of a window of `limit` candles; None when one of them closes after `until`.

    Raises `InvalidKeyError` for a limit that is negative or no int, and a start that is not a multiple of the interval.
    """
    step, count = interval_step_ms(interval), checked_limit(limit)
    start = checked_timestamp(since, "since_timestamp", early)
    if start % step:
        raise InvalidKeyError(
            f"since_timestamp {start} is not the start of a {interval} candle: {_offset(start, interval)}."
        )
    end = checked_int64(start + count * step, "the end of the window")
    late = until is not None and end > checked_timestamp(until, "until_timestamp", early)
    return None if late and count else range(start, end, step)


def _offset(timestamp: int, interval: str) -> str:
    """Say by how much a time misses the start of a candle; a start is not proposed, because it may be too early."""
    minutes, ms = divmod(timestamp % _STEP_MS[interval], 60_000)
    offset = f"{minutes // 60:02}:{minutes % 60:02}:{ms / 1000:06.3f}".removesuffix(".000")
    unit = "day" if interval == "1d" else f"{interval} interval"
    problem = f"it is {offset} later than the start of a UTC {unit}"
    if ms:
        return problem
    advice = f"{problem}; a session with this offset is stored under the UTC {unit} in which it closes"
    if interval != "1d":
        return advice
    return f"{advice}, session_day(opening, length), and a day that is named by its local midnight under its date"


def opening_time(value: Any, interval: str, early: EarlyTimes) -> int:
    """Return the opening time of a candle in ms; `ImpossibleCandleError` for what is no start of one.

    It is an instant, digits of one in ms, or, for an interval of a day, a date or a naive datetime at midnight, which
    both mean that UTC day.
    """
    if type(value) is not int:
        value = _instant(value, interval)
    try:
        timestamp = checked_timestamp(value, "timestamp", early)
    except InvalidKeyError as error:
        raise ImpossibleCandleError(str(error).rstrip(".")) from None
    if timestamp % _STEP_MS[interval]:
        problem = f"timestamp {timestamp} is not the start of a {interval} candle"
        raise ImpossibleCandleError(f"{problem}: {_offset(timestamp, interval)}")
    return timestamp


def _instant(value: Any, interval: str) -> Any:
    if isinstance(value, str):
        if _WHOLE.fullmatch(value):
            return int(value)
        raise ImpossibleCandleError(
            f"timestamp must be a timezone-aware datetime or an int in ms since the epoch, not the str {value!r:.40}"
        )
    if type(value).__module__ == "numpy" and type(value).__name__ == "datetime64":
        value = value.astype("datetime64[us]").item()  # None for NaT
    if isinstance(value, datetime):
        if value != value or value.utcoffset() is not None:
            return value
        if interval != "1d" or value.time() != time():
            raise ImpossibleCandleError(
                "timestamp is a naive datetime; give it a time zone: replace(tzinfo=UTC), tz_localize('UTC') in "
                "pandas, dt.replace_time_zone('UTC') in polars"
            )
        value = value.date()
    if isinstance(value, date) and interval == "1d":
        return datetime.combine(value, time(), UTC)
    return value


def candle_numbers(timestamp: int, given: Sequence[Any], *, rounded: list[int], widened: list[int]) -> CandleData:
    """Return the candle of an opening time and the `NUMBERS`, in their order.

    A high or low that misses the body by no more than 1e-9 of the price is set to it; the time is then appended to
    `widened`. A number that a float does not hold with all its digits is stored as the nearest one; the time is then
    appended to `rounded`. `ImpossibleCandleError` for a candle that cannot be real.
    """
    if set(map(type, given)) != _FLOATS:
        given = [_float(name, number, timestamp, rounded) for name, number in zip(NUMBERS, given, strict=True)]
    open, high, low, close, volume = given
    if not (-_MAX <= low <= open <= high <= _MAX and low <= close <= high and 0 <= volume <= _MAX):
        for name, number in zip(NUMBERS, given, strict=True):
            if not math.isfinite(number):
                raise ImpossibleCandleError(f"{name} must be a finite number, not {number}")
        top, bottom = max(open, close), min(open, close)
        if high < top and top - high > _TOLERANCE * abs(top):
            raise ImpossibleCandleError("high is below open, close or low")
        if low > bottom and low - bottom > _TOLERANCE * abs(bottom):
            raise ImpossibleCandleError("low is above open or close")
        if volume < 0:
            raise ImpossibleCandleError("volume is negative")
        high, low = max(high, top), min(low, bottom)
        widened.append(timestamp)
    return {"timestamp": timestamp, "open": open, "high": high, "low": low, "close": close, "volume": volume}


def _float(name: str, value: Any, timestamp: int, rounded: list[int]) -> float:
    """Return a number as the nearest float; without all its digits, the time is appended to `rounded`."""
    try:
        if isinstance(value, float):
            return float(value)
        if isinstance(value, str):
            if not _NUMBER.fullmatch(value):
                raise ValueError("no number")
            number, exact = _of_digits(Decimal(value), len(value))
        elif isinstance(value, Decimal):
            number, exact = _of_digits(value, len(value.as_tuple().digits))
        elif isinstance(value, Integral) and not isinstance(value, bool):
            number = float(whole := int(value))
            exact = number == whole
        elif isinstance(value, Real) and not isinstance(value, bool):
            number, exact = float(value), True
        else:
            raise TypeError("no number")
    except (ArithmeticError, TypeError, ValueError):  # of 10**400, a numpy.timedelta64, an sNaN
        given = f"the str {value!r:.40}" if isinstance(value, str) else type(value).__name__
        raise ImpossibleCandleError(f"{name} must be a finite number, not {given}") from None
    if not exact and rounded[-1:] != [timestamp]:
        rounded.append(timestamp)
    return number


def _of_digits(value: Decimal, digits: int) -> tuple[float, bool]:
    number = float(value)
    return number, digits <= _EXACT_DIGITS or not math.isfinite(number) or Decimal(repr(number)) == value
