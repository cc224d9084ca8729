"""Resampling: candles of an interval that is stored become those of a longer one, such as weeks and months."""

from operator import itemgetter
from typing import TYPE_CHECKING, Any, get_args

from backtest_persist.contracts import CandleInterval
from backtest_persist.core.candles.ohlcv import COLUMNS, import_numpy, interval_step_ms, on_grid
from backtest_persist.errors import InvalidKeyError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ("checked_resample", "resample_columns")

_HOUR, _DAY = 3_600_000, 86_400_000
_MONTH = "1M"
_STORED = {name: interval_step_ms(name) for name in get_args(CandleInterval)}
_STEPS = dict(sorted((_STORED | {"12h": 12 * _HOUR, "3d": 3 * _DAY, "1w": 7 * _DAY}).items(), key=itemgetter(1)))
"""The lengths of periods in ms; those of months differ."""
_FIRST_MONDAY = 4 * _DAY


def checked_resample(interval: str, resample: str) -> str:
    """Return the interval to resample to; `InvalidKeyError` for one that candles of `interval` do not make up."""
    step = interval_step_ms(interval)
    possible = [name for name, length in _STEPS.items() if length % step == 0] + [_MONTH]
    if not isinstance(resample, str) or resample not in possible:
        names = " ".join(possible)
        raise InvalidKeyError(f"Candles of {interval} can be resampled to {names}, not to {resample!r:.40}.")
    return resample


def resample_columns(
    columns: "dict[str, NDArray[Any]]", interval: str, resample: str, *, since: int | None, until: int
) -> "dict[str, NDArray[Any]]":
    """Resample the columns of one series, which are in order of time, from `interval` to `resample`.

    A candle of the result has the first open, the highest high, the lowest low and the last close of its period, and
    the sum of the volumes, added as float64. Its timestamp is the beginning of the period, in ms UTC: hours and days
    are counted from 1970-01-01, a week (``1w``) begins on Monday and a month (``1M``) on its first day, at 00:00 UTC.

    A period is in the result if it lies in [since, until) as a whole, in ms UTC: one that has not closed by `until`
    would still change, and one that begins before `since` lacks its beginning. Without `since` there is no such bound:
    a series that begins on a Wednesday begins with the week of that day. A period is made of the candles that there
    are, so that a week may have five days; without any there is none. A candle that is not on the grid of its interval
    is left out, because it may close after its period. Needs numpy; `SettingsError` without it.
    """
    checked_resample(interval, resample)
    numpy = import_numpy()
    columns = on_grid(columns, interval_step_ms(interval))
    starts, ends = _periods(columns["timestamp"], resample)
    firsts = numpy.flatnonzero(numpy.diff(starts, prepend=starts[:1] - 1))
    if not len(firsts):
        return {name: columns[name][:0] for name in COLUMNS}
    lasts = numpy.append(firsts[1:], len(starts)) - 1
    resampled: dict[str, NDArray[Any]] = {
        "timestamp": starts[firsts],
        "open": columns["open"][firsts],
        "high": numpy.maximum.reduceat(columns["high"], firsts),
        "low": numpy.minimum.reduceat(columns["low"], firsts),
        "close": columns["close"][lasts],
        "volume": numpy.add.reduceat(columns["volume"], firsts),
    }
    is_whole = ends[firsts] <= until
    if since is not None:
        is_whole &= resampled["timestamp"] >= since
    return {name: column[is_whole] for name, column in resampled.items()}


def _periods(times: "NDArray[Any]", resample: str) -> "tuple[NDArray[Any], NDArray[Any]]":
    """Return the beginning of the period of each opening time, and its end."""
    if resample == _MONTH:
        months = times.astype("datetime64[ms]").astype("datetime64[M]")
        return _millis(months), _millis(months + 1)
    step = _STEPS[resample]
    starts = times - (times - (_FIRST_MONDAY if resample == "1w" else 0)) % step
    return starts, starts + step


def _millis(months: "NDArray[Any]") -> "NDArray[Any]":
    return months.astype("datetime64[ms]").astype("int64")
