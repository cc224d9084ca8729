"""Raw columns: candles in BSON become numpy arrays without an object for each."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from bson.int64 import Int64

from backtest_persist.core.candles.ohlcv import COLUMNS, NUMBERS, import_numpy

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ("CONVERSION", "converted_columns", "joined_columns", "raw_columns")

_INT64, _DOUBLE = 0x12, 0x01
_LENGTH = 4 + sum(1 + len(name) + 1 + 8 for name in COLUMNS) + 1
"""The bytes of a document of these fields in these types (https://bsonspec.org), in whichever order they are."""
_MAX_ORDERS = 8
"""Each way of writing a document leaves its fields in another order; there are not many."""
_NUMBER_TYPES = ("double", "int", "long")


def _conversion() -> dict[str, Any]:
    is_number: dict[str, Any] = {name: {"$in": [{"$type": f"${name}"}, _NUMBER_TYPES]} for name in COLUMNS}
    is_time = {"$cond": [is_number["timestamp"], {"$eq": [{"$trunc": "$timestamp"}, "$timestamp"]}, False]}
    time = {"$cond": [is_number["timestamp"], {"$toLong": "$timestamp"}, Int64(0)]}
    is_number["open"] = {"$and": [is_number["open"], is_time]}
    numbers = {name: {"$cond": [is_number[name], {"$toDouble": f"${name}"}, math.nan]} for name in NUMBERS}
    return {"_id": 0, "timestamp": time, **numbers}


CONVERSION = _conversion()
"""The projection of a pipeline whose documents have the types of the columns, with NaN for what is no number."""


def raw_columns(documents: bytes) -> "dict[str, NDArray[Any]] | None":
    """Return the columns of documents that stand one after another: `timestamp` int64, the others float64.

    None unless each document has the fields of a candle, and no others, in just these types.
    """
    numpy = import_numpy()
    if len(documents) % _LENGTH:
        return None
    rows = numpy.frombuffer(documents, dtype=numpy.uint8).reshape(-1, _LENGTH)
    columns = {name: numpy.empty(len(rows), "int64" if name == "timestamp" else "float64") for name in COLUMNS}
    pending = numpy.arange(len(rows))
    for _ in range(_MAX_ORDERS):
        if not len(pending):
            return columns
        first = rows[pending[0]]
        places = _places(first.tobytes())
        if places is None:
            return None
        is_header = numpy.ones(_LENGTH, dtype=bool)
        for place in places.values():
            is_header[place : place + 8] = False
        alike = (rows[:, is_header] == first[is_header]).all(axis=1)
        fields = numpy.frombuffer(
            documents,
            dtype={
                "names": list(places),
                "formats": ["<i8" if name == "timestamp" else "<f8" for name in places],
                "offsets": list(places.values()),
                "itemsize": _LENGTH,
            },
        )
        for name, column in columns.items():
            column[alike] = fields[name][alike]
        pending = pending[~alike[pending]]
    return columns if not len(pending) else None


def converted_columns(documents: bytes) -> "dict[str, NDArray[Any]] | None":
    """Return the columns of documents that `CONVERSION` has made; None if any of them was no candle."""
    columns = raw_columns(documents)
    is_nan = import_numpy().isnan
    return None if columns is None or any(is_nan(columns[name]).any() for name in NUMBERS) else columns


def joined_columns(parts: "Sequence[dict[str, NDArray[Any]]]") -> "dict[str, NDArray[Any]]":
    """Return the columns of parts that follow each other."""
    numpy = import_numpy()
    return {name: numpy.concatenate([part[name] for part in parts]) for name in COLUMNS}


def _places(document: bytes) -> dict[str, int] | None:
    """Return where the values of a document are, by the names of its fields; None for one of other fields or types."""
    places: dict[str, int] = {}
    place = 4
    while place < _LENGTH - 1:
        end = document.find(b"\0", place + 1)
        name = document[place + 1 : end].decode("latin-1")
        if name not in COLUMNS or document[place] != (_INT64 if name == "timestamp" else _DOUBLE):
            return None
        places[name] = end + 1
        place = end + 9
    return places if len(places) == len(COLUMNS) else None
