"""Ranges of time: a set of instants, compared with one of ints."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from backtest_persist.operations.candles.ranges import Ranges, count_candles

BOUND = st.integers(0, 30)
CHANGE = st.tuples(st.booleans(), BOUND, BOUND)


def instants(ranges: list[tuple[int, int]]) -> set[int]:
    """The instants in ranges."""
    return {at for start, end in ranges for at in range(start, end)}


@given(st.lists(CHANGE, max_size=12), BOUND, BOUND)
def test_ranges_are_a_set_of_instants(changes: list[tuple[bool, int, int]], start: int, end: int) -> None:
    """What was added and removed is there or not, in ranges that are sorted and do not touch."""
    ranges, expected = Ranges(), set[int]()
    for adds, first, last in changes:
        if adds:
            ranges.add(first, last)
            expected |= {*range(first, last)}
        else:
            ranges.remove(first, last)
            expected -= {*range(first, last)}
    found = list(ranges)
    assert instants(found) == expected
    assert all(first < last for first, last in found)
    assert all(last < first for (_, last), (first, _) in pairwise(found))
    assert len(ranges) == len(found)
    within = ranges.within(start, end)
    assert instants(within) == expected & {*range(start, end)}
    assert all(first < last for first, last in within)
    assert ranges.starting_within(start, end) == [(first, last) for first, last in found if start <= first < end]
    if start <= end:
        assert ranges.touching(start, end) == [(first, last) for first, last in found if first <= end and last >= start]


@given(st.lists(st.tuples(BOUND, BOUND)), st.lists(st.tuples(BOUND, BOUND)))
def test_ranges_are_split_by_others(given: list[tuple[int, int]], others: list[tuple[int, int]]) -> None:
    """The parts are an intersection and a difference, also where the others touch or overlap each other."""
    ranges = Ranges(given)
    for sorted_others in (list(Ranges(others)), sorted((start, end) for start, end in others if start < end)):
        inside, outside = ranges.split(sorted_others)
        assert instants(list(inside)) == instants(given) & instants(others)
        assert instants(list(outside)) == instants(given) - instants(others)


def test_candles_in_ranges() -> None:
    """A candle that opens in a range counts, also where the range ends amid it."""
    assert count_candles([], 10) == 0
    assert count_candles([(0, 30), (50, 55)], 10) == 4
