"""Frame columns: values of one name, with the one type that they have in a frame."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from enum import Enum, auto
from typing import Any, cast

from backtest_persist.core.instants import INT64_MAX, INT64_MIN

__all__ = ("Column", "Kind", "column_of", "texts_of")

_EPOCH = datetime.fromtimestamp(0, UTC)
_MILLISECOND = timedelta(milliseconds=1)
_DISTINGUISHED = (bool, float, str, bytes, datetime, Decimal)
_MAX_DIGITS = 38
"""The digits of the decimal type of Arrow and polars."""


class Kind(Enum):
    """The type of a column, None apart."""

    NULL = auto()
    BOOL = auto()
    INT = auto()
    FLOAT = auto()
    DECIMAL = auto()
    INSTANT = auto()
    """Ints in ms UTC."""
    TEXT = auto()
    BYTES = auto()
    LIST = auto()
    """Lists whose items are of one type."""
    MIXED = auto()
    """Anything else: Python objects in pandas, text in Arrow and polars."""


@dataclass(frozen=True)
class Column:
    """Values of one kind, or None; `values` may be a numpy array, which then holds no None."""

    kind: Kind
    values: Any
    scale: int = 0
    """The digits behind the point of a `Kind.DECIMAL`."""
    type: Any = None
    """The type of the values of a `Kind.LIST`: ("list", the type of the items), where a type may also be a mapping of
    the names of members to their types, the name of a type of Python, or ``null`` if all are None.
    """

    @property
    def is_array(self) -> bool:
        """Whether the values are a numpy array."""
        return type(self.values) is not list

    @property
    def has_none(self) -> bool:
        """Whether a value is missing."""
        return not self.is_array and None in self.values


def column_of(values: Sequence[Any]) -> Column:
    """Return the column of plain values of any types.

    UUIDs, and types of BSON that Python lacks, become text; datetimes become ms UTC. Ints among floats become floats.
    """
    plain = [_plain(value) for value in values]
    types: set[Any] = {type(value) for value in plain if value is not None}
    if not types:
        return Column(Kind.NULL, plain)
    if types <= {int, float}:
        kind = Kind.INT if types == {int} else Kind.FLOAT
        return Column(kind, plain if kind is Kind.INT else [None if value is None else float(value) for value in plain])
    if types == {datetime} and all(value is None or value.utcoffset() is not None for value in plain):
        return Column(Kind.INSTANT, [None if value is None else (value - _EPOCH) // _MILLISECOND for value in plain])
    if types == {Decimal}:
        scale = _scale([value for value in plain if value is not None])
        return Column(Kind.MIXED, plain) if scale is None else Column(Kind.DECIMAL, plain, scale)
    if types == {list}:
        common = _type_of(plain)
        return Column(Kind.MIXED, plain) if common is None else Column(Kind.LIST, plain, type=common[1])
    simple = {bool: Kind.BOOL, str: Kind.TEXT, bytes: Kind.BYTES}
    return Column(simple.get(next(iter(types)), Kind.MIXED) if len(types) == 1 else Kind.MIXED, plain)


def texts_of(values: Sequence[Any]) -> list[str | None]:
    """Return values as text: lists and mappings as JSON, others as `str` gives them."""
    return [
        None
        if value is None
        else json.dumps(value, default=str, ensure_ascii=False)
        if isinstance(value, list | dict)
        else value.isoformat()
        if isinstance(value, datetime)
        else str(value)
        for value in values
    ]


def _plain(value: Any) -> Any:
    """Return a value as one of the types that a column distinguishes."""
    if value is None or type(value) in _DISTINGUISHED:
        return value
    if isinstance(value, int) and type(value) is not bool:
        return int(value) if INT64_MIN <= value <= INT64_MAX else str(value)
    if isinstance(value, dict):
        return {str(name): _item(member) for name, member in cast("dict[Any, Any]", value).items()}
    if isinstance(value, list | tuple):
        return [_item(item) for item in cast("Sequence[Any]", value)]
    return float(value) if isinstance(value, float) else str(value)


def _item(value: Any) -> Any:
    """Return an item of a list; Decimals in it are text, which the libraries agree on."""
    return str(value) if isinstance(value, Decimal) else _plain(value)


def _scale(values: Sequence[Decimal]) -> int | None:
    """Return how many digits behind the point these numbers have; None if a type of 38 digits does not hold them."""
    if not all(value.is_finite() for value in values):
        return None
    exponents = [cast("int", value.as_tuple().exponent) for value in values]
    scale = max(0, -min(exponents))
    whole = max(max(1, value.adjusted() + 1) if value else 1 for value in values)
    return scale if whole + scale <= _MAX_DIGITS else None


_NOTHING = "null"


def _type_of(value: Any) -> Any:
    """Return what tells apart the types of plain values; None for a list whose items are of several types."""
    if value is None:
        return _NOTHING
    if isinstance(value, list):
        types: Any = _NOTHING
        for item in cast("list[Any]", value):
            types = _common(types, _type_of(item))
        return None if types is None else ("list", types)
    if isinstance(value, dict):
        members = {name: _type_of(member) for name, member in cast("dict[str, Any]", value).items()}
        return None if not members or None in members.values() else members
    if isinstance(value, datetime) and value.utcoffset() is None:
        return None
    return type(value).__name__


def _common(one: Any, other: Any) -> Any:
    """Return the type of values of two types; None if there is none."""
    if one is None or other is None or one == other:
        return None if other is None else one
    if _NOTHING in (one, other):
        return other if one == _NOTHING else one
    if isinstance(one, tuple) and isinstance(other, tuple):
        items = _common(one[1], other[1])
        return None if items is None else ("list", items)
    if isinstance(one, dict) and isinstance(other, dict):
        first, second = cast("dict[str, Any]", one), cast("dict[str, Any]", other)
        names = [*first, *(name for name in second if name not in first)]
        members = {name: _common(first.get(name, _NOTHING), second.get(name, _NOTHING)) for name in names}
        return None if None in members.values() else members
    return None
