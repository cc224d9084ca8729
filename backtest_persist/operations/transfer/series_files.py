"""Series files: the candles of one series and one month (UTC), a line of JSON each, compressed by gzip.

They are an alternative to the framework's file for each candle, which is slow beyond some 100,000 of them. A file is
``data/candle-series/<exchange>/<symbol>/<interval>/<YYYY-MM>.ndjson.gz``, with names escaped as everywhere in a dump;
without compression, and ``.ndjson``, it is read as well.
"""

import gzip
import re
import time
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import IO, NamedTuple, cast

from bson.int64 import Int64

from backtest_persist.backends.json import codec
from backtest_persist.backends.json.atomic import cause_of, read_file, replace_file
from backtest_persist.backends.json.layout import SERIES_PATH, Layout
from backtest_persist.backends.json.paths import ContextPaths
from backtest_persist.connections import Document
from backtest_persist.contracts import CandleData
from backtest_persist.core.candles.input import checked_candle
from backtest_persist.core.candles.ohlcv import NUMBERS, ImpossibleCandleError, Series, candle_numbers, opening_time
from backtest_persist.core.instants import admitted
from backtest_persist.domains.candle import CANDLE, CandleRow
from backtest_persist.errors import BacktestPersistError, InvalidKeyError, InvalidPayloadError

__all__ = ("SERIES_LAYOUT", "Lines", "Month", "SeriesFile", "SeriesWriter", "month_of_file", "read_lines")

SERIES_LAYOUT = Layout(replace(CANDLE, files=replace(CANDLE.files, path=SERIES_PATH)))
"""The directories of series files, which are those of the files of candles below another one."""

LINES_AT_ONCE = 5000
_MAX_LINE = 10_000
"""Bytes; a candle has some 120."""
_LEVEL = 3
"""The level of compression: a quarter of the text, at a fifth of the time that it takes to make the text."""
_NAME = re.compile(r"(?!0000)([0-5]\d{3})-(0[1-9]|1[0-2])\.ndjson(\.gz)?", re.ASCII)
"""An instant in ms, as candles have it, lies before the year 5139."""
_EPOCH = datetime.fromtimestamp(0, UTC)
_MS = timedelta(milliseconds=1)


class Month(NamedTuple):
    """A month of the calendar, in UTC."""

    year: int
    month: int

    @classmethod
    def of(cls, timestamp: int) -> "Month":
        """Return the month of an instant in ms; `InvalidPayloadError` for one before the year 1."""
        try:
            at = _EPOCH + timestamp * _MS
        except OverflowError:
            raise InvalidPayloadError(f"timestamp {timestamp} lies before the year 1, so no month has it.") from None
        return cls(at.year, at.month)

    @property
    def file(self) -> str:
        """The name of its file."""
        return f"{self.year:04}-{self.month:02}.ndjson.gz"

    def times(self) -> range:
        """Return its instants in ms."""
        start = datetime(self.year, self.month, 1, tzinfo=UTC)
        end = datetime(self.year + self.month // 12, self.month % 12 + 1, 1, tzinfo=UTC)
        return range((start - _EPOCH) // _MS, (end - _EPOCH) // _MS)


def month_of_file(name: str) -> Month | None:
    """Return the month of a file of this name; None for a name that no series file has."""
    found = _NAME.fullmatch(name)
    return Month(int(found[1]), int(found[2])) if found else None


# --- writing ---


class SeriesWriter:
    """Writes candles, which come in the order of their unique index, to series files; does I/O.

    A file is written when its month is over, and the last one by `close`. It is on the disk after the caller's `sync`.
    """

    def __init__(self, root: Path) -> None:
        self.files = 0
        """How many files were written."""
        self._root = root
        self._series: Series | None = None
        self._directory = root
        self._month = Month(1, 1)
        self._times = range(0)
        self._last: int | None = None
        self._lines: list[bytes] = []

    def add(self, document: Document) -> None:
        """Add the candle of a document; `InvalidKeyError` or `InvalidPayloadError` for one that no file can hold."""
        names = [document.get(name) for name in ("symbol", "interval", "exchangeName")]
        timestamp, numbers = document.get("timestamp"), [document.get(name) for name in NUMBERS]
        if type(timestamp) is not Int64 or set(map(type, numbers)) != {float}:  # of another program
            row = CandleRow.from_document(document)
            names, timestamp = [row.symbol, row.interval, row.exchange_name], row.timestamp
            numbers = [row.open, row.high, row.low, row.close, row.volume]
        known = self._series
        if known is None or names != [known.symbol, known.interval, known.exchange_name]:
            known = Series(*cast("list[str]", names))
        try:
            at = opening_time(int(timestamp), known.interval, admitted)
            candle = candle_numbers(at, numbers, rounded=[], widened=[])
        except ImpossibleCandleError as problem:
            raise known.error(str(problem), int(timestamp)) from None
        self._turn_to(known, at)
        if at == self._last:
            raise known.error("another document is of the same candle, and was written", at)
        self._last = at
        self._lines.append(_line(candle))

    def _turn_to(self, series: Series, timestamp: int) -> None:
        """Write the file that is complete if a candle belongs to another one."""
        if series == self._series and timestamp in self._times:
            return
        month = Month.of(timestamp)
        self.close()
        if series != self._series:
            self._directory = ContextPaths(self._root, SERIES_LAYOUT, series.parts()).claim()
        self._series, self._month, self._times, self._last = series, month, month.times(), None

    def close(self) -> None:
        """Write the file that is not complete yet."""
        if not self._lines:
            return
        path = self._directory / self._month.file
        earlier = read_file(path) or b""  # if the server's order is another than expected
        text = b"".join(line + b"\n" for line in self._lines)
        replace_file(path, earlier + gzip.compress(text, _LEVEL, mtime=0), flush=False)
        self.files += not earlier
        self._lines = []


def _line(candle: CandleData) -> bytes:
    """Return the text that `codec.dumps` gives a candle, in a third of the time."""
    return (
        f'{{"timestamp":{candle["timestamp"]},"open":{candle["open"]!r},"high":{candle["high"]!r},'
        f'"low":{candle["low"]!r},"close":{candle["close"]!r},"volume":{candle["volume"]!r}}}'
    ).encode()


# --- reading ---


@dataclass(frozen=True)
class SeriesFile:
    """A series file that was found."""

    path: Path
    month: Month
    symbol: str
    interval: str
    exchange_name: str


@dataclass
class Lines:
    """Some lines of a series file."""

    file: SeriesFile
    candles: dict[int, tuple[int, CandleData]] = field(default_factory=dict[int, tuple[int, CandleData]])
    """The candles that can be stored, by time, each with the number of its first line, from 1 on."""
    repeated: int = 0
    """The number of lines that repeat one of them."""
    problems: list[tuple[int | None, str]] = field(default_factory=list[tuple[int | None, str]])
    """What cannot be imported and why, by the number of the line; None for the whole file, or the rest of it."""
    ignored: set[str] = field(default_factory=set[str])
    """The names of fields that are not stored."""
    is_last: bool = False
    """Whether no further lines of this file follow."""


def read_lines(files: Sequence[SeriesFile]) -> Iterator[Lines]:
    """Iterate over all lines of series files, in parts; does I/O."""
    for file in files:
        lines = Lines(file)
        try:
            yield from _read_file(file, lines)
        except InvalidKeyError as error:
            yield Lines(file, problems=[(None, str(error))], is_last=True)


def _read_file(file: SeriesFile, lines: Lines) -> Iterator[Lines]:
    series = Series(file.symbol, file.interval, file.exchange_name)
    reader = _LineReader(series, file.month.times())
    number = 0
    try:
        with _opened(file.path) as opened:
            while line := opened.readline(_MAX_LINE + 1):
                number += 1
                if len(line) > _MAX_LINE:
                    raise ValueError(f"line {number} is longer than {_MAX_LINE:,} bytes")
                reader.read(number, line, lines)
                if not number % LINES_AT_ONCE:
                    yield lines
                    lines = Lines(file)
    except (EOFError, OSError, ValueError, zlib.error) as error:
        problem = cause_of(error) if isinstance(error, OSError) and error.strerror else str(error)
        place = f" after line {number}" if number else ""
        lines.problems.append((None, f"cannot be read{place}: {problem}"))
    lines.is_last = True
    yield lines


def _opened(path: Path) -> IO[bytes]:
    return cast("IO[bytes]", gzip.open(path, "rb")) if path.suffix == ".gz" else path.open("rb")


class _LineReader:
    """Reads the lines of the candles of one month of a series."""

    def __init__(self, series: Series, times: range) -> None:
        self._series = series
        self._times = times
        self._latest = int(time.time() * 1000) - series.step
        self._taken: dict[int, tuple[int, CandleData]] = {}
        """The candles of all lines so far, by time, each with its line."""

    def read(self, number: int, line: bytes, lines: Lines) -> None:
        """Read one line; an empty one is nothing."""
        if not line.strip():
            return
        try:
            candle = checked_candle(self._series, codec.loads(line), admitted, lines.ignored)
        except (BacktestPersistError, ValueError) as error:
            lines.problems.append((number, str(error)))
            return
        if candle["timestamp"] not in self._times:
            lines.problems.append((number, "it holds a candle of another month"))
        elif candle["timestamp"] > self._latest:
            lines.problems.append((number, "the candle has not closed yet"))
        else:
            first, known = self._taken.setdefault(candle["timestamp"], (number, candle))
            if first == number:
                lines.candles[candle["timestamp"]] = number, candle
            elif known != candle:
                lines.problems.append((number, f"line {first} holds another candle of this time, which was taken"))
            else:
                lines.repeated += 1
