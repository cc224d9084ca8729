"""Updates: what a write does to a document, whatever another program has left in it.

They are aggregation pipelines, because the filter of an upsert must be the unique index and nothing else, so that what
depends on the stored document has to be in the update.

A field of the context that holds an array is such a case. MongoDB takes the document for that of every name in the
array: an upsert of one of them would overwrite it. Here the server refuses it, with `CONVERSION_FAILURE`.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from typing import Any, cast

from bson import ObjectId, encode
from bson.int64 import Int64
from bson.raw_bson import RawBSONDocument
from pymongo import UpdateOne

from backtest_persist.core.null_payload import absent_fields, present_fields

__all__ = ("CONVERSION_FAILURE", "claiming", "inserting", "removing", "replacing", "setting", "undated", "was_removed")

CONVERSION_FAILURE = 241
"""The code of the server's error for a document that has an array in its context, as nothing else here converts."""

_FIRST_DATE, _LAST_DATE = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)
_HAS_CREATE_DATE = RawBSONDocument(  # encoded once, as this is a part of every write
    encode({"$and": [{"$gte": ["$createDate", _FIRST_DATE]}, {"$lte": ["$createDate", _LAST_DATE]}]})
)


def replacing(names: tuple[str, ...], fields: Mapping[str, Any], now: datetime) -> tuple[Any, int]:
    """Return the update that sets these fields, whatever is stored, and its size; `names` are those of the context.

    A document without a usable ``createDate``, from another program, gets that of its id.
    """
    raw = encode({**present_fields(fields), "updatedDate": now})
    checked = {"createDate": _create_date(now), "__v": _version(names)}
    update: list[dict[str, Any]] = [{"$replaceWith": {"$mergeObjects": ["$$ROOT", _literal(raw), checked]}}]
    absent = absent_fields(fields)
    return [*update, {"$unset": [*absent]}] if absent else update, len(raw)


def setting(fields: Mapping[str, Any], now: datetime) -> tuple[Any, int]:
    """Return an update that does the same as `replacing` to a document that is known to be sound, and its size.

    It is no pipeline, which costs the server more.
    """
    raw = encode({**present_fields(fields), "updatedDate": now})
    update = {"$set": RawBSONDocument(raw), "$setOnInsert": {"createDate": now, "__v": 0}}
    absent = absent_fields(fields)
    return {**update, "$unset": dict.fromkeys(absent, "")} if absent else update, len(raw)


def undated(ids: Sequence[ObjectId]) -> UpdateOne:
    """Return an operation that changes nothing, and matches if one of these documents lacks a usable ``createDate``.

    In a bulk after which nothing is read it tells whether `setting` was enough, and costs the server next to nothing.
    """
    filter = {"_id": {"$in": ids}, "$expr": {"$not": [_HAS_CREATE_DATE]}}
    return UpdateOne(filter, {"$setOnInsert": {"__v": 0}})


def inserting(names: tuple[str, ...], fields: Mapping[str, Any], now: datetime) -> tuple[Any, int]:
    """Return the update that stores these fields where no document is stored yet, and its size."""
    raw = encode({**present_fields(fields), "updatedDate": now, "createDate": now, "__v": 0})
    inserted = {"$mergeObjects": ["$$ROOT", _literal(raw)]}
    is_new = {"$eq": [{"$type": "$_id"}, "missing"]}
    return [{"$replaceWith": _unless_array(names, {"$cond": [is_new, inserted, "$$ROOT"]})}], len(raw)


def claiming(names: tuple[str, ...], fields: Mapping[str, Any], now: datetime) -> tuple[Any, int]:
    """Return the update that stores these fields unless something is stored that is not removed, and its size."""
    raw = encode({**fields, "updatedDate": now})
    claimed = {"$mergeObjects": ["$$ROOT", _literal(raw), {"createDate": _create_date(now), "__v": _version(names)}]}
    is_removed = {"$eq": [{"$ifNull": ["$removed", "$payload.removed"]}, True]}
    is_free = {"$or": [{"$eq": [{"$type": "$_id"}, "missing"]}, is_removed]}
    return [{"$replaceWith": _unless_array(names, {"$cond": [is_free, claimed, "$$ROOT"]})}], len(raw)


def was_removed(document: Mapping[str, Any]) -> bool:
    """Whether a document was a tombstone when the server decided about a claim: the same condition as there."""
    payload, mark = document.get("payload"), document.get("removed")
    if mark is None and isinstance(payload, dict):
        mark = cast("dict[str, Any]", payload).get("removed")
    return mark is True


def removing(names: tuple[str, ...], now: datetime, *, timed: bool) -> list[dict[str, Any]]:
    """Return the update that makes a tombstone; one without a usable ``when`` was always known, as its entry was."""
    payload = {
        "$cond": [
            {"$eq": [{"$type": "$payload"}, "object"]},
            {"$mergeObjects": ["$payload", {"removed": True}]},
            "$payload",
        ]
    }
    dates: dict[str, Any] = {"updatedDate": now, "createDate": _create_date(now)}
    if timed:
        dates["when"] = {"$cond": [{"$isNumber": "$when"}, "$when", Int64(0)]}
    return [{"$set": {"removed": _unless_array(names, True), "payload": payload, **dates}}]


def _literal(raw: bytes) -> dict[str, Any]:
    """Return an encoded document as an expression: data may look like one."""
    return {"$literal": RawBSONDocument(raw)}


@cache
def _version(names: tuple[str, ...]) -> RawBSONDocument:
    return RawBSONDocument(encode(_unless_array(names, {"$ifNull": ["$__v", 0]})))


def _create_date(now: datetime) -> dict[str, Any]:
    of_the_id = {"$convert": {"input": "$_id", "to": "date", "onError": now, "onNull": now}}
    return {"$cond": [_HAS_CREATE_DATE, "$createDate", of_the_id]}


def _unless_array(names: tuple[str, ...], expression: Any) -> dict[str, Any]:
    """Return an expression that fails for a document that has an array in one of the fields."""
    failure = {"$toInt": {"$concat": ["array in the context of ", {"$toString": "$_id"}]}}
    return {"$cond": [{"$or": [{"$isArray": f"${name}"} for name in names]}, failure, expression]}
