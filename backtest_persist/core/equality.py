"""Equality of stored documents and values that are about to be sent, whichever language wrote the numbers."""

from collections.abc import Mapping
from decimal import Decimal
from typing import Any, cast

from bson import BSON

from backtest_persist.connections import CODEC_OPTIONS, Document, to_plain
from backtest_persist.core.null_payload import absent_fields, present_fields

__all__ = ("holds",)


def holds(document: Document, fields: Mapping[str, Any]) -> bool:
    """Whether a document holds these fields as they would come back from the server.

    An ``updatedDate``, here or in a payload, says when a value was written, not what it is, and is not compared.
    """
    absent = absent_fields(fields)
    sent = to_plain(BSON.encode(present_fields(fields)).decode(CODEC_OPTIONS))
    return all(document.get(name) is None for name in absent) and all(
        name in document and _equal(document[name], sent[name]) for name in _compared(sent)
    )


def _equal(one: Any, other: Any) -> bool:
    """Whether two values are equal: numbers of any type (JavaScript has one), with NaN equal to itself."""
    if isinstance(one, dict) and isinstance(other, dict):
        ours, theirs = cast("dict[str, Any]", one), cast("dict[str, Any]", other)
        names = _compared(ours)
        return names == _compared(theirs) and all(_equal(ours[name], theirs[name]) for name in names)
    if isinstance(one, list) and isinstance(other, list):
        items = cast("list[Any]", one), cast("list[Any]", other)
        return len(items[0]) == len(items[1]) and all(map(_equal, *items))
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, Decimal) or isinstance(other, Decimal):  # its digits count; a signaling NaN cannot be compared
        return isinstance(one, Decimal) and isinstance(other, Decimal) and str(one) == str(other)
    return one == other or (one != one and other != other)  # NaN


def _compared(fields: Mapping[str, Any]) -> set[str]:
    return fields.keys() - {"updatedDate"}
