"""Payloads: what goes in is stored exactly or refused before anything is sent."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from decimal import Decimal, DecimalException
from enum import Enum
from typing import Annotated, Any, cast

from bson import encode
from bson.decimal128 import Decimal128
from pydantic import BaseModel, SkipValidation

from backtest_persist.contracts import PayloadInput
from backtest_persist.core.keys import INT64_MAX, INT64_MIN, checked_name
from backtest_persist.errors import InvalidKeyError, InvalidPayloadError

__all__ = ("Payload", "encode_entries", "encode_list", "encode_payload")

Payload = Annotated[dict[str, Any], SkipValidation]
"""A stored payload: plain dict, list, str, int, float, bool, None, Decimal, aware datetime, bytes."""

MAX_DEPTH = 90
MAX_BYTES = 16 * 1024 * 1024 - 64 * 1024  # room for the context and the dates in the 16 MiB of a document
_SURELY_SMALL = 1024 * 1024


def encode_payload(payload: PayloadInput | None, what: str) -> dict[str, Any] | None:
    """Return a deep copy of a payload that BSON stores exactly; `what` names domain and context in errors.

    Raises `InvalidPayloadError` for: a payload that is no mapping or model, keys that are not str, naive datetimes or
    ones finer than a ms, ints beyond 64 bits, decimals beyond 34 digits, sets and other foreign types, cycles,
    more than 90 levels, more than 16 MiB.
    """
    if payload is None:
        return None
    if not isinstance(payload, Mapping | BaseModel) and not _is_dataclass(payload):
        raise InvalidPayloadError(f"{what}: a payload is a mapping or a pydantic model, not {type(payload).__name__}.")
    return _Encoder(what).encode(payload)


def encode_list(items: Sequence[Any], what: str) -> list[Any]:
    """Return a deep copy of a list of payload values; see `encode_payload`."""
    if not isinstance(items, Sequence) or isinstance(items, str | bytes):
        raise InvalidPayloadError(f"{what}: expected a list, not {type(items).__name__}.")
    return _Encoder(what).encode(list(items))


def encode_entries(
    entries: Iterable[PayloadInput], what: str, *, first_wins: bool = False
) -> dict[str, dict[str, Any]]:
    """Return id -> encoded payload of list entries, which are keyed by their own ``id``; see `encode_payload`.

    All are checked before any is sent. An id that is missing or no str is an `InvalidKeyError`; of two entries with
    one id the later stands, or the first with `first_wins`.
    """
    encoded: dict[str, dict[str, Any]] = {}
    for position, entry in enumerate(entries):
        payload = encode_payload(entry, f"{what}, entry {position}")
        if payload is None or "id" not in payload:
            raise InvalidKeyError(f"{what}, entry {position}: has no 'id', by which it is kept.")
        entry_id = checked_name(payload["id"], f"{what}, entry {position}: id")
        if not (first_wins and entry_id in encoded):
            encoded[entry_id] = payload
    return encoded


def _is_dataclass(value: Any) -> bool:
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


class _Encoder:
    def __init__(self, what: str) -> None:
        self.what = what
        self.size = 0  # what BSON needs at the least, and no less than a sixth of it
        self.path: list[str] = []
        self.open: set[int] = set()

    def encode(self, value: Any) -> Any:
        plain = self.value(value)
        if self.size > _SURELY_SMALL and len(encode({"payload": plain})) > MAX_BYTES:
            raise self.error("is larger than 16 MiB; split it or keep it elsewhere")
        return plain

    def error(self, problem: str) -> InvalidPayloadError:
        where = f" at {'.'.join(self.path)}" if self.path else ""
        return InvalidPayloadError(f"{self.what}: the payload{where} {problem}.")

    def value(self, value: Any) -> Any:
        self.size += 3
        if self.size > MAX_BYTES:  # ends the walk of a small value that multiplies itself, too
            raise self.error("is larger than 16 MiB; split it or keep it elsewhere")
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
        return str(value)

    def integer(self, value: int) -> int:
        self.size += 4
        if not INT64_MIN <= value <= INT64_MAX:
            raise self.error("is an int beyond 64 bits; use Decimal or str")
        return value

    def unusual(self, value: Any) -> Any:
        if isinstance(value, Enum):
            return self.value(value.value)
        if isinstance(value, Mapping | BaseModel | list | tuple) or _is_dataclass(value):
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
        if _is_numpy_scalar(value):
            return self.value(value.item())
        if isinstance(value, int):
            return self.integer(int(value))
        if isinstance(value, float):
            return float(value)
        raise self.error(f"is of type {type(value).__name__}, which has no exact form in BSON")

    def instant(self, value: datetime) -> datetime:
        if value.utcoffset() is None:
            raise self.error("is a naive datetime; give it a time zone, such as datetime.UTC")
        if value.microsecond % 1000 or getattr(value, "nanosecond", 0):
            raise self.error("is a datetime finer than a ms, which is all MongoDB stores; round it")
        to_datetime = getattr(value, "to_pydatetime", None)  # pandas.Timestamp
        return cast("datetime", to_datetime()) if to_datetime else value

    def decimal(self, value: Decimal) -> Decimal128:
        try:
            stored = Decimal128(value)
        except DecimalException:
            stored = None
        if stored is None or (value.is_finite() and stored.to_decimal().as_tuple() != value.as_tuple()):
            raise self.error("is a Decimal of more than 34 digits or with too large an exponent")
        return stored

    def nested(self, value: Any) -> Any:
        if id(value) in self.open:
            raise self.error("contains itself")
        if len(self.open) >= MAX_DEPTH:
            raise self.error(f"is nested deeper than {MAX_DEPTH} levels")
        self.open.add(id(value))
        self.size += 5
        plain = self.members(value)
        self.open.discard(id(value))
        return plain

    def members(self, value: Any) -> list[Any] | dict[str, Any]:
        if isinstance(value, list | tuple):
            return [self.child(str(index), item) for index, item in enumerate(cast("Sequence[Any]", value))]
        if isinstance(value, BaseModel):
            items: Iterable[tuple[Any, Any]] = value.model_dump(by_alias=True).items()
        elif isinstance(value, Mapping):
            items = cast("Mapping[Any, Any]", value).items()
        else:
            items = [(field.name, getattr(value, field.name)) for field in dataclasses.fields(value)]
        return {self.name(key): self.child(str(key), item) for key, item in items}

    def name(self, key: Any) -> str:
        if not isinstance(key, str):
            raise self.error(f"has a key of type {type(key).__name__}; BSON keys are str")
        if "\0" in key:
            raise self.error("has a key with NUL")
        return self.text(key)

    def child(self, step: str, value: Any) -> Any:
        self.path.append(step[:40])
        plain = self.value(value)
        self.path.pop()
        return plain


def _is_numpy_scalar(value: Any) -> bool:
    return type(value).__module__ == "numpy" and hasattr(value, "item") and not hasattr(value, "__len__")
