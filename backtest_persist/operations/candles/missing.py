"""Missing candles: what an exchange does not have, remembered so that it is not asked for again."""

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, cast

from backtest_persist.core.candles.ohlcv import Series
from backtest_persist.core.keys import join_key
from backtest_persist.core.persist_instance import Services
from backtest_persist.domains.interval import IntervalDbService
from backtest_persist.operations.candles.ranges import Range, Ranges

__all__ = ("MissingCandles",)

_EPOCH = datetime.fromtimestamp(0, UTC)
_MILLISECOND = timedelta(milliseconds=1)


class MissingCandles:
    """The ranges of a series in which its exchange has no candle.

    They are entries of the interval domain: the bucket is ``missing-candles:EXCHANGE:SYMBOL:INTERVAL``, the key the UTC
    month in which the ranges of the entry start, such as ``2024-01``, and the payload their starts and ends in ms:
    ``{"ranges": [[start, end], ...]}``. A range may end months later, so that all the time before a listing is one of
    them. Ranges that overlap or touch are merged: a series has at most one document for each month.
    """

    def __init__(self, services: Services, series: Series) -> None:
        self._db = services.db_service(IntervalDbService)
        self._bucket = join_key("missing-candles", series.exchange_name, series.symbol, series.interval)
        self._ranges = Ranges()
        self._changed: set[str] = set()

    async def load(self) -> None:
        """Read what is remembered; what another program has stored in this bucket is passed over."""
        for row in await self._db.store.select({"bucket": self._bucket}):
            for start, end in _read_ranges(row.payload):
                self._ranges.add(start, end)

    def within(self, start: int, end: int) -> list[Range]:
        """Return what is missing in [start, end)."""
        return self._ranges.within(start, end)

    def add(self, ranges: Iterable[Range]) -> None:
        """Add ranges in which the exchange has nothing; `save` stores them."""
        for start, end in ranges:
            starts = [first for first, _ in self._ranges.touching(start, end)]
            self._changed.update(map(_month, (start, *starts)))
            self._ranges.add(start, end)

    def forget(self, start: int, end: int) -> None:
        """Remove [start, end), for which the exchange is to be asked again; `save` stores that."""
        if changed := self._ranges.touching(start, end):
            self._changed.update(map(_month, (end, *(first for first, _ in changed))))
            self._ranges.remove(start, end)

    async def save(self, when: int) -> None:
        """Store what has changed, the earliest month first: one that takes over the ranges of the next is before it."""
        for month in sorted(self._changed):
            ranges = self._ranges.starting_within(*_bounds(month))
            if ranges:
                await self._db.upsert(self._bucket, month, {"ranges": ranges}, when)
            else:
                await self._db.soft_remove(self._bucket, month)
        self._changed.clear()


def _month(timestamp: int) -> str:
    return f"{_EPOCH + timestamp * _MILLISECOND:%Y-%m}"


def _bounds(month: str) -> Range:
    start = datetime.strptime(month, "%Y-%m").replace(tzinfo=UTC)
    end = (start + timedelta(days=31)).replace(day=1)
    return (start - _EPOCH) // _MILLISECOND, (end - _EPOCH) // _MILLISECOND


def _read_ranges(payload: Any) -> Iterator[Range]:
    ranges = cast("dict[str, Any]", payload).get("ranges") if isinstance(payload, dict) else None
    for entry in cast("list[Any]", ranges) if isinstance(ranges, list) else []:
        if isinstance(entry, list) and [type(at) for at in cast("list[Any]", entry)] == [int, int]:
            start, end = cast("list[int]", entry)
            yield start, end
