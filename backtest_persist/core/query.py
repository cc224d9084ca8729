"""Queries: filters and sorts with Python field names become those that the server is sent."""

from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any, cast

from bson import encode
from bson.errors import BSONError
from pymongo import ASCENDING

from backtest_persist.core.keys import checked_name, to_int, to_object_id
from backtest_persist.core.row import Row, to_wire
from backtest_persist.core.schema import Schema
from backtest_persist.errors import InvalidKeyError

__all__ = ("Filter", "Sort", "to_query", "to_sort")

Filter = Mapping[str, Any]
"""A MongoDB filter; Python field names (``strategy_name``, ``id``) and wire names (``strategyName``) both work."""

Sort = Sequence[tuple[str, int]]
"""(field, 1 or -1) pairs; ``_id`` is added last unless the context is in it, so an order is always total."""

_COMBINING = ("$and", "$nor", "$or")


def to_query(filter: Filter, schema: Schema[Any, Any]) -> dict[str, Any]:
    """Return a filter as it is sent.

    Raises `InvalidKeyError` for one that is no mapping, or holds what MongoDB does not know.
    """
    try:
        query = _translated(filter, schema)
        encode(query)
    except (BSONError, OverflowError, RecursionError, ValueError) as error:
        problem = f"the filter holds a name or a value that MongoDB does not know ({type(error).__name__})"
        raise InvalidKeyError(f"{schema.collection}: {problem}.", collection=schema.collection) from None
    return query


def to_sort(sort: Sort | None, schema: Schema[Any, Any]) -> list[tuple[str, int]]:
    """Return a sort as it is sent, made total by ``_id``; None is the default order of the collection.

    Raises `InvalidKeyError` for anything but pairs of a field and 1 or -1.
    """
    pairs: Any = schema.default_sort if sort is None else sort
    if not isinstance(pairs, Sequence) or not all(map(_is_order, cast("Sequence[Any]", pairs))):
        raise InvalidKeyError(
            f"{schema.collection}: a sort is a list of (field, 1 or -1), like [('createDate', -1)].",
            collection=schema.collection,
        )
    ordered = cast("Sort", pairs) or schema.default_sort
    wire = [
        (_wire_name(checked_name(name, "a field to sort by"), schema.row_type), int(direction))
        for name, direction in ordered
    ]
    names = {name for name, _ in wire}
    is_total = "_id" in names or names.issuperset(schema.fields)
    return wire if is_total else [*wire, ("_id", ASCENDING)]


def _translated(filter: Any, schema: Schema[Any, Any]) -> dict[str, Any]:
    if not isinstance(filter, Mapping):
        raise InvalidKeyError(
            f"{schema.collection}: a filter is a mapping of field names to values, not {type(filter).__name__}.",
            collection=schema.collection,
        )
    translated: dict[str, Any] = {}
    for name, value in cast("Filter", filter).items():
        if name in _COMBINING and isinstance(value, list | tuple):
            translated[name] = [_translated(part, schema) for part in cast("Sequence[Any]", value)]
        else:
            wire = _wire_name(name, schema.row_type)
            translated[wire] = _operand(value, is_id=wire == "_id")
    return translated


def _wire_name(name: str, row_type: type[Row]) -> str:
    return to_wire(name) if name in row_type.model_fields else name


def _operand(value: Any, *, is_id: bool) -> Any:
    """Return a value as MongoDB knows it: enums by value, ids as ObjectId, in operators and lists as well."""
    if isinstance(value, Enum):
        value = value.value
    if isinstance(value, Mapping):
        operators = cast("Mapping[str, Any]", value)
        return {name: _operand(operand, is_id=is_id) for name, operand in operators.items()}
    if isinstance(value, list | tuple):
        return [_operand(item, is_id=is_id) for item in cast("Sequence[Any]", value)]
    return (to_object_id(value) or value) if is_id else value


def _is_order(pair: Any) -> bool:
    return isinstance(pair, list | tuple) and len(cast("Sequence[Any]", pair)) == 2 and to_int(pair[1]) in (1, -1)
