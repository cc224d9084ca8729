"""Fidelity: a payload comes back exactly, or is refused before anything is stored."""

import asyncio
from collections import OrderedDict
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from enum import Enum, IntEnum
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast
from uuid import UUID

import pytest
from bson import Binary, ObjectId
from pydantic import BaseModel

from backtest_persist.errors import InvalidPayloadError
from backtest_persist.testing.subjects import (
    Subject,
    is_list,
    is_overwritten,
    is_single_payload,
    keeps_payloads,
    stores_removed_as_data,
)
from backtest_persist.testing.suite import Suite, for_each, for_first

__all__ = ("Fidelity",)

_INF = float("inf")

_PLAIN_PAYLOAD: dict[str, Any] = {
    "none": None,
    "flags": [True, False, 1, 0, 1.0, 0.0, -0.0],
    "ints": [0, -1, 2**31, 2**53 + 1, 2**63 - 1, -(2**63)],
    "floats": [0.1 + 0.2, 1e16, 1e-7, 5e-324, 1.7976931348623157e308, 2.0**53, 100.0, float("nan"), _INF, -_INF],
    "texts": [
        "",
        " ",
        "a",
        "é",
        "e\u0301",
        "😀",
        "\0",
        "a\0b",
        "\n\r\t",
        '"',
        "\\",
        "\u2028",
        "\ufeff",
        "\x7f",
        "x" * 10_000,
    ],
    "texts that look like values": [
        "NaN",
        "Infinity",
        "null",
        "None",
        "true",
        "1",
        "1.0",
        "2024-01-01T00:00:00Z",
        "{}",
        "$x",
        "$a.b",
        "$$ROOT",
        "$$REMOVE",
    ],
    "decimals": [Decimal(text) for text in ("1.10", "1.1", "0", "-0.00", "1E+3", "1000", "0.1", "9" * 34, "1E-6000")],
    "odd decimals": [Decimal("NaN"), Decimal("Infinity"), Decimal("-Infinity")],
    "instants": [
        datetime(1970, 1, 1, tzinfo=UTC),
        datetime(1969, 12, 31, 23, 59, 59, 999_000, tzinfo=UTC),
        datetime(2024, 2, 29, 12, 30, 45, 678_000, tzinfo=UTC),
        datetime(1, 1, 1, tzinfo=UTC),
        datetime(9999, 12, 31, 23, 59, 59, 999_000, tzinfo=UTC),
    ],
    "uuids": [UUID(int=0), UUID(int=2**128 - 1)],
    "bytes": [b"", b"\0", bytes(range(256)), b"text"],
    "empty": [[], {}, [[]], [{}], {"": {}}],
    "": "the empty key",
    "$": 1,
    ".": 2,
    "$set": {"$set": {"a.b": 1}},
    "a.b": {"c.d": [{"e.f": None}]},
    "_id": "mine",
    "__v": 7,
    "when": -1,
    "payload": {"payload": None},
    "createDate": "never",
    "context": ["a"],
    "0": {"0": [0]},
    "😀": "é",
    "a b": "\u00a0",
    "k" * 1000: "long",
    "deep": [[[[[[[[[[[[[[[[[[[[{"a": [{"b": {"c": [1.5]}}]}]]]]]]]]]]]]]]]]]]]],
}
"""Every kind of plain data, under keys of every kind."""

_LOOKALIKES: list[dict[str, Any]] = [
    {"$date": "x"},
    {"$date": "2024-01-01T00:00:00.000Z"},
    {"$date": {"$numberLong": "0"}},
    {"$numberDecimal": "1"},
    {"$numberDecimal": "x", "more": 1},
    {"$numberDouble": "NaN"},
    {"$numberLong": "1"},
    {"$numberInt": 1},
    {"$binary": {"base64": "AA==", "subType": "00"}},
    {"$oid": "0" * 24},
    {"$code": "f()"},
    {"$code": "f()", "$scope": {}},
    {"$timestamp": {"t": 1, "i": 1}},
    {"$regularExpression": {"pattern": "a", "options": ""}},
    {"$uuid": "00000000-0000-0000-0000-000000000000"},
    {"$undefined": True},
    {"$literal": 1},
    {"$literal": None},
    {"$literal": {"$literal": {"$date": "x"}}},
    {"$literal": {"a": 1}, "removed": False},
    {"$ref": "a", "$id": 1},
    {"$regex": "a", "$options": ""},
    {"$minKey": 1},
    {"__type__": "datetime", "value": "x"},
    {"py/object": "builtins.dict"},
]


class _Side(Enum):
    LONG = "long"


class _Level(IntEnum):
    HIGH = 3


class _Model(BaseModel):
    price: Decimal
    side: _Side
    at: datetime
    inner: list["_Model"] = []


@dataclass
class _Point:
    x: int
    y: Any


def _cycle() -> dict[str, Any]:
    loop: dict[str, Any] = {}
    loop["again"] = [loop]
    return loop


def _deep(levels: int) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for _ in range(levels - 1):
        value = {"n": value}
    return value


_REFUSED_VALUES: dict[str, Any] = {
    "naive datetime": datetime(2024, 1, 1),
    "datetime finer than a ms": datetime(2024, 1, 1, microsecond=1, tzinfo=UTC),
    "int beyond 64 bits": 2**63,
    "negative int beyond 64 bits": -(2**63) - 1,
    "set": {1},
    "object": object(),
    "class": _Point,
    "function": _cycle,
    "complex": 1j,
    "timedelta": timedelta(1),
    "lone surrogate": "\ud800",
    "key with a lone surrogate": {"\ud800": 1},
    "key that is an int": {1: "a"},
    "key that is None": {None: "a"},
    "key that is a bool": {True: "a"},
    "key that is a tuple": {("a", "b"): 1},
    "cycle": _cycle(),
    "inside a model": _Model(price=Decimal(1), side=_Side.LONG, at=datetime(2024, 1, 1)),
    "inside a dataclass": _Point(1, {1}),
}

_LIMIT_VALUES: dict[str, Any] = {
    "100 levels": _deep(100),
    "key with NUL": {"a\0b": 1},
    "Decimal of 35 digits": Decimal("1" * 35),
    "Decimal with a large exponent": Decimal("1E+7000"),
    "signalling NaN": Decimal("sNaN"),
    "ObjectId": ObjectId("65a1b2c3d4e5f60718293a4b"),
    "Binary of subtype 5": Binary(b"a", 5),
}


def _exact_form(value: Any) -> Any:
    """Return a form that is equal only for equal values of equal types; NaN equals itself, 0.0 is not -0.0."""
    if type(value) is dict:
        return {key: _exact_form(item) for key, item in cast("dict[Any, Any]", value).items()}
    if type(value) is list:
        return [_exact_form(item) for item in cast("list[Any]", value)]
    if isinstance(value, datetime):
        return "datetime", value.isoformat()
    return type(value).__name__, repr(value)


class Fidelity(Suite):
    """A payload comes back exactly, or is refused."""

    @for_each(keeps_payloads)
    async def test_plain_data_comes_back_exactly(self, tmp_path: Path, subject: Subject) -> None:
        """Values of every plain type, under keys of every kind, keep their types, also in a store opened again."""
        async with self.open(tmp_path) as persist:
            await subject.write(persist, subject.sample, _PLAIN_PAYLOAD)
            assert _exact_form(await subject.read(persist, subject.sample)) == _exact_form(_PLAIN_PAYLOAD)
        async with self.open(tmp_path) as persist:
            assert _exact_form(await subject.read(persist, subject.sample)) == _exact_form(_PLAIN_PAYLOAD)

    @for_each(keeps_payloads)
    async def test_data_that_looks_like_an_encoding_is_data(self, tmp_path: Path, subject: Subject) -> None:
        """A dict that resembles the tag of another format is a plain dict, as the whole payload or inside of one."""
        async with self.open(tmp_path) as persist:
            payloads = [
                *_LOOKALIKES,
                {"inner": [*_LOOKALIKES, *({"more": value} for value in _LOOKALIKES)]},
            ]
            for n, payload in enumerate(payloads):
                parts = subject.numbered(n)
                await subject.write(persist, parts, payload)
                assert _exact_form(await subject.read(persist, parts)) == _exact_form(payload)

    @for_each(stores_removed_as_data)
    async def test_without_tombstones_a_key_named_removed_is_data(self, tmp_path: Path, subject: Subject) -> None:
        """A payload with ``removed: true`` is read and listed where nothing can be removed."""
        marks: list[dict[str, Any]] = [{"removed": True, "n": 1}, {"removed": True, "$literal": {"n": 1}}]
        async with self.open(tmp_path) as persist:
            for n, payload in enumerate(marks):
                parts = subject.numbered(n)
                await subject.write(persist, parts, payload)
                assert await subject.read(persist, parts) == payload

    @for_each(keeps_payloads)
    async def test_an_infinite_estimate_is_not_an_unknown_one(self, tmp_path: Path, subject: Subject) -> None:
        """Under ``minuteEstimatedTime`` None stays None and infinity stays infinity, at any depth."""
        async with self.open(tmp_path) as persist:
            for n, value in enumerate((None, _INF, -_INF, float("nan"), 0, 60, 1.5, "inf", [_INF, None], {"a": _INF})):
                payload = {"minuteEstimatedTime": value, "other": value, "deep": [{"minuteEstimatedTime": value}]}
                parts = subject.numbered(n)
                await subject.write(persist, parts, payload)
                assert _exact_form(await subject.read(persist, parts)) == _exact_form(payload)

    @for_each(keeps_payloads)
    async def test_other_values_come_back_as_plain_data(self, tmp_path: Path, subject: Subject) -> None:
        """Models, dataclasses, enums, tuples and other mappings are stored by value; datetimes come back in UTC."""
        eastern = timezone(timedelta(hours=-5, minutes=-30))
        at = datetime(2024, 1, 1, 20, tzinfo=eastern)
        model = _Model(price=Decimal("1.10"), side=_Side.LONG, at=at)
        model.inner = [model.model_copy(deep=True)]
        utc = datetime(2024, 1, 2, 1, 30, tzinfo=UTC)
        ordered: dict[str, Any] = OrderedDict(b=1)
        plain_model: dict[str, Any] = {"price": Decimal("1.10"), "side": "long", "at": utc, "inner": []}
        payload: dict[str, Any] = {
            "model": model,
            "point": _Point(1, (1, _Side.LONG)),
            "level": _Level.HIGH,
            "at": at,
            "mapping": MappingProxyType({"a": ordered}),
        }
        expected: dict[str, Any] = {
            "model": {**plain_model, "inner": [plain_model]},
            "point": {"x": 1, "y": [1, "long"]},
            "level": 3,
            "at": utc,
            "mapping": {"a": {"b": 1}},
        }
        async with self.open(tmp_path) as persist:
            await subject.write(persist, subject.sample, payload)
            assert _exact_form(await subject.read(persist, subject.sample)) == _exact_form(expected)

    @for_each(keeps_payloads)
    async def test_a_payload_may_be_a_model_or_a_dataclass(self, tmp_path: Path, subject: Subject) -> None:
        """As the whole payload either is read as the dict of its fields."""

        class Model(BaseModel):
            id: str
            n: int

        @dataclass
        class Point:
            id: str
            n: int

        async with self.open(tmp_path) as persist:
            for number, payload in enumerate(
                (Model(id="0", n=1), Point(id="1", n=2), MappingProxyType({"id": "2", "n": 3}))
            ):
                parts = (*subject.sample[:-1], str(number)) if is_list(subject) else subject.numbered(number)
                await subject.write(persist, parts, payload)
                expected = {"n": number + 1} if is_list(subject) else {"id": str(number), "n": number + 1}
                assert _exact_form(await subject.read(persist, parts)) == _exact_form(expected)

    @for_each(keeps_payloads)
    async def test_a_payload_is_copied_when_the_call_is_made(self, tmp_path: Path, subject: Subject) -> None:
        """A change by the caller during the write, or afterwards, is not stored."""
        async with self.open(tmp_path) as persist:
            payload: dict[str, Any] = {"items": [1, {"a": 1}]}
            adapter = await subject.adapter(persist, subject.sample)
            writing = asyncio.ensure_future(subject.call(adapter, subject.sample, payload))
            await asyncio.sleep(0)
            payload["items"][1]["a"] = 2
            payload["items"].append(3)
            await writing
            assert await subject.read(persist, subject.sample) == {"items": [1, {"a": 1}]}
            payload["items"].clear()
            assert await subject.read(persist, subject.sample) == {"items": [1, {"a": 1}]}

    @for_each(keeps_payloads)
    async def test_the_result_of_a_read_belongs_to_the_caller(self, tmp_path: Path, subject: Subject) -> None:
        """Changing it changes neither the stored value nor the result of another read."""
        async with self.open(tmp_path) as persist:
            await subject.write(persist, subject.sample, {"items": [1, {"a": 1}]})
            first = await subject.read(persist, subject.sample)
            second = await subject.read(persist, subject.sample)
            first["items"][1]["a"] = 2
            first["items"].append(3)
            assert second == {"items": [1, {"a": 1}]}
            assert await subject.read(persist, subject.sample) == {"items": [1, {"a": 1}]}

    @for_each(is_overwritten)
    async def test_a_value_that_cannot_come_back_is_refused_and_the_old_one_stays(
        self, tmp_path: Path, subject: Subject
    ) -> None:
        """It is an InvalidPayloadError, wherever it is in the payload; nothing of the payload is stored."""
        async with self.open(tmp_path) as persist:
            for bad in _REFUSED_VALUES.values():
                with pytest.raises(InvalidPayloadError):
                    await subject.write(persist, subject.sample, {"good": 1, "bad": bad})
            assert await subject.read(persist, subject.sample) is None
            await subject.write(persist, subject.sample, {"old": 1})
            for bad in _REFUSED_VALUES.values():
                with pytest.raises(InvalidPayloadError):
                    await subject.write(persist, subject.sample, {"good": 1, "inner": [{"bad": [bad]}]})
            assert await subject.read(persist, subject.sample) == {"old": 1}

    @for_each(is_single_payload)
    async def test_a_payload_that_is_no_mapping_is_refused(self, tmp_path: Path, subject: Subject) -> None:
        """A list, a text, a number or a class is an InvalidPayloadError, and nothing is stored."""
        async with self.open(tmp_path) as persist:
            for bad in ([1], "text", b"bytes", 5, 1.5, True, _Point, _Model, {1}):
                with pytest.raises(InvalidPayloadError):
                    await subject.write(persist, subject.sample, bad)
            assert await subject.read(persist, subject.sample) is None

    @for_first(is_overwritten)
    @pytest.mark.parametrize("name", _LIMIT_VALUES)
    async def test_a_value_at_the_limits_is_kept_exactly_or_refused(
        self, tmp_path: Path, name: str, subject: Subject
    ) -> None:
        """A store with narrower limits raises InvalidPayloadError, and keeps the old value."""
        payload = {"border": _LIMIT_VALUES[name]}
        async with self.open(tmp_path) as persist:
            await subject.write(persist, subject.sample, {"old": 1})
            try:
                await subject.write(persist, subject.sample, payload)
            except InvalidPayloadError:
                payload = {"old": 1}
            assert _exact_form(await subject.read(persist, subject.sample)) == _exact_form(payload)

    @for_first(keeps_payloads)
    async def test_a_large_payload_comes_back_whole(self, tmp_path: Path, subject: Subject) -> None:
        """It has a megabyte of text, ten thousand members, and fifty levels."""
        payload = {"text": "é" * 500_000, "many": {str(n): [n, n / 7] for n in range(10_000)}, "deep": _deep(50)}
        async with self.open(tmp_path) as persist:
            await subject.write(persist, subject.sample, payload)
            assert _exact_form(await subject.read(persist, subject.sample)) == _exact_form(payload)
