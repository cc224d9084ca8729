"""Values: as the driver decodes them, and as plain data."""

from datetime import UTC, datetime
from typing import Any, cast

from bson.codec_options import CodecOptions, DatetimeConversion
from bson.datetime_ms import DatetimeMS
from bson.dbref import DBRef
from bson.decimal128 import Decimal128
from bson.int64 import Int64
from bson.objectid import ObjectId

__all__ = ("CODEC_OPTIONS", "Document", "to_plain")


Document = dict[str, Any]


class _Decoded(dict[str, Any]):
    """A document as the driver decodes it; `to_plain` makes dicts of it.

    It denies that it has ``$ref``: of a payload with the keys of a reference PyMongo would make a `DBRef`, which
    forgets their order and a ``$db`` of None.
    """

    def __getitem__(self, key: str) -> Any:
        if key == "$ref":
            raise KeyError(key)
        return super().__getitem__(key)


# No type_registry: with one PyMongo cannot retry a write whose reply has a writeConcernError (helpers_shared calls
# `update` on a RawBSONDocument).
CODEC_OPTIONS: CodecOptions[Document] = CodecOptions(
    document_class=_Decoded, tz_aware=True, tzinfo=UTC, datetime_conversion=DatetimeConversion.DATETIME_AUTO
)

_PLAIN_TYPES = frozenset({bool, bytes, datetime, float, int, str, ObjectId, type(None)})


def to_plain(value: Any) -> Any:
    """Return a decoded value as plain data: dict, list, int, Decimal.

    A date beyond the years of `datetime` becomes an int in ms since the epoch.
    """
    if type(value) in _PLAIN_TYPES:
        return value
    if isinstance(value, dict):
        document = cast("Document", value)
        return {key: item if type(item) in _PLAIN_TYPES else to_plain(item) for key, item in document.items()}
    if isinstance(value, list):
        return [to_plain(item) for item in cast("list[Any]", value)]
    if isinstance(value, Int64 | DatetimeMS):
        return int(value)
    if isinstance(value, Decimal128):
        return value.to_decimal()
    if isinstance(value, DBRef):  # the deprecated BSON type of a pointer
        return to_plain(value.as_doc())
    return value
