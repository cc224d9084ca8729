"""Stored documents compared with fields that are about to be stored."""

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from bson import Binary
from bson.decimal128 import Decimal128
from bson.int64 import Int64

from backtest_persist.core.equality import holds

NAN = float("nan")
SAME: list[tuple[Any, Any]] = [
    (None, None),
    ("a", "a"),
    (1, 1.0),
    (1, Int64(1)),
    (2**53, float(2**53)),
    (0.0, -0.0),
    (NAN, NAN),
    (True, True),
    (b"a", b"a"),
    (datetime(2024, 1, 1, tzinfo=UTC), datetime(2024, 1, 1, tzinfo=UTC)),
    (Decimal128("1.50"), Decimal("1.50")),
    (Decimal128("sNaN"), Decimal("sNaN")),
    ([], []),
    ([1, [2.0]], [1.0, [2]]),
    ({}, {}),
    ({"a": 1, "b": [NAN]}, {"b": [NAN], "a": 1.0}),
    ({"a": 1, "updatedDate": "then"}, {"a": 1, "updatedDate": datetime(2024, 1, 1, tzinfo=UTC)}),
    ({"a": [{"updatedDate": 1}]}, {"a": [{}]}),
    (Binary(UUID(int=5).bytes, 4), UUID(int=5)),
]
"""Values to be stored, and stored values as plain data."""
DIFFERENT: list[tuple[Any, Any]] = [
    (None, 0),
    (None, ""),
    ("a", "b"),
    ("1", 1),
    (1, 2),
    (1, True),
    (True, 1),
    (0, False),
    (True, False),
    (NAN, 0.0),
    (0.0, NAN),
    (NAN, None),
    (Decimal128("1.5"), Decimal("1.50")),
    (Decimal128("1"), 1),
    (1, Decimal("1")),
    (Binary(UUID(int=5).bytes, 4), UUID(int=5).bytes),
    ({"updatedDate": 1, "b": 1}, {"updatedDate": 1}),
    ([], {}),
    ([], None),
    ([1], [1, 2]),
    ([1, 2], [1]),
    ([1, 2], [2, 1]),
    ({"a": 1}, {}),
    ({}, {"a": 1}),
    ({"a": 1}, {"a": 2}),
    ({"a": 1}, {"b": 1}),
    ({"a": [1, {"b": True}]}, {"a": [1, {"b": 1}]}),
]


@pytest.mark.parametrize(("sent", "stored"), SAME, ids=repr)
def test_a_document_holds_equal_values(sent: Any, stored: Any) -> None:
    """Numbers are compared by value, as JavaScript has one type of them, and NaN is the same as NaN."""
    assert holds({"payload": stored, "more": 1}, {"payload": sent})


@pytest.mark.parametrize(("sent", "stored"), DIFFERENT, ids=repr)
def test_a_document_does_not_hold_other_values(sent: Any, stored: Any) -> None:
    """A bool is no number, a decimal has its digits, and lists and documents are compared to the end."""
    assert not holds({"payload": stored}, {"payload": sent})


def test_a_document_holds_all_fields_or_not() -> None:
    """One that is missing or different is enough, and one that is not asked for does not matter."""
    document = {"payload": {"n": 1}, "when": 5, "removed": False}
    assert holds(document, {"payload": {"n": 1}, "when": 5})
    assert not holds(document, {"payload": {"n": 1}, "when": 6})
    assert not holds(document, {"payload": {"n": 1}, "other": 1})
