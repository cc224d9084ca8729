"""Candle input: what is given as candles, in any usual shape, becomes checked candles of one series."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from typing import Any, NamedTuple, cast

from pydantic import BaseModel

from backtest_persist.contracts import CandleData
from backtest_persist.core.candles.columns import CERTAIN_NAMES, TIME_NAMES, find_columns, plain_name
from backtest_persist.core.candles.ohlcv import (
    CANDLES,
    COLUMNS,
    INTERVALS,
    NUMBERS,
    ImpossibleCandleError,
    Series,
    candle_numbers,
    opening_time,
)
from backtest_persist.core.candles.outliers import find_outliers
from backtest_persist.core.frames.frame import CandleFrame
from backtest_persist.core.instants import EarlyTimes, admitted
from backtest_persist.core.payload import opened
from backtest_persist.errors import InvalidPayloadError

__all__ = ("CheckedCandles", "check_candles", "checked_candle")

_STORED_NAMES = frozenset(
    (
        *("id", "_id", "exchange_name", "exchangename", "symbol", "interval", "index"),
        *("create_date", "createdate", "updated_date", "updateddate", "__v"),
    )
)
"""The plain names of what a stored row, or a row of a frame, has beside its candle: to leave it out loses nothing."""
_KLINE = 12
"""The fields of a kline of Binance, of which the first are those of a row of ccxt, with numbers as str."""
_SHOWN_PROBLEMS = 5
_INTERVALS = (*INTERVALS, *("12h", "3d", "1w", "1M"))
"""The intervals that are stored, and those that candles can be resampled to."""


@dataclass
class CheckedCandles:
    """The candles of one call, by what may become of them; times are opening times in ms."""

    count: int = 0
    """How many were given."""
    valid: dict[int, CandleData] = field(default_factory=dict[int, CandleData])
    """The closed ones that can be stored, by time; outliers only if they are allowed."""
    repeated: int = 0
    """How many closed ones were given again."""
    open: list[int] = field(default_factory=list[int])
    """The times of those that had not closed."""
    invalid: list[tuple[int, str]] = field(default_factory=list[tuple[int, str]])
    """The positions of those that cannot be stored, and why."""
    widened: list[int] = field(default_factory=list[int])
    """The times of those whose high or low was set to the body, which it missed by a rounding error."""
    rounded: list[int] = field(default_factory=list[int])
    """The times of those with a number of which a float does not hold all digits."""
    outliers: dict[int, CandleData] = field(default_factory=dict[int, CandleData])
    """By time, those with a price in another unit than the prices around it; see `find_outliers`."""
    ignored: set[str] = field(default_factory=set[str])
    """The names of what was given beside time and numbers."""

    def error(self, series: Series) -> InvalidPayloadError:
        """Return the error about those that are invalid, the first five of which it names."""
        shown = [f"candle {position}: {problem}" for position, problem in self.invalid[:_SHOWN_PROBLEMS]]
        if more := len(self.invalid) - len(shown):
            shown.append(f"and {more} more")
        counts = f"{len(self.invalid)} of {self.count} candles cannot be stored, and none was"
        return series.error(f"{counts}. {'; '.join(shown)}")

    def outliers_error(self, series: Series) -> InvalidPayloadError:
        """Return the error about the outliers, where what is stored is to be replaced; it names the first five."""
        shown = ", ".join(map(str, [*self.outliers][:_SHOWN_PROBLEMS]))
        if (more := len(self.outliers) - _SHOWN_PROBLEMS) > 0:
            shown += f" and {more} more"
        return series.error(
            f"{len(self.outliers)} of {self.count} candles have a price in another unit than those around them, and "
            f"nothing was replaced: {shown}. Correct them, or, if they are right, give allow_outliers=True"
        )


class _Row(NamedTuple):
    """One candle as it was given."""

    kind: str
    """Its type, for messages."""
    names: tuple[Any, ...]
    values: Mapping[Any, Any]
    in_ms: frozenset[Any] = frozenset()
    """The names of instants that are in ms for certain, because they were datetimes."""

    def describe(self) -> str:
        return f"a {self.kind} with {', '.join(map(str, self.names)):.200}"


class _Plan(NamedTuple):
    """Where the fields of a candle are among the names of rows."""

    places: Mapping[str, Any]
    """The given name of each field."""
    problem: str
    """The fields that are missing or ambiguous, for a message; empty if none is."""
    ignored: frozenset[str]
    interval: Any = None
    """The given name of the interval, if a row has one."""


def check_candles(
    series: Series, candles: Any, *, as_of: int, early: EarlyTimes, allow_outliers: bool = False
) -> CheckedCandles:
    """Check the candles of one call, in one of the shapes of `contracts.CandlesInput`.

    One has closed if its interval ends at `as_of` (ms UTC) or before. What is wrong with single candles, of which there
    may also be two different ones of one time, is in the result. `InvalidPayloadError` for what holds no candles.
    """
    checked, latest = CheckedCandles(), as_of - series.step
    plans: dict[tuple[Any, ...], _Plan] = {}
    positions: dict[int, int] = {}
    repeats: dict[int, list[int]] = {}
    rivals: dict[int, int] = {}
    for position, given in enumerate(_given(series, candles)):
        checked.count += 1
        row = None
        try:
            row = given if type(given) is _Row else _row(given)
            plan = plans.get(row.names) or plans.setdefault(row.names, _plan(row.names))
            checked.ignored |= plan.ignored
            timestamp = _timestamp(row, plan, series, early)
            if timestamp > latest:
                checked.open.append(timestamp)
                continue
            values = [row.values[plan.places[name]] for name in NUMBERS]
            candle = candle_numbers(timestamp, values, rounded=checked.rounded, widened=checked.widened)
            first = checked.valid.setdefault(timestamp, candle)
            if first is candle:
                positions[timestamp] = position
            elif first == candle:
                repeats.setdefault(timestamp, []).append(position)
            else:
                rivals.setdefault(timestamp, position)
                raise ImpossibleCandleError(_rivalry(timestamp, positions[timestamp]))
        except ImpossibleCandleError as problem:
            checked.invalid.append((position, f"{problem} ({row.describe()})" if row else str(problem)))
    for timestamp, rival in rivals.items():  # nobody knows which of them is right
        del checked.valid[timestamp]
        for position in (positions[timestamp], *repeats.pop(timestamp, ())):
            checked.invalid.append((position, _rivalry(timestamp, rival)))
    checked.repeated = sum(map(len, repeats.values()))
    checked.invalid.sort()
    checked.outliers = {timestamp: checked.valid[timestamp] for timestamp in find_outliers(checked.valid)}
    for timestamp in () if allow_outliers else checked.outliers:
        del checked.valid[timestamp]
    return checked


def _rivalry(timestamp: int, rival: int) -> str:
    return f"its timestamp {timestamp} is also that of candle {rival}, which differs"


def checked_candle(series: Series, candle: Any, early: EarlyTimes, ignored: set[str] | None = None) -> CandleData:
    """Return the timestamp and the numbers of one candle; `InvalidPayloadError` for one that cannot be real.

    The names of what it has beside these are added to `ignored`.
    """
    timestamp = None
    try:
        row = _row(candle)
        plan = _plan(row.names)
        timestamp = _timestamp(row, plan, series, early)
        values = [row.values[plan.places[name]] for name in NUMBERS]
        if ignored is not None:
            ignored |= plan.ignored
        return candle_numbers(timestamp, values, rounded=[], widened=[])
    except ImpossibleCandleError as problem:
        raise series.error(str(problem), timestamp) from None


def _timestamp(row: _Row, plan: _Plan, series: Series, early: EarlyTimes) -> int:
    if plan.problem:
        raise ImpossibleCandleError(plan.problem)
    interval = None if plan.interval is None else row.values[plan.interval]
    if isinstance(interval, str) and interval in _INTERVALS and interval != series.interval:
        raise ImpossibleCandleError(f"it is a candle of {interval}, not of {series.interval}")
    place = plan.places["timestamp"]
    return opening_time(row.values[place], series.interval, admitted if place in row.in_ms else early)


def _given(series: Series, candles: Any) -> Iterable[Any]:
    """Iterate over the candles of one call, which are rows already if they came as columns."""
    if isinstance(candles, CandleFrame) and candles.interval != series.interval:
        raise series.error(f"the CandleFrame has candles of {candles.interval}; store it in a series of that interval")
    try:
        columns = find_columns(candles)
        if columns is not None:
            return _rows(columns.kind, columns.names, columns.in_ms, columns.rows())
    except ImpossibleCandleError as problem:
        raise series.error(str(problem)) from None
    if isinstance(candles, str | bytes | BaseModel) or not isinstance(candles, Iterable):
        kind: Any = type(candles)  # pyright: ignore[reportUnknownVariableType]
        if kind.__name__ == "LazyFrame":
            raise series.error("a LazyFrame has no rows yet; give what its collect() returns")
        raise series.error(f"expected candles as a list, as columns or as a frame, not {kind.__name__}")
    return cast("Iterable[Any]", candles)


def _rows(
    kind: str, names: tuple[Any, ...], in_ms: frozenset[Any], values: Iterator[Mapping[Any, Any]]
) -> Iterator[_Row]:
    return (_Row(kind, names, row, in_ms) for row in values)


def _row(given: Any) -> _Row:
    """Return the names and values of one candle; `ImpossibleCandleError` for what is none."""
    kind: Any = type(given)  # pyright: ignore[reportUnknownVariableType]
    if kind is dict:
        return _Row("dict", tuple(given), given)
    try:
        members = opened(given, CANDLES, by_alias=False)
    except InvalidPayloadError as error:
        raise ImpossibleCandleError(str(error).rstrip(".")) from None
    if isinstance(members, dict):
        values = cast("dict[Any, Any]", members)
        return _Row(kind.__name__, tuple(values), values)
    if isinstance(given, tuple) and hasattr(kind, "_fields"):
        return _named_row(kind.__name__, kind._fields, cast("Any", given))
    if isinstance(given, list | tuple) or _is_numpy(kind, "ndarray"):
        return _positional_row(kind.__name__, cast("Sequence[Any]", given))
    if _is_numpy(kind, "void") and given.dtype.names:
        return _named_row("record", given.dtype.names, _members(given))
    if hasattr(kind, "keys") and hasattr(kind, "__getitem__"):  # a Series of pandas, a record of a database driver
        values = {name: given[name] for name in given.keys()}  # noqa: SIM118  # of a Series, `in` gives values
        return _Row(kind.__name__, tuple(values), values)
    raise ImpossibleCandleError(f"a candle is a mapping, a model, a dataclass or a row, not {kind.__name__}")


def _named_row(kind: str, fields: Sequence[str], values: Sequence[Any]) -> _Row:
    names = tuple(fields)
    is_time = isinstance(values[0], datetime) or _is_numpy(values[0].__class__, "datetime64")
    if names[0] in ("Index", "index") and is_time:  # the index of a frame, from its itertuples or to_records
        names = ("datetime", *names[1:])
    return _Row(kind, names, dict(zip(names, values, strict=True)))


def _positional_row(kind: str, values: Sequence[Any]) -> _Row:
    if len(values) not in (len(COLUMNS), _KLINE):
        raise ImpossibleCandleError(
            f"a {kind} of {len(values)} values is no candle; give [timestamp, open, high, low, close, volume], a kline "
            f"of {_KLINE} fields, or the values by their names"
        )
    return _Row(kind, COLUMNS, dict(zip(COLUMNS, values, strict=False)))


def _members(record: Any) -> list[Any]:
    """Return the values of a record of numpy, of which `item` makes ints of datetimes in ns."""
    values = zip(record.dtype.names, record.item(), strict=True)
    return [record[name] if record.dtype[name].kind == "M" else value for name, value in values]


def _is_numpy(kind: type[Any], name: str) -> bool:
    """Whether a type is one of numpy, or derived from it, such as those of a recarray."""
    return any(base.__module__ == "numpy" and base.__name__ == name for base in kind.__mro__)


@lru_cache(100)
def _plan(names: tuple[Any, ...]) -> _Plan:
    """Find the fields of a candle among the names of rows, capitalised or not."""
    plain: dict[str, Any] = {}
    ambiguous: set[str] = set()
    for name in names:
        key = plain_name(name)
        if key not in plain or name in COLUMNS:
            plain[key] = name
        elif plain[key] not in COLUMNS:
            ambiguous.add(key)
    places = {name: plain[name] for name in NUMBERS if name in plain}
    times = [name for name in CERTAIN_NAMES if name in plain][:1] or sorted(TIME_NAMES.intersection(plain))
    if times:
        places["timestamp"] = plain[times[0]]
    problem = ""
    if missing := [name for name in COLUMNS if name not in places]:
        problem = f"it lacks {', '.join(missing)}"
    elif len(times) > 1:
        problem = f"it has {' and '.join(times)}; call the opening time timestamp"
    elif doubled := sorted(ambiguous.intersection({*NUMBERS, *times})):
        problem = f"it has several values for {', '.join(doubled)}"
    taken = set(places.values())
    ignored = {str(name) for key, name in plain.items() if name not in taken and key not in _STORED_NAMES}
    return _Plan(places, problem, frozenset(ignored), plain.get("interval"))
