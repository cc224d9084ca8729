"""Files of candles as rows of values, with the names of their columns if they have some."""

import csv
import itertools
import json
import re
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from typing import Any, TextIO, cast

from backtest_persist.core.candles.columns import plain_name
from backtest_persist.errors import InvalidPayloadError, SettingsError
from backtest_persist.operations.candles.files import CandleFile, Kind

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
    reader = csv.reader(itertools.chain(lines, text), delimiter=delimiter, skipinitialspace=True)
    first = next((row for row in itertools.islice(reader, _PREAMBLE + 1) if len(row) >= _MIN_FIELDS), None)
    if first is None:
        raise file.error("it has no lines of five or more fields, as candles are; it is no CSV file of candles")
    header = None if any(map(_is_number, first)) else tuple(name.strip() for name in first)
    number = reader.line_num
    if (
        header and header[0] == "Price"
    ):  # yfinance writes its two levels of names and the name of its index in a line each
        next(reader, None)
        next(reader, None)

    repeated = first if header else None
    """The header, which files that were joined have again."""

    def rows() -> Iterator[Row]:
        if header is None:
            yield number, first
        for row in reader:
            if row and row != repeated:
                yield reader.line_num, row

    return Table(file.kind, header, rows(), lambda: file.position, header=number if header else 0)


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


def _by_pyarrow(file: CandleFile) -> Iterator[_Batch]:
    pyarrow = import_module("pyarrow")
    try:
        for batch, share in _parquet_batches(file) if file.kind is Kind.PARQUET else _feather_batches(file, pyarrow):
            names = tuple(batch.schema.names)
            columns: list[list[Any]] = []
            in_ms: dict[str, str] = {}
            for name, column in zip(names, batch.columns, strict=True):
                if pyarrow.types.is_timestamp(column.type):
                    column_zone: str | None = column.type.tz
                    unit = "us" if column_zone is None else "ms"
                    column = column.cast(pyarrow.timestamp(unit, column_zone), safe=False)
                    if column_zone is not None:
                        column = column.cast(pyarrow.int64())
                        in_ms[name] = column_zone
                columns.append(column.to_pylist())
            yield _Batch(names, columns, in_ms, share)
    except (pyarrow.ArrowException, OSError) as error:
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
        frame = polars.read_parquet(file.path) if file.kind is Kind.PARQUET else polars.read_ipc(file.path)
    except (polars.exceptions.PolarsError, OSError) as error:
        raise _damaged(file, error) from None
    zoned: dict[str, str] = {
        name: kind.time_zone
        for name, kind in frame.schema.items()
        if isinstance(kind, polars.Datetime) and kind.time_zone is not None
    }
    frame = frame.with_columns(polars.col(name).dt.epoch("ms") for name in zoned)
    done = 0
    for part in frame.iter_slices(BATCH):
        done += part.height
        columns = [column.to_list() for column in part.get_columns()]
        yield _Batch(tuple(frame.columns), columns, zoned, done / frame.height)
