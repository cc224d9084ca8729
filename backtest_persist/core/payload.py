"""Payloads: what goes in is stored exactly or refused before anything is sent."""

import dataclasses
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from datetime import date, datetime, time, timedelta
from decimal import Decimal, DecimalException
from enum import Enum
from functools import partial
from pathlib import PurePath
from typing import Any, Generic, TypeVar, cast
from uuid import UUID

from bson import Binary, Code, MaxKey, MinKey, ObjectId, Regex, Timestamp, encode
from bson.binary import UUID_SUBTYPE
from bson.datetime_ms import DatetimeMS
from bson.decimal128 import Decimal128
from pydantic import BaseModel, InstanceOf

from backtest_persist.contracts import PayloadInput
from backtest_persist.core.keys import INT64_MAX, INT64_MIN, checked_name
from backtest_persist.core.off_loop import LARGE
from backtest_persist.errors import InvalidKeyError, InvalidPayloadError

__all__ = (
    "Deferred",
    "Payload",
    "TooLargeError",
    "checked_entries",
    "encode_entries",
    "encode_list",
    "encode_or_defer",
    "encode_payload",
    "encode_value",
    "encoded_fields",
    "is_deferred",
    "opened",
)

T = TypeVar("T")

Payload = InstanceOf[dict[str, Any]]
"""A stored payload: plain dict, list, str, int, float, bool, None, Decimal, aware datetime, bytes, UUID.

Another program may have stored values that only BSON has; they are the objects that PyMongo has for them.
"""

MAX_DEPTH = 90
MAX_BYTES = 16 * 1024 * 1024 - 64 * 1024  # room for the context and the dates in the 16 MiB of a document
MAX_PLAIN_TEXT = 10_000
_SURELY_SMALL = 1024 * 1024
_TOO_LARGE = "is larger than 16 MiB; split it or keep it elsewhere"
_MANY = 10_000


def encode_payload(
    payload: PayloadInput | None, what: str | Callable[[], str], *, limit: int | None = None
) -> dict[str, Any] | None:
    """Return a deep copy of a payload that BSON stores exactly; `what` names domain and context in errors.

    Tuples, named ones too, become lists, and models and dataclasses dicts: that is how they come back.

    Values that only BSON has (``ObjectId``, ``Regex``, ``Timestamp``, …) keep their type.

    Raises `InvalidPayloadError` for: a payload that is no mapping or model, keys that are not str, naive datetimes or
    ones finer than a ms, ints beyond 64 bits, decimals beyond 34 digits, sets, numpy's dates and other foreign
    types, cycles, more than 90 levels, more than 16 MiB. With a `limit` in bytes of BSON a larger payload is a
    `TooLargeError` as soon as that is noticed.
    """
    if payload is None:
        return None
    encoded = _Encoder(what, limit).encode(payload) if _has_members(payload) else None
    if not isinstance(encoded, dict):  # a RootModel may hold anything
        named = what if isinstance(what, str) else what()
        raise InvalidPayloadError(f"{named}: a payload is a mapping or a pydantic model, not {type(payload).__name__}.")
    return cast("dict[str, Any]", encoded)


def encode_list(items: Sequence[Any], what: str, *, limit: int | None = None) -> list[Any]:
    """Return a deep copy of a list of payload values; see `encode_payload`."""
    if not isinstance(items, Sequence) or isinstance(items, str | bytes):
        raise InvalidPayloadError(f"{what}: expected a list, not {type(items).__name__}.")
    return _Encoder(what, limit).encode(list(items))


class TooLargeError(Exception):
    """A payload is larger than the limit that `encode_payload` was given."""


class Deferred(Generic[T]):
    """A value of a field that is encoded in a thread, as it is large, while its write keeps its place."""

    def __init__(self, encode: Callable[[], T]) -> None:
        self._encode = encode
        self._value: T | None = None
        self._done = False

    def value(self) -> T:
        """Return the value as it is stored; an `InvalidPayloadError` as of `encode_payload`."""
        if not self._done:
            try:
                self._value = self._encode()
            except RuntimeError:  # of an iteration
                raise InvalidPayloadError(
                    "A large payload was changed while it was encoded; leave it as it is until the call returns."
                ) from None
            self._done = True
        return cast("T", self._value)


def is_deferred(fields: Mapping[str, Any]) -> bool:
    """Whether a field has a value that is still to be encoded."""
    for value in fields.values():  # noqa: SIM110  # at every write: a generator costs several times as much
        if type(value) is Deferred:
            return True
    return False


def encoded_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return fields with what was `Deferred` encoded; that takes long."""
    return {name: value.value() if isinstance(value, Deferred) else value for name, value in fields.items()}


def encode_or_defer(encode: Callable[..., T]) -> "T | Deferred[T]":
    """Encode at once what is not large; `encode` takes a `limit`, as `encode_payload` does."""
    try:
        return encode(limit=LARGE)
    except TooLargeError:
        return Deferred(encode)


def encode_value(value: Any, what: str, subject: str) -> Any:
    """Return one value as a payload stores it; `subject` names it in errors. See `encode_payload`."""
    return _Encoder(what, None, subject).encode(value)


def encode_entries(
    entries: Iterable[PayloadInput], what: str, *, first_wins: bool = False
) -> dict[str, dict[str, Any] | Deferred[Any]]:
    """Return id -> encoded payload of list entries, which are keyed by their own ``id``; see `encode_payload`.

    All are checked before any is sent; if they are many, those at the end are `Deferred`. An id that is missing or no
    str is an `InvalidKeyError`; of two entries with one id the later wins, or the first with `first_wins`.
    """
    encoded: dict[str, dict[str, Any] | Deferred[Any]] = {}
    left = LARGE
    for position, entry in enumerate(checked_entries(entries, what)):
        where = f"{what}, entry {position}"
        encoder = _Encoder(where, left)
        try:
            payload: Any = encoder.encode(entry) if _has_members(entry) else None
            members, left = payload, left - encoder.size
        except TooLargeError:
            payload, left = Deferred(partial(encode_payload, entry, where)), 0
            members = opened(entry, where)
        if not isinstance(members, dict):
            raise InvalidPayloadError(
                f"{where}: a payload is a mapping or a pydantic model, not {type(entry).__name__}."
            )
        if "id" not in members:
            raise InvalidKeyError(f"{where}: has no 'id', by which it is kept.")
        (entry_id,) = encode_list([members["id"]], where)
        entry_id = checked_name(entry_id, f"{where}: id")
        if not (first_wins and entry_id in encoded):
            encoded[entry_id] = payload
    return encoded


def checked_entries(entries: Iterable[PayloadInput], what: str) -> Iterable[PayloadInput]:
    """Return what can be iterated over as it is; anything else is an `InvalidPayloadError`."""
    if not isinstance(cast("Any", entries), Iterable):
        raise InvalidPayloadError(f"{what}: expected a list of payloads, not {type(entries).__name__}.")
    return entries


def opened(value: Any, what: str, *, by_alias: bool = True) -> Any:
    """Return a mapping or dataclass as dict, a model as what it dumps to, and anything else as it is.

    One that fails when it is read, such as a model that contains itself, is an `InvalidPayloadError`.
    """
    try:
        if isinstance(value, BaseModel):
            return value.model_dump(by_alias=by_alias, warnings=False)
        if isinstance(value, Mapping):
            return dict(cast("Mapping[Any, Any]", value))
        if _is_dataclass(value):
            return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    except Exception as error:  # code of the user's own; its message may quote the payload
        problem = f"a {type(cast('Any', value)).__name__} cannot be read ({type(error).__name__})"
        raise InvalidPayloadError(f"{what}: {problem}.") from None
    return value


def _is_dataclass(value: Any) -> bool:
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def _has_members(value: Any) -> bool:
    return isinstance(value, Mapping | BaseModel) or _is_dataclass(value)


_BSON_TYPES = (Binary, Code, DatetimeMS, Decimal128, MaxKey, MinKey, ObjectId, Regex, Timestamp)

_WAYS_OUT: tuple[tuple[type[Any] | tuple[type[Any], ...], str], ...] = (
    ((date, time), "give its .isoformat()"),
    (timedelta, "give its .total_seconds()"),
    (PurePath, "give its str(...)"),
    (re.Pattern, "give bson.Regex.from_native(...)"),
    ((bytearray, memoryview), "give bytes(...)"),
    ((Collection, Iterator), "give list(...)"),
)
_ANY_WAY_OUT = "give what it holds as a str, a number, a list or a dict"


class _Encoder:
    def __init__(self, what: str | Callable[[], str], limit: int | None, subject: str = "the payload") -> None:
        self._what = what
        self._subject = subject
        self._limit = MAX_BYTES if limit is None else limit
        self._deferrable = limit is not None
        self.size = 0  # what BSON needs at the least, and no less than a sixth of it
        self.path: list[str] = []
        self.open: set[int] = set()
        self.models = 0
        """How many of the open values are pydantic models."""

    def encode(self, value: Any) -> Any:
        plain = self.value(value)
        if self.size > self._limit:
            raise self.too_large()
        if self.size > _SURELY_SMALL and len(encode({"payload": plain})) > MAX_BYTES:
            raise self.error(_TOO_LARGE)
        return plain

    def too_large(self) -> Exception:
        return TooLargeError() if self._deferrable else self.error(_TOO_LARGE)

    @property
    def what(self) -> str:
        return self._what if isinstance(self._what, str) else self._what()

    def error(self, problem: str) -> InvalidPayloadError:
        where = f" at {'.'.join(self.path)}" if self.path else ""
        return InvalidPayloadError(f"{self.what}: {self._subject}{where} {problem}.")

    def value(self, value: Any) -> Any:
        self.size += 3
        if self.size > self._limit:  # ends the walk of a small value that multiplies itself, too
            raise self.too_large()
        kind: Any = type(value)  # pyright: ignore[reportUnknownVariableType]
        if kind is str:
            return self.text(value)
        if kind is float:
            self.size += 8
            return value
        if kind is bool or value is None:
            return value
        if kind is int:
            return self.integer(value)
        if kind is dict or kind is list:
            return self.nested(value)
        return self.unusual(value)

    def text(self, value: str) -> str:
        self.size += 5 + len(value)
        try:
            value.encode()
        except UnicodeEncodeError:
            raise self.error("contains a lone surrogate") from None
        return value if type(value) is str else str.__str__(value)  # of a (str, Enum) the content

    def integer(self, value: int) -> int:
        self.size += 4
        if not INT64_MIN <= value <= INT64_MAX:
            raise self.error("is an int beyond 64 bits; use Decimal or str")
        return value

    def unusual(self, value: Any) -> Any:
        if isinstance(value, _BSON_TYPES):
            return self.bson(value)
        if isinstance(value, Enum):
            return self.value(value.value)
        if isinstance(value, list | tuple) or _has_members(value):
            return self.nested(value)
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, datetime):
            return self.instant(value)
        if isinstance(value, Decimal):
            return self.decimal(value)
        if isinstance(value, bytes):
            self.size += len(value)
            return bytes(value)
        if isinstance(value, UUID):
            self.size += 16
            return Binary(value.bytes, UUID_SUBTYPE)
        if _is_numpy_scalar(value):
            if value.dtype.kind in "mM":
                raise self.error(f"is a {type(value).__name__}; give a datetime with a time zone, or an int of ms")
            plain = value.item()
            if type(plain) is not type(value):  # as of a long double
                return self.value(plain)
        if isinstance(value, int):
            return self.integer(int(value))
        if isinstance(value, float):
            return float(value)
        raise self.error(f"is of type {type(value).__name__}, which has no exact form in BSON; {self.way_out(value)}")

    def bson(self, value: Any) -> Any:
        """Keep a value that the driver reads from a document of another program, of its type."""
        if isinstance(value, Binary):
            self.size += len(value)
            return value if value.subtype else bytes(value)
        if isinstance(value, Code):
            self.size += len(value)
            return value if value.scope is None else Code(str(value), self.nested(value.scope))
        return value

    def way_out(self, value: Any) -> str:
        """Say what to give in the place of a value that is refused."""
        if self.models:
            return 'give model_dump(mode="json") of its model'
        for method in ("tolist", "to_list", "to_dict"):  # of numpy, pandas and polars
            if hasattr(value, method):
                return f"give its .{method}()"
        return next((way for kinds, way in _WAYS_OUT if isinstance(value, kinds)), _ANY_WAY_OUT)

    def instant(self, value: datetime) -> datetime:
        if value != value:
            raise self.error("is NaT, which is no instant; use None")
        finer, to_datetime = getattr(value, "nanosecond", 0), getattr(value, "to_pydatetime", None)
        if to_datetime and not finer:  # pandas.Timestamp
            value = to_datetime()
        offset = value.utcoffset()
        if offset is None:
            raise self.error("is a naive datetime; give it a time zone, such as datetime.UTC")
        try:
            utc = value - offset
        except (OverflowError, ValueError):
            raise self.error("is a datetime that lies outside of the years 1 to 9999 in UTC") from None
        if finer or utc.microsecond % 1000:
            raise self.error(
                "is a datetime finer than a ms, which is all MongoDB stores; round it, as backtest_persist.utc_now() is"
            )
        return value

    def decimal(self, value: Decimal) -> Decimal128:
        sign, digits, exponent = value.as_tuple()
        if isinstance(exponent, int) and len(digits) <= 34 and -6176 <= exponent <= 6111:  # a seventh of the time
            bits = sign << 127 | (exponent + 6176) << 113 | int(Decimal((0, digits, 0)))
            return Decimal128.from_bid(bits.to_bytes(16, "little"))
        try:
            stored = Decimal128(value)
        except (DecimalException, ValueError):
            stored = None
        if stored is None or stored.to_decimal().as_tuple() != value.as_tuple():
            raise self.error("is a Decimal of more than 34 digits, with too large an exponent, or a NaN that is marked")
        return stored

    def nested(self, value: Any) -> Any:
        if id(value) in self.open:
            raise self.error("contains itself")
        if len(self.open) >= MAX_DEPTH:
            raise self.error(f"is nested deeper than {MAX_DEPTH} levels")
        self.open.add(id(value))
        self.size += 5
        is_model = isinstance(value, BaseModel)
        self.models += is_model
        plain = self.members(value)
        self.models -= is_model
        self.open.discard(id(value))
        return plain

    def members(self, value: Any) -> Any:
        kind: Any = type(value)  # pyright: ignore[reportUnknownVariableType]
        held: Any = value if kind is dict or kind is list else opened(value, self.what)
        if isinstance(held, list | tuple | dict):
            count = len(cast("Sequence[Any]", held))
            if count > _MANY and self.size + 3 * count > self._limit:
                raise self.too_large()
        if isinstance(held, list | tuple):
            items = enumerate(cast("Sequence[Any]", held))
            return [item if self.is_plain(item) else self.child(str(index), item) for index, item in items]
        if not isinstance(held, dict):
            return self.value(held)  # of a RootModel
        pairs = cast("dict[Any, Any]", held).items()
        return {
            (name := self.name(key)): item if self.is_plain(item) else self.child(name, item) for key, item in pairs
        }

    def is_plain(self, value: Any) -> bool:
        """Whether a value is what it is stored as, which most are, and counted; of others nothing is said."""
        kind: Any = type(value)  # pyright: ignore[reportUnknownVariableType]
        if kind is str:
            if len(value) > MAX_PLAIN_TEXT or not value.isascii():
                return False
            self.size += 8 + len(value)
        elif kind is float:
            self.size += 11
        elif kind is int:
            if not INT64_MIN <= value <= INT64_MAX:
                return False
            self.size += 7
        elif kind is bool or value is None:
            self.size += 3
        else:
            return False
        return True

    def name(self, key: Any) -> str:
        if not isinstance(key, str):
            raise self.error(f"has a key of type {type(key).__name__}; BSON keys are str, so give str(key)")
        if "\0" in key:
            raise self.error("has a key with NUL")
        if type(key) is str and key.isascii():
            self.size += 5 + len(key)
            return key
        return self.text(key)

    def child(self, step: str, value: Any) -> Any:
        self.path.append(step[:40])
        plain = self.value(value)
        self.path.pop()
        return plain


def _is_numpy_scalar(value: Any) -> bool:
    return type(value).__module__ == "numpy" and hasattr(value, "item") and not hasattr(value, "__len__")
