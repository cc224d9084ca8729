"""Values: as the driver decodes them, and as plain data."""

from datetime import UTC, datetime
from typing import Any, cast
from uuid import UUID

from bson.binary import UUID_SUBTYPE, Binary
from bson.code import Code
from bson.codec_options import CodecOptions, DatetimeConversion
from bson.dbref import DBRef
from bson.decimal128 import Decimal128
from bson.int64 import Int64
from bson.objectid import ObjectId

from backtest_persist.connections.workarounds import TYPE_REGISTRY, PlainDocument

__all__ = ("CODEC_OPTIONS", "Document", "to_plain")


Document = dict[str, Any]


CODEC_OPTIONS: CodecOptions[Document] = CodecOptions(
    document_class=PlainDocument,
    tz_aware=True,
    tzinfo=UTC,
    datetime_conversion=DatetimeConversion.DATETIME_AUTO,
    type_registry=TYPE_REGISTRY,
)

_PLAIN_TYPES = frozenset({bool, bytes, datetime, float, int, str, ObjectId, type(None)})


def to_plain(value: Any) -> Any:
    """Return a decoded value as plain data: dict, list, int, Decimal, UUID.

    What only BSON has stays as it is, so that it is written back as what it was: an `ObjectId`, a `Regex`, a date
    beyond the years of `datetime` (`DatetimeMS`). An `Int64` is an int as any other.
    """
    if type(value) in _PLAIN_TYPES:
        return value
    if isinstance(value, dict):
        document = cast("Document", value)
        return {key: item if type(item) in _PLAIN_TYPES else to_plain(item) for key, item in document.items()}
    if isinstance(value, list):
        return [to_plain(item) for item in cast("list[Any]", value)]
    if isinstance(value, Int64):
        return int(value)
    if isinstance(value, Decimal128):
        return value.to_decimal()
    if isinstance(value, Binary) and value.subtype == UUID_SUBTYPE and len(value) == 16:
        return UUID(bytes=bytes(value))
    if isinstance(value, Code):
        return value if value.scope is None else Code(str(value), to_plain(value.scope))
    if isinstance(value, DBRef):  # the deprecated BSON type of a pointer
        return to_plain(value.as_doc())
    return value
