"""Names and payloads of a dump: safe as paths and readable as JSON, and exact on the way back."""

import json
import math
import os
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from backtest_persist.backends.json import codec
from backtest_persist.backends.json.folder import natural
from backtest_persist.backends.json.names import escape, shorten, unescape
from backtest_persist.core.payload import encode_payload
from tests.support.payloads import keys, typed, values

NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40)


@given(NAMES)
@example("..")
@example(".")
@example("../../etc/passwd")
@example("a/b\\c\0d")
@example("CON")
@example("nul.json")
@example("%2F")
@example(".tmp-1-2")
@example("ends with a dot.")
def test_a_name_becomes_one_harmless_path_segment_and_comes_back(name: str) -> None:
    """Whatever a name holds, it names a file of its own directory, hides nowhere, and is decoded to what it was."""
    segment = escape(name)
    assert unescape(segment) == name
    assert segment not in ("", ".", "..")
    assert not segment.startswith(".")
    assert not set(segment) & {"/", "\\", "\0", "\n"}
    assert os.path.normpath(f"/dump/{segment}") == f"/dump/{segment}"


@given(st.lists(NAMES, min_size=2, max_size=2, unique=True))
def test_two_names_never_share_a_segment(names: list[str]) -> None:
    """Escaping is injective, also when a name looks like the escape of another."""
    assert escape(names[0]) != escape(names[1])
    assert escape(names[0]) != escape(escape(names[0])) or "%" not in escape(names[0])


@pytest.mark.parametrize("name", ["BTCUSDT", "BTC:USDT", "my_strategy", "llm news", "ü😀", "2024-01", "a.b", "x" * 200])
def test_an_ordinary_name_stands_as_it_is(name: str) -> None:
    """What means nothing in a path is not touched: the files are those of the TypeScript framework."""
    assert shorten(escape(name)) == name


@pytest.mark.parametrize("name", ["x" * 201, "é" * 10_000, "%" * 300, "😀" * 100])
def test_a_long_name_is_shortened_to_one_of_its_own(name: str) -> None:
    """It fits the 255 bytes of a file name with room to spare, is valid text, and differs from its neighbours."""
    short = shorten(escape(name))
    assert len(short.encode()) <= 200
    assert "%~" in short
    assert short != shorten(escape(name + "x"))


def test_numbers_in_names_are_ordered_as_numbers() -> None:
    """The order of the original's lists: 2 before 10."""
    names = ["a10", "a2", "10", "9", "b", "a"]
    assert sorted(names, key=natural) == ["9", "10", "a", "a2", "a10", "b"]


@given(st.dictionaries(keys, values, max_size=5))
def test_a_payload_comes_back_exactly(payload: dict[str, Any]) -> None:
    """Nested plain data, types and all, also when it looks like the tags of Extended JSON."""
    assert typed(through(payload)) == typed(payload)


@pytest.mark.parametrize("tag", ["$numberDecimal", "$date", "$binary", "$numberDouble", "$literal"])
@pytest.mark.parametrize("content", ["1", None, 1.5, {"base64": "AA=="}, {}, [], {"$literal": 1}])
def test_what_looks_like_a_tag_is_data(tag: str, content: Any) -> None:
    """A key of the user's own that is a tag round-trips, alone, nested, and beside others."""
    for payload in ({tag: content}, {"a": [{tag: {tag: content}}]}, {tag: content, "removed": True}):
        assert through(payload) == payload


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan, None, 5, -0.0])
def test_an_eternal_signal_stays_eternal(value: Any) -> None:
    """`minuteEstimatedTime` keeps infinity, which is null in the file as in the original's, and None, which is not."""
    payload = {"minuteEstimatedTime": value, "other": value, "nested": [{"minuteEstimatedTime": value}]}
    assert typed(through(payload)) == typed(payload)
    text = json.loads(codec.dumps(codec.encode(encode_payload(payload, "test"))))
    assert (text["minuteEstimatedTime"] is None) == (value == math.inf)


def test_plain_data_is_plain_json() -> None:
    """Without foreign types the text is what the original writes: compact, not escaped."""
    payload = {"id": "ü", "priceOpen": 42000.5, "levels": [10, 20], "note": None, "open": True}
    assert codec.dumps(codec.encode(payload)).decode() == (
        '{"id":"ü","priceOpen":42000.5,"levels":[10,20],"note":null,"open":true}'
    )


def test_types_that_json_lacks_are_written_as_extended_json() -> None:
    """Decimals, instants, bytes and odd floats carry the tags that MongoDB's own tools read."""
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
    """Nothing is guessed, and nothing else is raised."""
    with pytest.raises(ValueError):  # noqa: PT011  # its text is for people
        codec.decode(codec.loads(text))


def through(payload: dict[str, Any]) -> Any:
    """The payload after it was written and read."""
    return codec.decode(codec.loads(codec.dumps(codec.encode(encode_payload(payload, "test")))))
