"""Files of candles as rows of values, with the names of their columns if they have some."""

import csv
import itertools
import json
import re
import sys
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from importlib import import_module
from importlib.util import find_spec
from typing import Any, TextIO, cast

from backtest_persist.core.candles.columns import plain_name
from backtest_persist.errors import InvalidPayloadError, SettingsError
from backtest_persist.operations.candles.files import CandleFile, Kind
from backtest_persist.operations.candles.times import MS

__all__ = ("BATCH", "Row", "Table", "open_table", "plain")

BATCH = 10_000
"""Rows that are read and stored at a time."""
_PREAMBLE = 20
"""Lines that may stand before the header, such as the address of a web site."""
_MIN_FIELDS = 5
"""A time and four prices."""
_MAX_LINE = 100_000
"""Characters; a candle has some 200."""
_BLOCK = 1024 * 1024
"""Characters of JSON that are read at a time, and the most that one entry has."""
_PER_SECOND = {"s": 1, "ms": 1000, "us": 1_000_000, "ns": 1_000_000_000}
_NAIVE_EPOCH = datetime(1970, 1, 1)  # of local times
_BETWEEN = re.compile(r"[\s,]*")

Row = tuple[int, Sequence[Any]]
"""The number of a line, and its values."""


@dataclass(frozen=True)
class Table:
    """The rows of a file of candles."""

    kind: Kind
    names: tuple[str, ...] | None
    """The names of the columns as they are given; None for a file without a header."""
    rows: Iterator[Row]
    position: Callable[[], int]
    """Returns how many bytes of the file have been read."""
    noun: str = "line"
    """What is counted by the numbers of the rows: lines, or the rows themselves."""
    header: int = 0
    """The line of the header; 0 for none."""
    in_ms: Mapping[str, str] = field(default_factory=dict[str, str])
    """The names of columns that hold instants as ms for certain, because they were datetimes, and their time zones."""
    preamble: str = ""
    """What stands before the header."""
    symbol: str = ""
    """The symbol that stands in a line of its own, as yfinance writes it."""


def plain(name: str) -> str:
    """Return the name of a column without its case, brackets and marks: ``Volume (BTC)`` as ``volume_btc``."""
    return plain_name(re.sub(r"[<>()*\"'\[\]]", "", name))


@contextmanager
def open_table(file: CandleFile) -> Generator[Table]:
    """Open the rows of a file; `InvalidPayloadError` for one that has none.

    The rows raise errors of the system and of archives, which `CandleFile.errors` translates.
    """
    with ExitStack() as stack:
        with file.errors():
            if file.kind is Kind.CSV:
                table = _of_csv(file, stack.enter_context(file.open_text()))
            elif file.kind is Kind.JSON:
                table = _of_json(file, stack.enter_context(file.open_text()))
            else:
                table = _of_arrow(file)
        yield table


# --- CSV ---


def _of_csv(file: CandleFile, text: TextIO) -> Table:
    lines = [text.readline(_MAX_LINE) for _ in range(_PREAMBLE + 2)]
    if any(len(line) == _MAX_LINE for line in lines):
        raise file.error(f"it has a line of {_MAX_LINE:,} characters or more; it is no CSV file of candles")
    delimiter = _delimiter(lines)

    def split(line: str) -> list[str]:
        """Return the fields of one line: a quote that is not closed ends with it, as no field has several lines."""
        return next(csv.reader((line,), delimiter=delimiter, skipinitialspace=True), list[str]())

    found = enumerate(map(split, itertools.chain(lines, text)), 1)
    start = ((number, row) for number, row in itertools.islice(found, _PREAMBLE + 1) if len(row) >= _MIN_FIELDS)
    nothing: list[str] = []
    number, first = next(start, (0, nothing))
    if not number:
        raise file.error("it has no lines of five or more fields, as candles are; it is no CSV file of candles")
    header = None if any(map(_is_number, first)) else tuple(name.strip() for name in first)
    symbol = ""
    if header and header[0] == "Price":  # yfinance writes the symbol and the name of its index in a line each
        below = list(itertools.islice(found, 2))
        if below and below[0][1][:1] == ["Ticker"]:
            symbol = "".join(below.pop(0)[1][1:2])
        if below and below[0][1][:1] in (["Date"], ["Datetime"]) and not any(below[0][1][1:]):
            below.pop(0)
        found = itertools.chain(below, found)

    repeated = first if header else None
    """The header, which files that were joined have again."""

    def rows() -> Iterator[Row]:
        if header is None:
            yield number, first
        yield from ((number, row) for number, row in found if row and row != repeated)

    return Table(
        file.kind,
        header,
        rows(),
        lambda: file.position,
        header=number if header else 0,
        preamble="".join(lines[: number - 1]),
        symbol=symbol,
    )


def _delimiter(lines: Iterable[str]) -> str:
    """Return the character that parts the most fields of a line."""
    counts = {mark: max((line.count(mark) for line in lines), default=0) for mark in "\t;,"}
    return next((mark for mark in "\t;" if counts[mark] >= _MIN_FIELDS - 1), ",")


def _is_number(text: str) -> bool:
    try:
        float(text.replace(",", "."))
    except ValueError:
        return False
    return True


# --- JSON ---


def _of_json(file: CandleFile, text: TextIO) -> Table:
    entries = _entries(file, text)
    first: Any = next(entries, None)
    if isinstance(first, dict):
        names = tuple(map(str, cast("dict[Any, Any]", first)))
        if not {"close", "c"}.intersection(map(plain, names)):
            raise file.error(f"it holds an object with {', '.join(names):.100}, which is no candle")
        found = ([entry.get(name) for name in names] for entry in itertools.chain([first], _only(dict, file, entries)))
        return Table(file.kind, names, enumerate(found, 1), lambda: file.position, "entry")
    if not isinstance(first, list):
        raise file.error("it holds no list of candles")
    found = itertools.chain([first], _only(list, file, entries))
    return Table(file.kind, None, enumerate(found, 1), lambda: file.position, "entry")


def _only(kind: type, file: CandleFile, entries: Iterator[Any]) -> Iterator[Any]:
    for entry in entries:
        if not isinstance(entry, kind):
            raise file.error(f"a list of candles holds entries of different kinds, such as {entry!r:.40}")
        yield entry


def _entries(file: CandleFile, text: TextIO) -> Iterator[Any]:
    """Iterate over the entries of a list, or the lines of JSON Lines, of which only a block is in memory."""
    decoder = json.JSONDecoder()
    buffer = text.read(_BLOCK).lstrip("\ufeff \t\r\n")
    at = int(is_list := buffer.startswith("["))
    while True:
        at = _BETWEEN.match(buffer, at).end()  # pyright: ignore[reportOptionalMemberAccess]  # it matches nothing, too
        if is_list and buffer[at : at + 1] == "]":
            return
        try:
            entry, at = decoder.raw_decode(buffer, at)
        except json.JSONDecodeError as error:
            more = text.read(_BLOCK)
            if not more and not is_list and at == len(buffer):
                return
            if not more or len(buffer) - at > _BLOCK:
                problem = "it is cut off" if not more else f"it is no JSON ({error.msg})"
                raise file.error(f"{problem}; download it again") from None
            buffer, at = buffer[at:] + more, 0
        except RecursionError:
            raise file.error("it is nested too deeply; it is no JSON of candles") from None
        except ValueError:
            limit = sys.get_int_max_str_digits()
            raise file.error(f"it has a number of more than {limit:,} digits; it is no JSON of candles") from None
        else:
            yield entry


# --- Parquet and feather ---


def _of_arrow(file: CandleFile) -> Table:
    batches = iter(_by_pyarrow(file) if find_spec("pyarrow") else _by_polars(file))
    first = next(batches, None)
    if first is None:
        raise file.error("it is empty")
    share = 0.0

    def rows() -> Iterator[Row]:
        nonlocal share
        number = itertools.count(1)
        for batch in itertools.chain([first], batches):
            share = batch.share
            yield from zip(number, zip(*batch.columns, strict=True), strict=False)

    return Table(file.kind, first.names, rows(), lambda: round(file.size * share), "row", in_ms=first.in_ms)


@dataclass(frozen=True)
class _Batch:
    names: tuple[str, ...]
    columns: list[list[Any]]
    in_ms: Mapping[str, str]
    share: float
    """The part of the file that has been read with it, from 0 to 1."""


def _instants(ticks: Iterable[int | None], unit: str, zone: str | None) -> list[Any]:
    """Return instants since the epoch in ms, or as naive datetimes if they have no zone.

    One that has part of a ms is a Decimal, and one that no calendar has a text.
    """
    per_s = _PER_SECOND[unit]

    def instant(tick: int | None) -> Any:
        if tick is None:
            return None
        millis, rest = divmod(tick * 1000, per_s)
        if rest:
            return Decimal(tick) * 1000 / per_s
        if zone is not None:
            return millis
        try:
            return _NAIVE_EPOCH + millis * MS
        except OverflowError:
            return f"{tick} {unit} since 1970"

    return list(map(instant, ticks))


def _by_pyarrow(file: CandleFile) -> Iterator[_Batch]:
    pyarrow = import_module("pyarrow")
    try:
        for batch, share in _parquet_batches(file) if file.kind is Kind.PARQUET else _feather_batches(file, pyarrow):
            names = tuple(batch.schema.names)
            columns: list[list[Any]] = []
            in_ms: dict[str, str] = {}
            for name, column in zip(names, batch.columns, strict=True):
                if pyarrow.types.is_timestamp(column.type):
                    zone: str | None = column.type.tz
                    columns.append(_instants(column.cast(pyarrow.int64()).to_pylist(), column.type.unit, zone))
                    if zone is not None:
                        in_ms[name] = zone
                else:
                    columns.append(column.to_pylist())
            yield _Batch(names, columns, in_ms, share)
    except (pyarrow.ArrowException, OSError, OverflowError, ValueError) as error:
        raise _damaged(file, error) from None


def _parquet_batches(file: CandleFile) -> Iterator[tuple[Any, float]]:
    parquet = import_module("pyarrow.parquet").ParquetFile(file.path)
    done = 0
    for batch in parquet.iter_batches(batch_size=BATCH):
        done += batch.num_rows
        yield batch, done / parquet.metadata.num_rows


def _feather_batches(file: CandleFile, pyarrow: Any) -> Iterator[tuple[Any, float]]:
    with pyarrow.memory_map(str(file.path)) as mapped:
        reader = import_module("pyarrow.ipc").open_file(mapped)
        for number in range(reader.num_record_batches):
            batch = reader.get_batch(number)
            for start in range(0, batch.num_rows, BATCH):
                yield batch.slice(start, BATCH), (number + 1) / reader.num_record_batches


def _damaged(file: CandleFile, error: Exception) -> InvalidPayloadError:
    problem = " ".join(str(error).split()).rstrip(".")
    return file.error(f"it is damaged or cut off ({problem:.100}); download it again")


def _by_polars(file: CandleFile) -> Iterator[_Batch]:
    try:
        polars = import_module("polars")
    except ModuleNotFoundError:
        raise SettingsError(
            f'{file.path} needs a library for {file.kind}; run: pip install "backtest-persist[polars]"'
        ) from None
    try:
        with file.path.open("rb") as raw:  # a path is taken for a pattern
            frame = polars.read_parquet(raw) if file.kind is Kind.PARQUET else polars.read_ipc(raw)
    except (polars.exceptions.PolarsError, OSError) as error:
        raise _damaged(file, error) from None
    kinds = {name: kind for name, kind in frame.schema.items() if isinstance(kind, polars.Datetime)}
    zoned = {name: kind.time_zone for name, kind in kinds.items() if kind.time_zone is not None}
    done = 0
    for part in frame.iter_slices(BATCH):
        done += part.height
        columns: list[list[Any]] = []
        for column in part.get_columns():
            kind = kinds.get(column.name)
            try:
                columns.append(
                    column.to_list()
                    if kind is None
                    else _instants(column.to_physical().to_list(), kind.time_unit, kind.time_zone)
                )
            except (OverflowError, ValueError) as error:
                raise _damaged(file, error) from None
        yield _Batch(tuple(frame.columns), columns, zoned, done / frame.height)
