"""Queries: filters and sorts with Python field names and values become those that the server is sent."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from difflib import get_close_matches
from functools import cache, partial
from typing import Any, cast, get_args

from bson import encode
from bson.errors import BSONError
from pydantic.fields import FieldInfo
from pymongo import ASCENDING

from backtest_persist.core.instants import EarlyTimes, checked_instant, refused, to_int
from backtest_persist.core.keys import Flag, Timestamp, checked_flag, checked_name, checked_timestamp, to_object_id
from backtest_persist.core.payload import encode_value
from backtest_persist.core.row import Row, to_wire
from backtest_persist.core.schema import Schema
from backtest_persist.errors import InvalidKeyError, InvalidPayloadError, InvalidWhenError

__all__ = ("Filter", "Sort", "to_query", "to_sort")

Filter = Mapping[str, Any]
"""A MongoDB filter; Python field names (``strategy_name``, ``id``) and wire names (``strategyName``) both work.

Values are converted as in writes: `when` and `timestamp` are compared with aware datetimes or ints in ms, ``backtest``
with bools or a `Mode`, and what is inside of a payload (``payload.price``) with anything that a payload may hold.
"""

Sort = Sequence[tuple[str, int]]
"""(field, 1 or -1) pairs; ``_id`` is added last unless the context is in it, so an order is always total."""

_COMBINING = ("$and", "$nor", "$or")
_COMPARING = frozenset({"$all", "$elemMatch", "$eq", "$gt", "$gte", "$in", "$lt", "$lte", "$ne", "$nin", "$not"})
"""The operators whose operands are values of a field."""
_FROM_THE_NEXT_MS = ("$gte", "$lt")
"""The operators for which a time between two ms is the later one; for all others it is the earlier one."""
_EPOCH = datetime.fromtimestamp(0, UTC)
_MILLISECOND = timedelta(milliseconds=1)


def to_query(filter: Filter, schema: Schema[Any, Any], early: EarlyTimes = refused) -> dict[str, Any]:
    """Return a filter as it is sent; `early` tells whether ints of 1970 to 1973 are instants.

    Raises `InvalidKeyError` for one that is no mapping, names a field that rows do not have, or holds what MongoDB does
    not know or a payload must not hold, such as a naive datetime; `InvalidWhenError` for such a simulation time.
    """
    try:
        query = _Translation(schema, early).filter(filter)
        encode(query)
    except (BSONError, OverflowError, RecursionError, ValueError) as error:
        problem = f"the filter holds a name or a value that MongoDB does not know ({type(error).__name__})"
        raise InvalidKeyError(f"{schema.collection}: {problem}.", collection=schema.collection) from None
    return query


def to_sort(sort: Sort | None, schema: Schema[Any, Any]) -> list[tuple[str, int]]:
    """Return a sort as it is sent, made total by ``_id``; None is the default order of the collection.

    Raises `InvalidKeyError` for anything but pairs of a field of the rows and 1 or -1, and for a field twice.
    """
    pairs: Any = schema.default_sort if sort is None else sort
    if not isinstance(pairs, Sequence) or not all(map(_is_order, cast("Sequence[Any]", pairs))):
        raise InvalidKeyError(
            f"{schema.collection}: a sort is a list of (field, 1 or -1), like [('createDate', -1)].",
            collection=schema.collection,
        )
    ordered = cast("Sort", pairs) or schema.default_sort
    translation = _Translation(schema)
    wire = [
        (translation.path(checked_name(name, "a field to sort by"))[0], int(direction)) for name, direction in ordered
    ]
    names = {name for name, _ in wire}
    if len(names) < len(wire):
        raise InvalidKeyError(f"{schema.collection}: a sort names each field once.", collection=schema.collection)
    is_total = "_id" in names or names.issuperset(schema.fields)
    return wire if is_total else [*wire, ("_id", ASCENDING)]


def _is_order(pair: Any) -> bool:
    return isinstance(pair, list | tuple) and len(cast("Sequence[Any]", pair)) == 2 and to_int(pair[1]) in (1, -1)


_Convert = Callable[["_Translation", Any, str], Any]
"""Converts a value that a field is compared with; the last argument is the operator, "" for equality."""


@dataclass(frozen=True)
class _Field:
    """A field of a row: its wire name, and how what it is compared with is converted."""

    wire: str
    convert: _Convert


class _Translation:
    def __init__(self, schema: Schema[Any, Any], early: EarlyTimes = refused) -> None:
        self.collection = schema.collection
        self.early = early
        self._names = schema.row_type.model_fields
        self._fields = _fields_of(schema.row_type)

    def filter(self, filter: Any) -> dict[str, Any]:
        if not isinstance(filter, Mapping):
            raise self.error(f"a filter is a mapping of field names to values, not {type(filter).__name__}")
        translated: dict[str, Any] = {}
        for name, value in cast("Filter", filter).items():
            if name in _COMBINING and isinstance(value, list | tuple):
                translated[name] = [self.filter(part) for part in cast("Sequence[Any]", value)]
            elif name == "$expr":
                translated[name] = self.expression(value)
            elif isinstance(cast("Any", name), str) and name.startswith("$"):
                translated[name] = value
            else:
                wire, convert = self.path(name)
                translated[wire] = self.operand(value, convert)
        return translated

    def path(self, name: Any) -> tuple[str, _Convert]:
        """Return the wire name of a field, or of a path that begins with one, and what converts its values."""
        head, dot, rest = checked_name(name, f"{self.collection}: the name of a field").partition(".")
        field = self._fields.get(head)
        if field is None:
            raise self.error(f"rows have no field {head!r:.80}; {self._nearest(head)}")
        return (f"{field.wire}.{rest}", _to_value) if dot else (field.wire, field.convert)

    def operand(self, value: Any, convert: _Convert, operator: str = "") -> Any:
        if isinstance(value, Mapping):
            operands = cast("Mapping[str, Any]", value)
            return {
                name: self.operand(operand, convert if name in _COMPARING else _to_value, name)
                for name, operand in operands.items()
            }
        if isinstance(value, list | tuple):
            return [self.operand(item, convert, operator) for item in cast("Sequence[Any]", value)]
        return convert(self, value, operator)

    def expression(self, value: Any) -> Any:
        """Translate the paths in an aggregation expression, such as ``"$strategy_name"``."""
        if isinstance(value, Mapping):
            operands = cast("Mapping[str, Any]", value)
            return {
                name: operand if name == "$literal" else self.expression(operand) for name, operand in operands.items()
            }
        if isinstance(value, list | tuple):
            return [self.expression(item) for item in cast("Sequence[Any]", value)]
        if isinstance(value, str) and value.startswith("$") and not value.startswith("$$"):
            return f"${self.path(value[1:])[0]}"
        return _to_value(self, value, "")

    def error(self, problem: str) -> InvalidKeyError:
        return InvalidKeyError(f"{self.collection}: {problem}.", collection=self.collection)

    def _nearest(self, name: str) -> str:
        spelled = self._names if name.islower() else self._fields
        nearest = get_close_matches(name, spelled, 3)
        if nearest:
            return f"the nearest is {' or '.join(nearest)}"
        inside = f"; what is inside of the payload is payload.{name:.80}" if "payload" in self._names else ""
        return f"they have {', '.join(self._names)}{inside}"


@cache
def _fields_of(row_type: type[Row]) -> dict[str, _Field]:
    """Return the fields of the documents of a row by all their names."""
    fields: dict[str, _Field] = {"__v": _Field("__v", _to_value)}
    for name, info in row_type.model_fields.items():
        fields[name] = fields[to_wire(name)] = _Field(to_wire(name), _converter(name, info))
    return fields


def _converter(name: str, info: FieldInfo) -> _Convert:
    if name == "id":
        return _to_id
    if info.annotation is datetime:
        return partial(_to_date, name)
    if _is_kind(info, Timestamp):
        return partial(_to_instant, name)
    return _to_flag if _is_kind(info, Flag) else _to_value


def _is_kind(info: FieldInfo, kind: Any) -> bool:
    """Whether a field, or the part of its type beside None, is of one of the types of keys."""
    check = kind.__metadata__[0]
    return check in info.metadata or any(
        check in getattr(part, "__metadata__", ()) for part in get_args(info.annotation)
    )


def _to_id(translation: _Translation, value: Any, operator: str) -> Any:
    return to_object_id(value) or _to_value(translation, value, operator)


def _to_flag(translation: _Translation, value: Any, operator: str) -> Any:
    return None if value is None else checked_flag(value, f"{translation.collection}: a flag in a filter")


def _to_instant(name: str, translation: _Translation, value: Any, operator: str) -> Any:
    if value is None:
        return None
    if isinstance(value, datetime) and value == value and value.utcoffset() is not None:
        value = _in_whole_ms(value, operator)
    what = f"{translation.collection}: {name} in the filter"
    if name == "when":
        return checked_instant(value, what, translation.early, InvalidWhenError)
    return checked_timestamp(value, what, translation.early)


def _to_date(name: str, translation: _Translation, value: Any, operator: str) -> Any:
    if value is None or isinstance(value, datetime):
        return _to_value(translation, value, operator)
    millis = checked_instant(value, f"{translation.collection}: {name} in the filter", translation.early)
    return _EPOCH + millis * _MILLISECOND


def _to_value(translation: _Translation, value: Any, operator: str) -> Any:
    if isinstance(value, re.Pattern):
        return cast("Any", value)
    if isinstance(value, datetime) and value == value and value.utcoffset() is not None:
        value = _in_whole_ms(value, operator)
    try:
        return encode_value(value, translation.collection, "a value in the filter")
    except InvalidPayloadError as error:
        raise InvalidKeyError(str(error), collection=translation.collection) from None


def _in_whole_ms(value: datetime, operator: str) -> datetime:
    """Return the ms with which stored times, which have whole ms, compare as they would with a finer time."""
    to_datetime: Any = getattr(value, "to_pydatetime", None)
    finer = value.microsecond % 1000, getattr(value, "nanosecond", 0)  # which pandas has
    if to_datetime is not None:
        value = to_datetime(warn=False)
    whole = value - timedelta(microseconds=finer[0])
    return whole + _MILLISECOND if any(finer) and operator in _FROM_THE_NEXT_MS else whole
