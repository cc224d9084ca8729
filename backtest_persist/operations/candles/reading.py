"""Reading of the rows of a file as candles, in chunks, once it is known how."""

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, NamedTuple, get_args

from backtest_persist.contracts import CandleInterval
from backtest_persist.core.candles.ohlcv import COLUMNS, NUMBERS, Series, interval_step_ms
from backtest_persist.core.candles.session_days import session_day
from backtest_persist.errors import InvalidKeyError
from backtest_persist.operations.candles.files import CandleFile
from backtest_persist.operations.candles.layouts import Places
from backtest_persist.operations.candles.tables import BATCH, Row, Table, plain
from backtest_persist.operations.candles.times import EPOCH, UNIT_NAMES, Times

__all__ = ("NULLS", "Chunk", "Reading", "SkippedRow", "in_ms", "interval_of", "other_interval")

_EXACT_LENGTH = 15
"""A text of so many characters has no more digits than a float holds."""
_FEW = 20
"""Distances of rows that say nothing if they are no interval: from Friday to Monday, or between rare trades."""
_MANY = 100
"""Rows that say that a file goes on with another interval."""
_INTERVALS = {interval_step_ms(name): name for name in get_args(CandleInterval)} | {1000: "1s", 604_800_000: "1w"}
NULLS = frozenset({"", "null", "none", "nan", "n/a", "-"})


class SkippedRow(NamedTuple):
    """A row that was left out."""

    line: int
    reason: str


@dataclass
class Chunk:
    """Some rows of a file."""

    rows: int = 0
    position: int = 0
    """How many bytes of the file have been read with them."""
    lines: list[int] = field(default_factory=list[int])
    """The line of each candle."""
    candles: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    skipped: list[SkippedRow] = field(default_factory=list[SkippedRow])


class Reading:
    """The candles of an open file, as `open_reading` has found that they have to be read.

    `same` are the places of what has one value in a series, with that value.
    """

    def __init__(
        self,
        file: CandleFile,
        table: Table,
        sample: Sequence[Row],
        series: Series,
        layout: Sequence[str],
        names: Sequence[str],
        places: Places,
        times: Times,
        comma: bool,
        session: timedelta | int | None,
        same: Sequence[tuple[int, str]],
    ) -> None:
        self._file, self._table, self._series = file, table, series
        self._rows = itertools.chain(sample, table.rows)
        self._layout, self._names, self._places, self._times, self._comma = layout, names, places, times, comma
        self._numbers = [*places.prices, *(() if places.volume is None else (places.volume,))]
        self._session = session
        self._same = same

    @property
    def noun(self) -> str:
        """What the numbers of rows count."""
        return self._table.noun

    @property
    def layout(self) -> str:
        """The layout in words; complete when all has been read."""
        units = sorted(self._times.units.items(), key=lambda item: item[1])
        found = [
            f"times in {UNIT_NAMES[unit]}" if not number else f"from {self.noun} {line:,} on in {UNIT_NAMES[unit]}"
            for number, (unit, line) in enumerate(units)
        ]
        return ", ".join([*self._layout, *found])

    @property
    def ignored(self) -> tuple[str, ...]:
        """The names of the columns that are not stored."""
        taken = {*self._numbers, *self._places.time, self._places.symbol}
        named = [name for place, name in enumerate(self._names) if place not in taken]
        return tuple(name for name in named if plain(name) not in ("", "-", "ignore", "unnamed:_0"))

    def chunks(self) -> Iterator[Chunk]:
        """Iterate over all rows; `InvalidPayloadError` where they begin to have another interval."""
        while True:
            chunk = Chunk()
            with self._file.errors():
                for line, row in itertools.islice(self._rows, BATCH):
                    chunk.rows += 1
                    try:
                        chunk.candles.append(self.read(line, row))
                        chunk.lines.append(line)
                    except ValueError as problem:
                        chunk.skipped.append(SkippedRow(line, str(problem)))
            if not chunk.rows:
                return
            times = (candle["timestamp"] for candle in chunk.candles)
            if len(chunk.candles) > _MANY and (wrong := other_interval(times, self._series.step)):
                raise self._file.error(
                    f"from {self.noun} {chunk.lines[0]:,} on its rows are {wrong} apart, not {self._series.interval}; "
                    "split it there"
                )
            chunk.position = self._table.position()
            yield chunk

    def read(self, line: int, row: Sequence[Any]) -> dict[str, Any]:
        """Return one candle; `ValueError` says why the row is none."""
        if len(row) != len(self._names) and any(row[len(self._names) :]) | (len(row) < len(self._names)):
            raise ValueError(f"the number of its fields is {len(row)}, not {len(self._names)}")
        for place, first in self._same:
            if (found := str(row[place]).strip()) != first and found.lower() not in NULLS:
                raise ValueError(
                    f"its {self._names[place]} is {found!r:.40}, and that of the first row is {first!r:.40}"
                )
        try:
            timestamp = self._times.read(row, line)
            if self._session is not None:
                timestamp = session_day(timestamp, self._session)
        except (InvalidKeyError, OverflowError) as error:
            raise ValueError(f"its time cannot be stored: {error}".rstrip(".")) from None
        values = [row[place] for place in self._numbers]
        try:
            numbers = [self._number(value) for value in values]
        except (TypeError, ValueError):
            raise ValueError(self._problem(values)) from None
        if self._places.volume is None:
            numbers.append(0.0)
        return dict(zip(COLUMNS, (timestamp, *numbers), strict=True))

    def _number(self, value: Any) -> Any:
        """Return a number as the nearest float, or as it is given where digits may be lost, which the store reports."""
        if type(value) is not str:
            if value is None:
                raise TypeError
            return value
        if self._comma or "_" in value:
            value = _with_point(value)
        number = float(value)
        return number if len(value) <= _EXACT_LENGTH else value.strip()

    def _problem(self, values: Sequence[Any]) -> str:
        """Say what is wrong with the numbers of a row."""
        if all(str(value).strip().lower() in NULLS for value in values):
            return "it has no prices"
        for name, value in zip(NUMBERS, values, strict=False):
            try:
                self._number(value)
            except (TypeError, ValueError):
                return f"its {name} is {str(value)!r:.40}, not a number"
        raise AssertionError


def other_interval(times: Iterable[int | datetime], step: int) -> str:
    """Return the commonest distance of neighbours in words if it says that they have another interval, or ``""``."""
    distances = Counter(abs(after - before) for before, after in itertools.pairwise(map(in_ms, times)))
    del distances[0]
    if not distances:
        return ""
    [(commonest, count)] = distances.most_common(1)
    total = distances.total()
    is_gap = total < _FEW and commonest not in _INTERVALS and commonest % step == 0
    if commonest == step or count < total / 2 or is_gap:
        return ""
    return _INTERVALS.get(commonest) or str(timedelta(milliseconds=commonest))


def interval_of(length: float) -> str:
    """Return the interval from whose opening to its close so many ms pass, or ``""``."""
    return next((name for ms, name in _INTERVALS.items() if 0.9 * ms <= length <= ms and ms - length <= 1000), "")


def in_ms(timestamp: int | datetime) -> int:
    """Return an opening time, as a row has it, in ms UTC."""
    return timestamp if isinstance(timestamp, int) else round((timestamp - EPOCH).total_seconds() * 1000)


def _with_point(text: str) -> str:
    if "." in text or "_" in text:
        raise ValueError
    return text.replace(",", ".")
