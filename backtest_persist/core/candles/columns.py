"""Candle columns: what is given as columns or as a frame, read without a dependency on the library of the frame."""

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import import_module
from typing import Any, cast

from backtest_persist.core.candles.ohlcv import ImpossibleCandleError
from backtest_persist.core.frames.frame import CandleFrame
from backtest_persist.errors import SettingsError

__all__ = ("CERTAIN_NAMES", "TIME_NAMES", "Columns", "find_columns", "plain_name")

CERTAIN_NAMES = ("timestamp", "open_time", "opentime")
"""The names of an opening time, as `plain_name` returns them; the first that there is counts."""
TIME_NAMES = frozenset((*CERTAIN_NAMES, "datetime", "date", "time"))
"""The names of what is an opening time if no other of them is there."""
_TIMES = frozenset(("date", "datetime", "datetime64"))
"""The kinds, as pandas calls them, of what an index holds that has the opening times."""


class Columns:
    """Columns of the same length by the names that they were given under."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        """The name of a row in a message."""
        self._names: list[Any] = []
        self._values: list[Sequence[Any]] = []
        self._in_ms: set[Any] = set()

    def add(self, name: Any, values: Sequence[Any], *, in_ms: bool = False) -> None:
        """Add a column; `in_ms` says that it holds instants as ms for certain, because they were datetimes."""
        self._names.append(name)
        self._values.append(values)
        if in_ms:
            self._in_ms.add(name)

    @property
    def names(self) -> tuple[Any, ...]:
        """The names of all columns."""
        return tuple(self._names)

    @property
    def in_ms(self) -> frozenset[Any]:
        """The names of those that hold instants as ms for certain."""
        return frozenset(self._in_ms)

    def rows(self) -> Iterator[dict[Any, Any]]:
        """Iterate over the values of each row by name; `ImpossibleCandleError` for columns that make no rows."""
        lengths = {name: len(values) for name, values in zip(self._names, self._values, strict=True)}
        if len(lengths) < len(self._names):
            raise ImpossibleCandleError(f"several columns have one name among {', '.join(map(str, self._names)):.200}")
        if len(set(lengths.values())) > 1:
            described = ", ".join(f"{name} {length}" for name, length in lengths.items())
            raise ImpossibleCandleError(f"the columns are of different lengths: {described:.200}")
        return (dict(zip(self._names, row, strict=True)) for row in zip(*self._values, strict=True))


def find_columns(candles: Any) -> Columns | None:
    """Return the columns of a mapping of columns, a frame or an Arrow stream; None for anything else.

    `ImpossibleCandleError` for a mapping that holds no columns; `SettingsError` for an Arrow stream that no installed
    library reads.
    """
    if isinstance(candles, CandleFrame):
        return _of_mapping(candles.columns)
    pandas, polars = sys.modules.get("pandas"), sys.modules.get("polars")
    if pandas is not None and isinstance(candles, pandas.DataFrame):
        return _of_pandas(candles, pandas)
    if polars is not None and isinstance(candles, polars.DataFrame):
        return _of_polars(candles, polars)
    if any(library is not None and isinstance(candles, library.Series) for library in (pandas, polars)):
        return None  # which is a stream, too, but of one column
    if hasattr(candles, "__arrow_c_stream__"):
        return _of_arrow(candles)
    return _of_mapping(cast("Mapping[Any, Any]", candles)) if isinstance(candles, Mapping) else None


def plain_name(name: Any) -> str:
    """Return the name of a field or column in lower case, with ``_`` for blanks."""
    return str(name).strip().lower().replace(" ", "_")


def _of_mapping(given: Mapping[Any, Any]) -> Columns:
    columns = Columns("row of columns")
    for name, values in given.items():
        if not isinstance(values, Iterable) or isinstance(values, str | bytes | Mapping):
            raise ImpossibleCandleError(f"a {type(given).__name__} of values is one candle; put it into a list")
        column = cast("Any", values)
        if type(column).__module__ == "numpy" and column.dtype.kind == "M":
            column = column.astype("datetime64[us]")  # of those in ns, `tolist` makes ints
        columns.add(name, column.tolist() if hasattr(column, "tolist") else list(column))
    return columns


def _of_pandas(frame: Any, pandas: Any) -> Columns:
    """Return the columns of a frame of pandas; its index is one if it has the times and no column has them."""
    columns = Columns("row of a DataFrame")
    if frame.columns.nlevels > 1:
        _check_symbols(frame.columns)
    names = [_first_level(name) for name in frame.columns]
    series = [frame.iloc[:, place] for place in range(len(names))]
    has_times = frame.index.inferred_type in _TIMES or plain_name(frame.index.name) in TIME_NAMES
    if has_times and not TIME_NAMES.intersection(map(plain_name, names)):
        names, series = ["timestamp", *names], [frame.index.to_series(), *series]
    for name, values in zip(names, series, strict=True):
        if isinstance(values.dtype, pandas.DatetimeTZDtype) and not values.hasnans:
            columns.add(name, values.astype("datetime64[ms, UTC]").astype("int64").tolist(), in_ms=True)
        else:
            columns.add(name, values.tolist())
    return columns


def _check_symbols(names: Sequence[tuple[Any, ...]]) -> None:
    """Refuse what yfinance gives for several symbols, or with the symbol before the price."""
    first, second = (list(dict.fromkeys(name[level] for name in names)) for level in (0, 1))
    if "close" in map(plain_name, second) and "close" not in map(plain_name, first):
        raise ImpossibleCandleError(
            f"the columns begin with a symbol; give the candles of one, such as frame[{first[0]!r}]"
        )
    if len(first) < len(names):
        raise ImpossibleCandleError(
            f"the columns are of several symbols; give those of one, such as frame.xs({second[0]!r}, axis=1, level=1)"
        )


def _first_level(name: Any) -> Any:
    """Return the name of a column without the symbol that yfinance adds."""
    return name[0] if type(name) is tuple and name else name  # pyright: ignore[reportUnknownVariableType]


def _of_polars(frame: Any, polars: Any) -> Columns:
    columns = Columns("row of a DataFrame")
    for column in frame.get_columns():
        if isinstance(column.dtype, polars.Datetime) and column.dtype.time_zone is not None:
            columns.add(column.name, column.dt.epoch("ms").to_list(), in_ms=True)
        else:
            columns.add(column.name, column.to_list())
    return columns


def _of_arrow(stream: Any) -> Columns:
    for read in (_by_pyarrow, _by_polars, _by_arro3):
        try:
            return read(stream)
        except ModuleNotFoundError:
            continue
        except ValueError as error:
            raise ImpossibleCandleError(f"a {type(stream).__name__} is not a table with columns: {error}") from None
    raise SettingsError(
        f'Candles in a {type(stream).__name__} need a library for Arrow; run: pip install "backtest-persist[arrow]"'
    )


def _by_pyarrow(stream: Any) -> Columns:
    pyarrow = import_module("pyarrow")
    table, columns = pyarrow.table(stream), Columns(f"row of a {type(stream).__name__}")
    for name, column in zip(table.column_names, table.columns, strict=True):
        if pyarrow.types.is_timestamp(column.type) and column.type.tz is not None:
            whole = column.cast(pyarrow.timestamp("ms", column.type.tz), safe=False).cast(pyarrow.int64())
            columns.add(name, whole.to_pylist(), in_ms=True)
        else:
            columns.add(name, column.to_pylist())
    return columns


def _by_polars(stream: Any) -> Columns:
    polars = import_module("polars")
    try:
        return _of_polars(polars.DataFrame(stream), polars)
    except polars.exceptions.SchemaError as error:
        raise ValueError(str(error)) from None


def _by_arro3(stream: Any) -> Columns:
    table, columns = import_module("arro3.core").Table(stream), Columns(f"row of a {type(stream).__name__}")
    for name in table.column_names:
        columns.add(name, [value.as_py() for value in table[name]])
    return columns
