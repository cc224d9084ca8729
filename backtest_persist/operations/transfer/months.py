"""Months of candles that a dump holds in several forms: as single files, and in one or more series files."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from backtest_persist.contracts import CandleData
from backtest_persist.errors import InvalidPayloadError
from backtest_persist.operations.transfer.scan import Found
from backtest_persist.operations.transfer.series_files import Month, SeriesFile

__all__ = ("Candidate", "SharedMonth", "select_candidates", "split_shared")


@dataclass
class SharedMonth:
    """One month of a series, and all files of its candles."""

    singles: list[Found] = field(default_factory=list[Found])
    series: list[SeriesFile] = field(default_factory=list[SeriesFile])


class Candidate(NamedTuple):
    """A candle of a shared month, and where it is."""

    name: str
    modified: int
    """When its file was modified, in ns."""
    candle: CandleData


def split_shared(
    singles: Sequence[Found], series: Sequence[SeriesFile]
) -> tuple[list[Found], list[SeriesFile], list[SharedMonth]]:
    """Return the files that alone hold the candles of a month or a time, and the months that several forms hold."""
    months: dict[tuple[str, str, str, Month], SharedMonth] = defaultdict(SharedMonth)
    for file in series:
        months[file.exchange_name, file.symbol, file.interval, file.month].series.append(file)
    alone: list[Found] = []
    for single in singles if series else ():
        context = single.contexts[0]
        try:
            month = Month.of(context["timestamp"])
        except InvalidPayloadError:  # no series file has it
            alone.append(single)
            continue
        shared = months.get((context["exchange_name"], context["symbol"], context["interval"], month))
        (alone if shared is None else shared.singles).append(single)
    several = [month for month in months.values() if month.singles or len(month.series) > 1]
    others = [month.series[0] for month in months.values() if not month.singles and len(month.series) == 1]
    return (alone if series else list(singles)), others, several


def select_candidates(
    candidates: Sequence[Candidate],
) -> tuple[list[Candidate], list[tuple[Candidate, Candidate]], int]:
    """Return the newest candidate of each time, those that differ from it, each with it, and how many equal it.

    Of files that are as old as each other the first one is taken.
    """
    newest: dict[int, Candidate] = {}
    for candidate in candidates:
        known = newest.setdefault(candidate.candle["timestamp"], candidate)
        if candidate.modified > known.modified:
            newest[candidate.candle["timestamp"]] = candidate
    others = [(each, taken) for each in candidates if (taken := newest[each.candle["timestamp"]]) is not each]
    differing = [(each, taken) for each, taken in others if each.candle != taken.candle]
    selected = sorted(newest.values(), key=lambda each: each.candle["timestamp"])
    return selected, differing, len(others) - len(differing)
