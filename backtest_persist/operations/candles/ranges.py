"""Ranges of time, such as the gaps of a series."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator

__all__ = ("Range", "Ranges", "count_candles")

Range = tuple[int, int]
"""A start and an end in ms UTC; the end is excluded."""


class Ranges:
    """A set of instants as its ranges, which are sorted and neither overlap nor touch."""

    def __init__(self, ranges: Iterable[Range] = ()) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []
        for start, end in ranges:
            self.add(start, end)

    def __iter__(self) -> Iterator[Range]:
        return zip(self._starts, self._ends, strict=True)

    def __len__(self) -> int:
        return len(self._starts)

    def add(self, start: int, end: int) -> None:
        """Add [start, end), merged with the ranges that it overlaps or touches."""
        if start >= end:
            return
        first, last = bisect_left(self._ends, start), bisect_right(self._starts, end)
        if first < last:
            start, end = min(start, self._starts[first]), max(end, self._ends[last - 1])
        self._replace(first, last, [(start, end)])

    def remove(self, start: int, end: int) -> None:
        """Remove [start, end)."""
        first, last = bisect_right(self._ends, start), bisect_left(self._starts, end)
        if start < end and first < last:
            left, right = (self._starts[first], start), (end, self._ends[last - 1])
            self._replace(first, last, [part for part in (left, right) if part[0] < part[1]])

    def within(self, start: int, end: int) -> list[Range]:
        """Return the parts of the ranges that lie in [start, end)."""
        if start >= end:
            return []
        first, last = bisect_right(self._ends, start), bisect_left(self._starts, end)
        found = list(zip(self._starts[first:last], self._ends[first:last], strict=True))
        if found:
            found[0] = (max(found[0][0], start), found[0][1])
            found[-1] = (found[-1][0], min(found[-1][1], end))
        return found

    def split(self, others: Iterable[Range]) -> "tuple[Ranges, Ranges]":
        """Return the parts that lie in `others`, which are sorted, and those that do not."""
        inside, outside = Ranges(), Ranges()
        rest = iter(others)
        other = next(rest, None)
        for first, end in self:
            start = first
            while start < end:
                while other is not None and other[1] <= start:
                    other = next(rest, None)
                if other is None or other[0] >= end:
                    outside.add(start, end)
                    break
                stop = min(end, other[1])
                outside.add(start, other[0])
                inside.add(max(start, other[0]), stop)
                start = stop
        return inside, outside

    def touching(self, start: int, end: int) -> list[Range]:
        """Return the whole ranges that overlap or touch [start, end)."""
        first, last = bisect_left(self._ends, start), bisect_right(self._starts, end)
        return list(zip(self._starts[first:last], self._ends[first:last], strict=True))

    def starting_within(self, start: int, end: int) -> list[Range]:
        """Return the whole ranges whose start lies in [start, end)."""
        first, last = bisect_left(self._starts, start), bisect_left(self._starts, end)
        return list(zip(self._starts[first:last], self._ends[first:last], strict=True))

    def _replace(self, first: int, last: int, ranges: list[Range]) -> None:
        self._starts[first:last] = [start for start, _ in ranges]
        self._ends[first:last] = [end for _, end in ranges]


def count_candles(ranges: Iterable[Range], step: int) -> int:
    """Return how many candles of `step` ms open in these ranges, which begin at the opening of one."""
    return sum(-(-(end - start) // step) for start, end in ranges)
