"""`find_candle_gaps`: what is missing in a series, in a range or in all that is stored of it."""

import time
from dataclasses import dataclass, field
from typing import NamedTuple

from backtest_persist.contracts import Bound
from backtest_persist.core.candles.ohlcv import CANDLES, Series
from backtest_persist.core.instants import checked_bound
from backtest_persist.core.persist_instance import Services
from backtest_persist.domains.candle import CandleDbService
from backtest_persist.errors import InvalidKeyError

__all__ = ("CandleGaps", "Gap", "find_candle_gaps", "nothing_stored", "stored_bounds")


class Gap(NamedTuple):
    """Candles that are missing one after another; times are opening times in ms UTC."""

    start: int
    """The first one that is missing."""
    end: int
    """The time after the last one."""
    missing: int
    """How many are missing."""


@dataclass(frozen=True)
class CandleGaps:
    """What is missing in a range of a series; times are opening times in ms UTC."""

    symbol: str
    interval: str
    exchange_name: str
    since: int
    until: int
    """The end of the range, exclusive."""
    gaps: list[Gap] = field(default_factory=list[Gap])
    missing: int = 0
    """How many candles are missing in all."""


async def find_candle_gaps(
    ioc: Services,
    symbol: str,
    interval: str,
    exchange_name: str,
    since: Bound | None = None,
    until: Bound | None = None,
) -> CandleGaps:
    """Find the candles that are missing in [since, until), by default between the first and the last one stored.

    For the bounds see `CandleDbService.find_frame`. A candle that has not closed yet is not missing. `InvalidKeyError`
    when a bound is needed and nothing is stored.
    """
    series, db = Series(symbol, interval, exchange_name), ioc.db_service(CandleDbService)
    start = None if since is None else checked_bound(since, "since", db.allows_early_times)
    end = None if until is None else checked_bound(until, "until", db.allows_early_times)
    if start is None or end is None:
        first, last = await stored_bounds(db, series)
        start = first if start is None else start
        end = last + 1 if end is None else end
    start, end = (-(-bound // series.step) * series.step for bound in (start, end))
    now = int(time.time() * 1000)
    end = max(start, min(end, now - now % series.step))
    found = await db.find_gaps(symbol, interval, exchange_name, start, end)
    gaps = [Gap(first, after, (after - first) // series.step) for first, after in found]
    return CandleGaps(
        series.symbol, series.interval, series.exchange_name, start, end, gaps, sum(gap.missing for gap in gaps)
    )


async def stored_bounds(db: CandleDbService, series: Series) -> tuple[int, int]:
    """Return the first and the last time of a series; `InvalidKeyError` when nothing is stored of it."""
    bounds = await db.candles.find_bounds(series)
    if bounds is None:
        raise nothing_stored(series)
    return bounds


def nothing_stored(series: Series, where: str = "") -> InvalidKeyError:
    """Return the error about a series of which nothing is stored; `where` is the range that was asked for."""
    return InvalidKeyError(
        f"{series.describe()}: no candles are stored{where}; `backtest-persist candles ls` lists what is.",
        collection=CANDLES,
        context=series.parts(),
    )
