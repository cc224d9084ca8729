"""Frame libraries: columns as a frame of pandas or polars, and as an Arrow stream of whichever library there is."""

from collections.abc import Mapping
from decimal import Context, Decimal
from importlib import import_module
from typing import Any, cast

from backtest_persist.core.frames.columns import Column, Kind, texts_of
from backtest_persist.errors import SettingsError

__all__ = ("arrow_stream", "import_library", "pandas_column", "pandas_frame", "pandas_instants", "polars_frame")

_NOT_A_TIME = -(2**63)
"""What datetime64 has for None."""
_DECIMAL128 = Context(prec=38)


def import_library(name: str) -> Any:
    """Return pandas or polars; `SettingsError` where it is not installed."""
    try:
        return import_module(name)
    except ModuleNotFoundError:
        message = f'This needs {name}; run: pip install "backtest-persist[{name}]"'
        raise SettingsError(message) from None


def _values(column: Column) -> Any:
    """Return the values of a column as polars and Arrow take them: mixed ones as text, Decimals with equal scales."""
    if column.kind is Kind.MIXED:
        return texts_of(column.values)
    if column.kind is Kind.DECIMAL:
        last = Decimal((0, (1,), -column.scale))
        return [None if value is None else value.quantize(last, context=_DECIMAL128) for value in column.values]
    return column.values


# --- pandas ---


def pandas_frame(columns: Mapping[str, Column], length: int) -> Any:
    """Return a frame of pandas."""
    pandas = import_library("pandas")
    series = {name: pandas_column(column, pandas) for name, column in columns.items()}
    return pandas.DataFrame(series, index=pandas.RangeIndex(length), copy=False)


def pandas_instants(values: Any, pandas: Any) -> Any:
    """Return ms UTC, of which some may be None, as a `DatetimeIndex` in UTC of the same resolution."""
    if isinstance(values, list):
        numpy = import_module("numpy")
        known = [_NOT_A_TIME if value is None else value for value in cast("list[Any]", values)]
        values = numpy.array(known, dtype="int64")
    return pandas.DatetimeIndex(values.view("datetime64[ms]")).tz_localize("UTC")


def pandas_column(column: Column, pandas: Any) -> Any:
    """Return a column as pandas takes it for a frame; of one that is a numpy array nothing is copied."""
    if column.kind is Kind.INSTANT:
        return pandas.Series(pandas_instants(column.values, pandas))
    if column.is_array:
        return column.values
    nullable = {Kind.BOOL: ("bool", "boolean"), Kind.INT: ("int64", "Int64"), Kind.FLOAT: ("float64", "float64")}
    if column.kind in nullable:
        return pandas.Series(column.values, dtype=nullable[column.kind][column.has_none])
    if column.kind is Kind.TEXT:
        return pandas.Series(column.values, dtype=None if column.values else "str")
    return pandas.Series(column.values, dtype="object")


# --- polars ---


def polars_frame(columns: Mapping[str, Column]) -> Any:
    """Return a frame of polars."""
    polars = import_library("polars")
    return polars.DataFrame({name: _polars_column(column, polars) for name, column in columns.items()})


def _polars_column(column: Column, polars: Any) -> Any:
    if column.kind is Kind.INSTANT:
        return polars.Series(column.values, dtype=polars.Int64).cast(polars.Datetime("ms", "UTC"))
    types = {
        Kind.NULL: polars.Null,
        Kind.BOOL: polars.Boolean,
        Kind.INT: polars.Int64,
        Kind.FLOAT: polars.Float64,
        Kind.DECIMAL: polars.Decimal(None, column.scale),
        Kind.TEXT: polars.String,
        Kind.BYTES: polars.Binary,
    }
    if column.kind is Kind.LIST:
        return polars.Series(column.values, dtype=_polars_type(column.type, polars))
    return polars.Series(_values(column), dtype=types.get(column.kind, polars.String))


def _polars_type(plain: Any, polars: Any) -> Any:
    """Return the type of polars for a type of `Column.type`."""
    if isinstance(plain, tuple):
        return polars.List(_polars_type(plain[1], polars))
    if isinstance(plain, dict):
        members = cast("dict[str, Any]", plain).items()
        return polars.Struct({name: _polars_type(member, polars) for name, member in members})
    types = {
        "null": polars.Null,
        "bool": polars.Boolean,
        "int": polars.Int64,
        "float": polars.Float64,
        "str": polars.String,
        "bytes": polars.Binary,
        "datetime": polars.Datetime("us", "UTC"),
    }
    return types[plain]


# --- Arrow ---


def arrow_stream(columns: Mapping[str, Column], requested_schema: object | None) -> object:
    """Return a capsule with an Arrow stream, made by pyarrow, polars or arro3; `SettingsError` without any of them."""
    for build in (_by_pyarrow, _by_polars, _by_arro3):
        try:
            table = build(columns)
        except ModuleNotFoundError:
            continue
        return table.__arrow_c_stream__(requested_schema)
    raise SettingsError('An Arrow stream needs a library for Arrow; run: pip install "backtest-persist[arrow]"')


def _by_pyarrow(columns: Mapping[str, Column]) -> Any:
    pyarrow = import_module("pyarrow")
    arrays = {name: _pyarrow_column(column, pyarrow) for name, column in columns.items()}
    return pyarrow.table(arrays)


def _pyarrow_column(column: Column, pyarrow: Any) -> Any:
    instant = pyarrow.timestamp("ms", "UTC")
    if column.is_array:
        is_instant = column.kind is Kind.INSTANT
        array = pyarrow.array(column.values.view("datetime64[ms]") if is_instant else column.values)
        return array.view(instant) if is_instant else array
    types = {
        Kind.NULL: pyarrow.null(),
        Kind.BOOL: pyarrow.bool_(),
        Kind.INT: pyarrow.int64(),
        Kind.FLOAT: pyarrow.float64(),
        Kind.DECIMAL: pyarrow.decimal128(38, column.scale),
        Kind.INSTANT: instant,
        Kind.TEXT: pyarrow.string(),
        Kind.BYTES: pyarrow.binary(),
    }
    if column.kind is Kind.LIST:
        return pyarrow.array(column.values, type=_pyarrow_type(column.type, pyarrow))
    return pyarrow.array(_values(column), type=types.get(column.kind, pyarrow.string()))


def _pyarrow_type(plain: Any, pyarrow: Any) -> Any:
    """Return the type of pyarrow for a type of `Column.type`."""
    if isinstance(plain, tuple):
        return pyarrow.list_(_pyarrow_type(plain[1], pyarrow))
    if isinstance(plain, dict):
        members = cast("dict[str, Any]", plain).items()
        return pyarrow.struct([(name, _pyarrow_type(member, pyarrow)) for name, member in members])
    types = {
        "null": pyarrow.null(),
        "bool": pyarrow.bool_(),
        "int": pyarrow.int64(),
        "float": pyarrow.float64(),
        "str": pyarrow.string(),
        "bytes": pyarrow.binary(),
        "datetime": pyarrow.timestamp("us", "UTC"),
    }
    return types[plain]


def _by_polars(columns: Mapping[str, Column]) -> Any:
    import_module("polars")
    return polars_frame(columns)


def _by_arro3(columns: Mapping[str, Column]) -> Any:
    arro3 = import_module("arro3.core")
    arrays = {name: _arro3_column(column, arro3) for name, column in columns.items()}
    fields = [arro3.Field(name, array.type, nullable=True) for name, array in arrays.items()]
    return arro3.Table.from_arrays([*arrays.values()], schema=arro3.Schema(fields))


def _arro3_column(column: Column, arro3: Any) -> Any:
    """Return a column; arro3 builds no lists, which become JSON."""
    types = arro3.DataType
    if column.is_array:
        array = arro3.Array(column.values)
        return array.cast(types.timestamp("ms", tz="UTC")) if column.kind is Kind.INSTANT else array
    if column.kind is Kind.INSTANT:
        return arro3.Array(column.values, type=types.int64()).cast(types.timestamp("ms", tz="UTC"))
    if column.kind is Kind.DECIMAL:
        texts = arro3.Array([None if value is None else f"{value:f}" for value in column.values], type=types.string())
        return texts.cast(types.decimal128(38, column.scale))
    simple = {
        Kind.BOOL: types.bool(),
        Kind.INT: types.int64(),
        Kind.FLOAT: types.float64(),
        Kind.BYTES: types.binary(),
    }
    if column.kind in simple:
        return arro3.Array(column.values, type=simple[column.kind])
    return arro3.Array(texts_of(column.values), type=types.string())
