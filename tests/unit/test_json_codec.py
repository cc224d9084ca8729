"""Payloads as text: readable JSON, exact on the way back, and plain where the data is plain."""

import json
import math
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from bson import encode as bson_encode
from hypothesis import given
from hypothesis import strategies as st

from backtest_persist.backends.json import codec
from backtest_persist.core.payload import encode_payload
from tests.support.payloads import BSON_VALUES, keys, typed, values


@given(st.dictionaries(keys, values, max_size=5))
def test_a_payload_comes_back_exactly(payload: dict[str, Any]) -> None:
    """Nested plain data keeps its values and types, also when it looks like the tags of Extended JSON."""
    assert typed(through(payload)) == typed(payload)


TAGS = (
    *("$binary", "$code", "$date", "$literal", "$maxKey", "$minKey", "$numberDecimal", "$numberDouble"),
    *("$oid", "$regularExpression", "$timestamp"),
)


@pytest.mark.parametrize("tag", TAGS)
@pytest.mark.parametrize("content", ["1", None, 1.5, {"base64": "AA=="}, {}, [], {"$literal": 1}])
def test_what_looks_like_a_tag_is_data(tag: str, content: Any) -> None:
    """A key of a user that is also a tag round-trips as the only key, nested, and beside others."""
    for payload in ({tag: content}, {"a": [{tag: {tag: content}}]}, {tag: content, "removed": True}):
        assert through(payload) == payload


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan, None, 5, -0.0])
def test_a_signal_that_never_expires_still_does_not(value: Any) -> None:
    """`minuteEstimatedTime` keeps infinity, which is null in the file as in the framework, and None, which is not."""
    payload = {"minuteEstimatedTime": value, "other": value, "nested": [{"minuteEstimatedTime": value}]}
    assert typed(through(payload)) == typed(payload)
    text = json.loads(codec.dumps(codec.encode(encode_payload(payload, "test"))))
    assert (text["minuteEstimatedTime"] is None) == (value == math.inf)


def test_plain_data_is_plain_json() -> None:
    """Data that JSON can express gives the text of the framework: compact, not escaped."""
    payload = {"id": "ü", "priceOpen": 42000.5, "levels": [10, 20], "note": None, "open": True}
    assert codec.dumps(codec.encode(payload)).decode() == (
        '{"id":"ü","priceOpen":42000.5,"levels":[10,20],"note":null,"open":true}'
    )


def test_types_that_json_lacks_are_written_as_extended_json() -> None:
    """Decimals, instants, bytes and non-finite floats get the tags of MongoDB Extended JSON."""
    ahead = timezone(timedelta(hours=5))
    payload = {"d": Decimal("1.10"), "t": datetime(2024, 1, 31, 17, tzinfo=ahead), "b": b"\x00", "n": -math.inf}
    assert json.loads(codec.dumps(codec.encode(encode_payload(payload, "test")))) == {
        "d": {"$numberDecimal": "1.10"},
        "t": {"$date": "2024-01-31T12:00:00.000Z"},
        "b": {"$binary": {"base64": "AA==", "subType": "00"}},
        "n": {"$numberDouble": "-Infinity"},
    }
    assert through(payload) == {**payload, "t": datetime(2024, 1, 31, 12, tzinfo=UTC)}


@pytest.mark.parametrize("value", BSON_VALUES.values(), ids=BSON_VALUES)
def test_what_only_bson_has_keeps_its_type(value: Any) -> None:
    """It is written as Extended JSON and read as what the driver gives for it, alone and among others."""
    for payload in ({"value": value}, {"inner": [{"value": value, "more": 1}, value]}):
        assert bson_encode(encode_payload(through(payload), "test") or {}) == bson_encode(
            encode_payload(payload, "test") or {}
        )


def test_a_uuid_is_binary_of_subtype_4() -> None:
    """It is the form in which other programs read it."""
    assert json.loads(codec.dumps(codec.encode({"key": UUID(int=5)}))) == {
        "key": {"$binary": {"base64": "AAAAAAAAAAAAAAAAAAAABQ==", "subType": "04"}}
    }


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b'{"id": "bro',
        b"\xff",
        b'{"$date": "yesterday"}',
        b'{"$date": 5}',
        b'{"$numberDecimal": "x"}',
        b'{"$binary": "x"}',
        b'{"$binary": {"base64": "AA=="}}',
        b'{"$binary": {"base64": "AA==", "subType": "x"}}',
        b'{"$oid": "x"}',
        b'{"$timestamp": 5}',
        b'{"$regularExpression": {"pattern": "a"}}',
        b'{"$date": {"$numberLong": "x"}}',
        b'{"$numberDouble": []}',
        b"[" * 100_000,
    ],
    ids=lambda text: repr(text[:20]),
)
def test_damaged_text_is_a_value_error(text: bytes) -> None:
    """Damaged text is never guessed at, and raises nothing else."""
    with pytest.raises(ValueError):  # noqa: PT011  # its text is for people
        codec.decode(codec.loads(text))


def through(payload: dict[str, Any]) -> Any:
    """Return the payload after it was written and read."""
    return codec.decode(codec.loads(codec.dumps(codec.encode(encode_payload(payload, "test")))))


def test_a_number_that_python_does_not_parse_is_malformed() -> None:
    """The message says so, and advises no setting of the interpreter."""
    with pytest.raises(ValueError, match=r"^a number has more than 4,300 digits$"):
        codec.loads(b"[" + b"1" * 5000 + b"]")
