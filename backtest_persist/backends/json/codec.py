"""Payloads as JSON text and back: plain JSON for plain data, MongoDB's Extended JSON for what JSON lacks.

The types JSON does not know are written as in MongoDB Extended JSON v2 (relaxed): ``{"$numberDecimal": "1.10"}``,
``{"$date": "2024-01-31T12:00:00.000Z"}``, ``{"$binary": {"base64": "…", "subType": "04"}}``, ``{"$oid": "…"}`` and
``{"$numberDouble": "NaN"}``. A dict of the user that has such a key is wrapped in ``{"$literal": …}``.

The TypeScript framework writes an infinite `minuteEstimatedTime`, with which a signal never expires, as null. So does
this module, and it reads null under that key as infinity; a None there is written as ``{"$literal": null}``.
"""

import base64
import json
import math
import sys
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, cast
from uuid import UUID

from bson import Binary, Code, json_util
from bson.binary import UUID_SUBTYPE
from bson.datetime_ms import DatetimeMS
from bson.decimal128 import Decimal128
from bson.errors import BSONError

from backtest_persist.connections import to_plain

__all__ = ("LITERAL", "decode", "dumps", "encode", "loads", "tombstone")

LITERAL = "$literal"
_BSON_TAGS = frozenset({"$code", "$maxKey", "$minKey", "$oid", "$regularExpression", "$timestamp"})
"""The tags of what only BSON has."""
_TAGS = frozenset({"$numberDecimal", "$date", "$binary", "$numberDouble", LITERAL, *_BSON_TAGS})
_ETERNAL = "minuteEstimatedTime"
_EPOCH = datetime.fromtimestamp(0, UTC)
_MILLISECOND = timedelta(milliseconds=1)


def dumps(value: Any) -> bytes:
    """Return the compact JSON text of what `encode` returned."""
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    except UnicodeEncodeError:  # of half a surrogate pair, which JavaScript writes as an escape
        return json.dumps(value, allow_nan=False, separators=(",", ":")).encode()


def loads(text: bytes) -> Any:
    """Parse JSON text into what `decode` takes; `ValueError` when it is malformed."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deep") from None
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise
    except ValueError:
        raise ValueError(f"a number has more than {sys.get_int_max_str_digits():,} digits") from None


def encode(value: Any) -> Any:
    """Return a payload value as JSON values: one that `core.payload.encode_payload` checked, or `decode` returned."""
    if value is None or (isinstance(value, str | bool | int) and not isinstance(value, Code)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"$numberDouble": _name(value)}
    if isinstance(value, list):
        return [encode(item) for item in cast("list[Any]", value)]
    if isinstance(value, Mapping):
        members = {key: _encode_member(key, item) for key, item in cast("Mapping[str, Any]", value).items()}
        return members if _TAGS.isdisjoint(members) else {LITERAL: members}
    if isinstance(value, Decimal | Decimal128):
        return {"$numberDecimal": str(value.to_decimal() if isinstance(value, Decimal128) else value)}
    if isinstance(value, datetime):
        utc = _EPOCH + (value - _EPOCH)  # `astimezone` would fail at both ends of the calendar
        return {"$date": f"{utc.replace(tzinfo=None).isoformat(timespec='milliseconds')}Z"}
    if isinstance(value, UUID):
        value = Binary(value.bytes, UUID_SUBTYPE)
    if isinstance(value, bytes):
        subtype = value.subtype if isinstance(value, Binary) else 0
        return {"$binary": {"base64": base64.b64encode(value).decode(), "subType": f"{subtype:02x}"}}
    if isinstance(value, Code):
        return {"$code": str(value)} if value.scope is None else {"$code": str(value), "$scope": encode(value.scope)}
    return json_util.default(value, json_util.CANONICAL_JSON_OPTIONS)


def tombstone(payload: Any) -> bytes:
    """Return the text of a removed payload: an object gets the mark ``removed``, None is wrapped to get it."""
    if isinstance(payload, dict):
        return dumps(encode(cast("dict[str, Any]", payload) | {"removed": True}))
    return dumps({LITERAL: encode(payload), "removed": True})


def decode(value: Any) -> Any:
    """Return JSON values as the payload value that `encode` was given; `ValueError` for a damaged tag."""
    if isinstance(value, list):
        return [decode(item) for item in cast("list[Any]", value)]
    if not isinstance(value, dict):
        return value
    members = cast("dict[str, Any]", value)
    if len(members) == 1:
        ((tag, content),) = members.items()
        if tag == LITERAL and not isinstance(content, dict):
            return content
        if tag == LITERAL:
            members = cast("dict[str, Any]", content)
        elif tag in _TAGS:
            return _decode_tag(tag, content)
    elif members.keys() == {"$code", "$scope"}:
        return Code(members["$code"], decode(members["$scope"]))
    return {key: _decode_member(key, item) for key, item in members.items()}


def _encode_member(key: str, value: Any) -> Any:
    if key == _ETERNAL:
        if value is None:
            return {LITERAL: None}
        if value == math.inf and isinstance(value, float):
            return None
    return encode(value)


def _decode_member(key: str, value: Any) -> Any:
    return math.inf if key == _ETERNAL and value is None else decode(value)


def _decode_tag(tag: str, content: Any) -> Any:
    try:
        if tag == "$numberDecimal":
            return Decimal(content)
        if tag == "$date":
            if isinstance(content, dict):  # beyond the years of datetime
                return DatetimeMS(int(cast("dict[str, Any]", content)["$numberLong"]))
            moment = datetime.fromisoformat(content)
            return _EPOCH + (moment - _EPOCH) // _MILLISECOND * _MILLISECOND
        if tag == "$binary":
            data, subtype = base64.b64decode(content["base64"], validate=True), int(content["subType"], 16)
            return to_plain(Binary(data, subtype)) if subtype else data
        if tag in _BSON_TAGS:
            return json_util.object_hook({tag: content}, json_util.CANONICAL_JSON_OPTIONS)
        return float(content)
    except (ArithmeticError, BSONError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"a damaged {tag}") from error


def _name(value: float) -> str:
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
