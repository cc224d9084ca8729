"""Payloads before they are sent: what each value becomes, and which are refused."""

import random
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from enum import Enum
from pathlib import PurePath
from typing import Any, NamedTuple, cast
from uuid import UUID

import numpy as np
import pandas as pd
import pytest
from bson import BSON, Binary, Decimal128, encode
from pydantic import BaseModel, RootModel, field_serializer

from backtest_persist import InvalidPayloadError
from backtest_persist.connections import CODEC_OPTIONS, to_plain
from backtest_persist.core.payload import encode_entries, encode_list, encode_payload
from tests.support.payloads import BSON_VALUES

EAST, WEST = timezone(timedelta(hours=5)), timezone(timedelta(hours=-5))


class Sym(str, Enum):  # noqa: UP042  # whose str() is the name of the member
    BTC = "BTC"


class Text(str):
    __slots__ = ()

    def __str__(self) -> str:
        return "another"


class Fill(NamedTuple):
    price: float
    size: float


class Order(BaseModel):
    price: float = 0.0
    next: Any = None


class Link(BaseModel):
    next: "Link | None" = None


class Broken(Mapping[str, Any]):
    """A mapping whose members cannot be read."""

    def __getitem__(self, key: str) -> Any:
        raise ZeroDivisionError

    def __iter__(self) -> Iterator[str]:
        return iter("a")

    def __len__(self) -> int:
        return 1


class Failing(BaseModel):
    price: float = 0.0

    @field_serializer("price")
    def fail(self, price: float) -> float:
        raise ZeroDivisionError


@dataclass
class Unset:
    price: float = field(init=False)


def itself() -> Order:
    order = Order()
    order.next = order
    return order


def linked() -> Link:
    link = Link()
    link.next = link
    return link


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        ({Sym.BTC: Sym.BTC}, {"BTC": "BTC"}),
        ({Text("a"): Text("b")}, {"a": "b"}),
        (Fill(1.0, 2.0), [1.0, 2.0]),
        (RootModel[list[int]]([1, 2]), [1, 2]),
        (RootModel[int](1), 1),
        ([RootModel[dict[str, Order]]({"a": Order()})], [{"a": {"price": 0.0, "next": None}}]),
        (np.float32(0.5), 0.5),
        (np.str_("a"), "a"),
        (datetime.max.replace(microsecond=999_000, tzinfo=UTC), datetime(9999, 12, 31, 23, 59, 59, 999_000, UTC)),
        (datetime.min.replace(tzinfo=WEST), datetime(1, 1, 1, 5, tzinfo=UTC)),
        (pd.Timestamp("2024-01-01", tz="UTC"), datetime(2024, 1, 1, tzinfo=UTC)),
        (pd.Timestamp("1677-09-21T01", tz="UTC").tz_convert(EAST), datetime(1677, 9, 21, 1, tzinfo=UTC)),
        ({"$ref": "c", "$id": 1, "$db": None}, {"$ref": "c", "$id": 1, "$db": None}),
    ],
    ids=repr,
)
def test_what_is_not_plain_goes_in_by_value(value: Any, plain: Any) -> None:
    """Enums, named tuples, root models, numpy scalars: each becomes the plain data it holds, exact types."""
    encoded = encode_payload({"value": value}, "here")
    assert encoded == {"value": plain}
    assert encoded is not None
    if isinstance(plain, dict):
        assert {type(key) for key in encoded["value"]} == {str}  # pyright: ignore[reportUnknownVariableType]
        assert repr(encoded["value"]) == repr(plain)  # pyright: ignore[reportUnknownArgumentType]


def test_a_root_model_of_a_mapping_is_a_payload() -> None:
    """A RootModel is encoded as the mapping that it holds."""
    assert encode_payload(RootModel[dict[str, int]]({"a": 1}), "here") == {"a": 1}


@pytest.mark.parametrize(
    "value",
    [
        np.datetime64("2024-01-01T00:00:00.000000000"),
        np.datetime64("2024-01-01", "ms"),
        np.timedelta64(5, "ns"),
        np.longdouble(0.5),
        np.clongdouble(1),
        np.array([1]),
        pd.NaT,
        pd.Timestamp("2024-01-01"),
        pd.Timestamp("2024-01-01T00:00:00.000000001", tz="UTC"),
        pd.Timedelta(1),
        itself(),
        linked(),
        Broken(),
        Failing(),
        Unset(),
        datetime.min.replace(tzinfo=EAST),
        datetime.max.replace(microsecond=0, tzinfo=WEST),
        datetime(2024, 1, 1, tzinfo=timezone(timedelta(microseconds=1))),
    ],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.parametrize("beside", ["", "x" * 1_500_000], ids=["small", "large"])
def test_what_has_no_exact_form_is_refused(value: Any, beside: str) -> None:
    """Whatever is wrong with a value, the error is an InvalidPayloadError that says where, beside a large one too."""
    with pytest.raises(InvalidPayloadError, match="here"):
        encode_payload({"beside": beside, "value": [value]}, "here")
    with pytest.raises(InvalidPayloadError, match="here"):
        encode_list([beside, value], "here")


@pytest.mark.parametrize(
    "payload", [RootModel[list[int]]([1]), RootModel[int](1), itself(), linked(), Broken(), Failing(), Unset()]
)
def test_what_holds_no_members_is_no_payload(payload: Any) -> None:
    """A root model of a list, and what cannot be read, is refused as a whole payload as well."""
    with pytest.raises(InvalidPayloadError, match="here"):
        encode_payload(payload, "here")


def test_a_numpy_date_is_refused_with_a_word_on_what_to_use() -> None:
    """Its number means nothing without its unit."""
    with pytest.raises(InvalidPayloadError, match="datetime with a time zone"):
        encode_payload({"at": np.datetime64(1, "ns")}, "here")


def test_a_model_that_was_constructed_with_another_type_is_stored_without_a_warning() -> None:
    """`model_construct` checks nothing; what is there is what is stored."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert encode_payload(Order.model_construct(price="much"), "here") == {"price": "much", "next": None}


def test_a_uuid_is_binary_of_subtype_4() -> None:
    """It is the form that every driver reads, and comes back as a UUID."""
    encoded = encode_payload({"key": UUID(int=5)}, "here")
    assert encoded == {"key": Binary(UUID(int=5).bytes, 4)}
    assert to_plain(encoded) == {"key": UUID(int=5)}


@pytest.mark.parametrize("value", BSON_VALUES.values(), ids=BSON_VALUES)
def test_what_only_bson_has_is_written_back_as_it_was_read(value: Any) -> None:
    """A value that another program stored keeps its type and content when its payload is read and written."""
    stored = encode(encode_payload({"value": value, "inner": [value]}, "here") or {})
    read = to_plain(BSON(stored).decode(CODEC_OPTIONS))
    assert type(read["value"]) is type(value)
    assert encode(encode_payload(read, "here") or {}) == stored


WAYS_OUT: dict[str, tuple[Any, str]] = {
    "date": (date(2024, 1, 1), r"\.isoformat\(\)"),
    "timedelta": (timedelta(1), r"\.total_seconds\(\)"),
    "set": ({1}, r"list\(\.\.\.\)"),
    "generator": ((n for n in (1, 2)), r"list\(\.\.\.\)"),
    "array": (np.array([1]), r"\.tolist\(\)"),
    "frame": (pd.DataFrame({"a": [1]}), r"\.to_dict\(\)"),
    "path": (PurePath("a"), r"str\(\.\.\.\)"),
    "pattern": (re.compile("a"), "bson.Regex"),
    "key": ({1: 2}, r"str\(key\)"),
    "fine instant": (datetime(2024, 1, 1, microsecond=1, tzinfo=UTC), r"utc_now\(\)"),
    "in a model": (Order(next=[{1}]), r"model_dump\(mode=\"json\"\)"),
}


@pytest.mark.parametrize(("value", "way"), WAYS_OUT.values(), ids=WAYS_OUT)
def test_a_refusal_says_what_to_give_instead(value: Any, way: str) -> None:
    """The message fits the type; after a model its advice is not about models any more."""
    with pytest.raises(InvalidPayloadError, match=way):
        encode_payload({"value": value}, "here")
    with pytest.raises(InvalidPayloadError) as caught:
        encode_payload({"model": Order(), "value": {1}}, "here")
    assert "model_dump" not in str(caught.value)


@pytest.mark.parametrize("entries", [None, 5, object()])
def test_entries_are_something_to_iterate_over(entries: Any) -> None:
    """None is no empty list."""
    with pytest.raises(InvalidPayloadError, match="here"):
        encode_entries(entries, "here")


def test_a_decimal_is_the_one_of_the_driver() -> None:
    """A decimal becomes the bits that the driver gives it, and comes back with its digits, up to the limits of BSON."""
    chance = random.Random(1)
    decimals = [
        Decimal(text) for text in ("0", "-0.00", "1E-6176", "1E+6111", f"-{'9' * 34}E+6111", "NaN", "-Infinity")
    ]
    for _ in range(500):
        digits = tuple(chance.choices(range(10), k=chance.randint(1, 34)))
        decimals.append(Decimal((chance.randint(0, 1), digits, chance.choice([0, -2, chance.randint(-6176, 6111)]))))
    for decimal in decimals:
        encoded: Any = encode_payload({"value": decimal}, "here")
        stored, expected = encoded["value"], cast("Any", Decimal128(decimal))
        assert stored.bid == expected.bid
        assert str(to_plain(stored)) == str(decimal)
    for refused in ("1E-6177", "1E+6112", "1" * 35, "NaN5"):
        with pytest.raises(InvalidPayloadError, match="Decimal"):
            encode_payload({"value": Decimal(refused)}, "here")
