"""Payloads as text: readable JSON, exact on the way back, and plain where the data is plain."""

import json
import math
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backtest_persist.backends.json import codec
from backtest_persist.core.payload import encode_payload
from tests.support.payloads import keys, typed, values


@given(st.dictionaries(keys, values, max_size=5))
def test_a_payload_comes_back_exactly(payload: dict[str, Any]) -> None:
    """Nested plain data keeps its values and types, also when it looks like the tags of Extended JSON."""
    assert typed(through(payload)) == typed(payload)


@pytest.mark.parametrize("tag", ["$numberDecimal", "$date", "$binary", "$numberDouble", "$literal"])
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
