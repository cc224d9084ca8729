"""CandleReport: what became of the candles of one call, and the lines of the log about it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from backtest_persist.contracts import CandleData
from backtest_persist.core.candles.input import CheckedCandles
from backtest_persist.core.candles.ohlcv import NUMBERS, Series
from backtest_persist.logger import LoggerService

__all__ = ("CandleReport", "ReportLog", "has_same_numbers")


@dataclass
class CandleReport:
    """The result of one call of `CandleDbService.store`; times are opening times in ms UTC, in order."""

    new: int = 0
    """How many candles are newly stored."""
    same: int = 0
    """How many were stored already with the same numbers, or were given more than once."""
    different: list[int] = field(default_factory=list[int])
    """The times of those that are stored with other numbers, which were kept."""
    open: list[int] = field(default_factory=list[int])
    """The times of those that had not closed at `as_of`, and were not stored."""
    invalid: list[tuple[int, str]] = field(default_factory=list[tuple[int, str]])
    """The positions of those that cannot be stored, each with what is wrong with it."""
    ignored: tuple[str, ...] = ()
    """The names of the fields or columns that a stored candle does not have."""
    rounded: list[int] = field(default_factory=list[int])
    """The times of those with a number of more digits than a float holds, which is stored as the nearest float."""
    widened: list[int] = field(default_factory=list[int])
    """The times of those whose high or low missed the body by a rounding error, and was set to it."""
    outliers: list[int] = field(default_factory=list[int])
    """The times of those with a price in another unit than the prices around it, stored only if that is allowed."""

    @classmethod
    def of(cls, checked: CheckedCandles) -> "CandleReport":
        """Begin the report on checked candles."""
        return cls(
            same=checked.repeated,
            open=sorted(checked.open),
            invalid=checked.invalid,
            ignored=tuple(sorted(checked.ignored)),
            rounded=sorted(checked.rounded),
            widened=sorted(checked.widened),
            outliers=[*checked.outliers],
        )

    def compare(self, candles: Mapping[int, CandleData], stored: Mapping[int, Mapping[str, Any]]) -> None:
        """Count the given candles that are stored, by opening time, as same or different."""
        different = sorted(
            at for at, document in stored.items() if at in candles and not has_same_numbers(document, candles[at])
        )
        self.different += different
        self.same += len(stored.keys() & candles.keys()) - len(different)


class ReportLog:
    """Logs by one line what was not stored as it was given; of fields that are left out once for each series."""

    def __init__(self, logger: LoggerService) -> None:
        self._logger = logger
        self._told: set[tuple[Series, tuple[str, ...]]] = set()
        """The fields that are not stored and of which the log has told."""

    def tell(self, series: Series, report: CandleReport) -> None:
        """Log a report, if there is anything to tell."""
        counts = {name: len(getattr(report, name)) for name in ("different", "open", "invalid", "rounded", "outliers")}
        fields: dict[str, Any] = {name: count for name, count in counts.items() if count}
        if report.ignored and (series, report.ignored) not in self._told:
            self._told.add((series, report.ignored))
            fields["ignored"] = ",".join(report.ignored)
        for name in ("different", "open", "rounded", "outliers"):
            if times := getattr(report, name):
                fields[f"first_{name}"] = times[0]
        if report.invalid:
            fields["first_invalid"] = report.invalid[0][0]
        if fields:
            log = self._logger.info if fields.keys() == {"open", "first_open"} else self._logger.warning
            log("candles.not_as_given", **series.parts(), **fields)


def has_same_numbers(document: Mapping[str, Any], candle: Mapping[str, Any]) -> bool:
    """Whether what is stored has the numbers of a candle."""
    return all(document.get(name) == candle[name] for name in NUMBERS)
