"""OHLCV: what a candle, a series and a window are, without storage."""

import math
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from numbers import Real
from typing import TYPE_CHECKING, Any, cast, get_args

from backtest_persist.contracts import CandleData, CandleInterval, PayloadInput, When
from backtest_persist.core.instants import EarlyTimes, checked_int64, refused
from backtest_persist.core.keys import checked_limit, checked_name, checked_timestamp
from backtest_persist.core.payload import checked_entries, opened
from backtest_persist.errors import InvalidKeyError, InvalidPayloadError, SettingsError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = (
    "COLUMNS",
    "NUMBERS",
    "candle_columns",
    "checked_candle",
    "checked_window",
    "closed_candles",
    "import_numpy",
    "interval_step_ms",
)

NUMBERS = ("open", "high", "low", "close", "volume")
"""The numbers of a candle."""
COLUMNS = ("timestamp", *NUMBERS)
"""The fields of a candle beside its series."""
_COLLECTION = "candle-items"
_REAL = (int, Decimal, Real)
_UNIT_MS = {"m": 60_000, "h": 3_600_000, "d": 86_400_000}
_STEP_MS: Mapping[str, int] = {name: int(name[:-1]) * _UNIT_MS[name[-1]] for name in get_args(CandleInterval)}


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
            f"since_timestamp {start} is not the start of a {interval} candle; "
            f"the one around it starts at {start - start % step}."
        )
    end = checked_int64(start + count * step, "the end of the window")
    late = until is not None and end > checked_timestamp(until, "until_timestamp", early)
    return None if late and count else range(start, end, step)


def closed_candles(
    interval: str, candles: Iterable[PayloadInput], now: int, early: EarlyTimes = refused
) -> list[PayloadInput]:
    """The candles that have closed at `now` (ms UTC)."""
    latest = now - interval_step_ms(interval)
    given = checked_entries(candles, _COLLECTION)
    return [candle for candle in given if _timestamp(_members(candle), early) <= latest]


def _members(candle: Any) -> dict[str, Any]:
    members: Any = candle
    if type(members) is not dict:
        members = opened(candle, _COLLECTION, by_alias=False)
    if not isinstance(members, dict):
        raise InvalidPayloadError(f"A candle is a mapping, a model or a dataclass, not {type(members).__name__}.")
    return cast("dict[str, Any]", members)


def _timestamp(members: Mapping[str, Any], early: EarlyTimes) -> int:
    if "timestamp" not in members:
        raise InvalidPayloadError("A candle needs a 'timestamp': its opening time as int, in ms UTC.")
    try:
        return checked_timestamp(members["timestamp"], "timestamp", early)
    except InvalidKeyError as error:
        raise InvalidPayloadError(f"A candle has no usable opening time: {error}") from None


def checked_candle(
    symbol: str, interval: str, exchange_name: str, candle: PayloadInput, early: EarlyTimes = refused
) -> CandleData:
    """Return the timestamp and the numbers of a candle; `InvalidPayloadError` for one that cannot be real."""
    members = _members(candle)
    timestamp, step = _timestamp(members, early), interval_step_ms(interval)
    problem = ""
    values: dict[str, float] = {}
    if timestamp % step:
        around = timestamp - timestamp % step
        problem = f"{timestamp} is not the start of a {interval} candle; the one around it starts at {around}"
    else:
        for name in NUMBERS:
            number = members.get(name)
            if type(number) is not float:
                number = _float(number)
            if number is None or not math.isfinite(number):
                problem = f"{name} must be a finite number"
                break
            values[name] = number
        else:
            problem = _contradiction(**values)
    if problem:
        context = {"exchange_name": exchange_name, "symbol": symbol, "interval": interval, "timestamp": timestamp}
        described = ", ".join(f"{name}={value!r:.80}" for name, value in context.items())
        raise InvalidPayloadError(f"{_COLLECTION} ({described}): {problem}.", collection=_COLLECTION, context=context)
    return cast("CandleData", {"timestamp": timestamp, **values})


def _float(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, _REAL):
        return None
    try:
        return float(value)
    except (OverflowError, TypeError, ValueError):  # of 10**400, a numpy.timedelta64 (a Real), a signalling NaN
        return None


def _contradiction(open: float, high: float, low: float, close: float, volume: float) -> str:
    if high < open or high < close or high < low:
        return "high is below open, close or low"
    if low > open or low > close:
        return "low is above open or close"
    return "volume is negative" if volume < 0 else ""
