"""CandleStore: what a backend that keeps candles offers beside `Store`; in it series are read by ranges of time."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from backtest_persist.contracts import CandleData
from backtest_persist.core.candles.ohlcv import Series
from backtest_persist.core.candles.series_summary import SeriesSummary
from backtest_persist.core.frames.row_list import RowList
from backtest_persist.core.row import Context, Row
from backtest_persist.core.store import Store
from backtest_persist.logger import LoggerService

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ("PART", "CandleStore", "in_parts")

C = TypeVar("C", bound=Context, contravariant=True)
R = TypeVar("R", bound=Row)

PART = 50_000
"""Candles that one command reads; each has its own deadline."""


def in_parts(times: Sequence[int]) -> Iterator[Sequence[int]]:
    """Cut times into the parts that one command reads."""
    return (times[start : start + PART] for start in range(0, len(times), PART))


class CandleStore(Store[C, R], Protocol[C, R]):
    """Keeps candles; all that `domains.candle` needs of a backend.

    Times are opening times in ms UTC and were checked, as were the candles. What is found is in the order of the times.
    """

    @property
    def logger(self) -> LoggerService:
        """Return what logs the events of this backend."""
        ...

    @property
    def remembers_ids(self) -> bool:
        """Whether Redis is told the ids of new candles."""
        ...

    async def find_rows(self, series: Series, start: int, end: int) -> RowList[R]:
        """Find what is stored in [start, end)."""
        ...

    async def find_data(self, series: Series, start: int, end: int) -> list[CandleData]:
        """Find the same as plain data."""
        ...

    async def find_columns(self, series: Series, start: int | None, end: int | None) -> "dict[str, NDArray[Any]]":
        """Find the same as numpy arrays by field: `timestamp` int64, the others float64; None is no bound."""
        ...

    async def find_last_rows(self, series: Series, limit: int, latest: int) -> RowList[R]:
        """Find the last `limit` candles that open at `latest` or before."""
        ...

    async def find_last_data(self, series: Series, limit: int, latest: int) -> list[CandleData]:
        """Find the same as plain data."""
        ...

    async def find_gaps(self, series: Series, start: int, end: int) -> list[tuple[int, int]]:
        """Find the gaps in [start, end), two starts of candles: each its first missing time, and the time after it."""
        ...

    async def find_bounds(self, series: Series, since: int | None = None) -> tuple[int, int] | None:
        """Find the first and the last time that is stored, of those from `since` on; None when nothing is."""
        ...

    async def list_series(self, names: Mapping[str, str]) -> list[SeriesSummary]:
        """Summarise each series that is stored and whose names, by the fields of the context, are these."""
        ...

    async def find_numbers(
        self, series: Series, times: Sequence[int], *, prepare: bool = True
    ) -> dict[int, Mapping[str, Any]]:
        """Find the numbers of the candles that are known to be stored at these times, one of `in_parts`, in order.

        Without `prepare` nothing is written, no index either.
        """
        ...

    async def create_candle(self, context: C, candle: CandleData) -> R:
        """Store a candle, unless one is stored in its context; returns the row of that which is stored then."""
        ...

    async def insert_candles(self, series: Series, candles: Sequence[CandleData]) -> int:
        """Store candles where none is stored yet; returns how many."""
        ...

    async def delete_range(self, series: Series, start: int | None, end: int | None) -> int:
        """Delete what is stored from `start` on and before `end`; returns how many candles."""
        ...
