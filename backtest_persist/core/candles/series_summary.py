"""SeriesSummary: what is stored of one series, without its candles."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Self

from backtest_persist.core.candles.ohlcv import Series
from backtest_persist.errors import InvalidKeyError

__all__ = ("Gaps", "SeriesSummary", "known_series")


@dataclass(frozen=True)
class SeriesSummary:
    """A stored series; times are opening times in ms UTC."""

    symbol: str
    interval: str
    exchange_name: str
    first: int
    """The first time that is stored."""
    last: int
    """The last time that is stored."""
    count: int
    """How many candles are stored."""
    missing: int | None
    """How many are missing between the first and the last one; None for an interval that this package does not know."""
    gaps: int | None
    """In how many gaps they are missing; None for such an interval."""
    misaligned: int = 0
    """How many more are stored, by another program, at times at which no candle of this interval begins."""

    @classmethod
    def of_times(cls, symbol: str, interval: str, exchange_name: str, times: Sequence[int]) -> Self:
        """Summarise a series by all its times, of which there are some, in order."""
        series = known_series(symbol, interval, exchange_name)
        gaps = None
        aligned = times
        if series is not None:
            gaps, aligned = Gaps(series.step), [at for at in times if not at % series.step]
            for before, after in pairwise(aligned):
                gaps.add(before + series.step, after)
        return cls(
            symbol,
            interval,
            exchange_name,
            times[0],
            times[-1],
            len(aligned),
            gaps and gaps.missing,
            gaps and gaps.count,
            len(times) - len(aligned),
        )


class Gaps:
    """Counts gaps, which come in order; one that begins where the last one ended continues that."""

    def __init__(self, step: int) -> None:
        self.count = 0
        """The number of gaps."""
        self.missing = 0
        """The number of candles that are missing in them."""
        self._step = step
        self._end: int | None = None

    def add(self, start: int, end: int) -> None:
        """Add a gap, of the opening times in [start, end); none if these are equal."""
        if start < end:
            self.count += start != self._end
            self.missing += (end - start) // self._step
            self._end = end


def known_series(symbol: str, interval: str, exchange_name: str) -> Series | None:
    """Return a series by its names; None for names that another program has stored, and this one does not take."""
    try:
        return Series(symbol, interval, exchange_name)
    except InvalidKeyError:
        return None
