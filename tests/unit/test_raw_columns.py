"""Raw columns: documents in BSON as numpy arrays."""

import math
import random
from datetime import UTC, datetime
from typing import Any

import pytest
from bson import Int64, encode

from backtest_persist.core.candles.ohlcv import COLUMNS
from backtest_persist.core.candles.raw_columns import converted_columns, raw_columns

START = 1_600_000_020_000


def document(number: int, order: tuple[str, ...] = COLUMNS, **changes: Any) -> dict[str, Any]:
    values = dict(zip(COLUMNS, (Int64(START + number), number + 0.1, number + 0.2, -number, 0.0, 1e300), strict=True))
    values = {name: value if name == "timestamp" else float(value) for name, value in values.items()} | changes
    return {name: values[name] for name in order}


def raw(documents: list[dict[str, Any]]) -> bytes:
    return b"".join(map(encode, documents))


def test_fields_may_be_in_any_order() -> None:
    """Each program, and each way of writing, leaves them in another; the columns are the same."""
    chance = random.Random(1)
    orders = [COLUMNS, tuple(sorted(COLUMNS)), COLUMNS[::-1], (*COLUMNS[3:], *COLUMNS[:3])]
    documents = [document(number, chance.choice(orders)) for number in range(200)]
    columns = raw_columns(raw(documents))
    assert columns is not None
    assert list(columns) == list(COLUMNS)
    for name, column in columns.items():
        assert column.tolist() == [one[name] for one in documents]
        assert column.flags.writeable
        assert column.flags.c_contiguous
    orders = [tuple(chance.sample(COLUMNS, len(COLUMNS))) for _ in range(40)]
    assert raw_columns(raw([document(number, order) for number, order in enumerate(orders)])) is None
    empty = raw_columns(b"")
    assert empty is not None
    assert [str(column.dtype) for column in empty.values()] == ["int64", *["float64"] * 5]


OTHERS: dict[str, Any] = {
    "an int": {"open": 1},
    "an int64": {"open": Int64(1)},
    "a double as time": {"timestamp": float(START)},
    "a text": {"open": "1234567"},
    "null": {"open": None},
    "a date, which is as long": {"open": datetime(2024, 1, 1, tzinfo=UTC)},
}


@pytest.mark.parametrize("changes", OTHERS.values(), ids=OTHERS)
@pytest.mark.parametrize("place", [0, 1, 2])
def test_any_other_type_is_left_to_the_server(changes: dict[str, Any], place: int) -> None:
    """Wherever it is among documents as this package stores them, and whether it is as long or not."""
    documents = [document(number, **(changes if number == place else {})) for number in range(3)]
    assert raw_columns(raw(documents)) is None
    lacking = {name: value for name, value in document(place).items() if name != "close"}
    assert raw_columns(raw([lacking if number == place else document(number) for number in range(3)])) is None
    other = {("opem" if name == "open" else name): value for name, value in document(place).items()}
    assert raw_columns(raw([other if number == place else document(number) for number in range(3)])) is None


def test_what_the_server_could_not_convert_is_nan() -> None:
    """Such columns are none; a NaN that was stored is a number as long as nothing had to be converted."""
    documents = raw([document(0), document(1, close=math.nan)])
    found = raw_columns(documents)
    assert found is not None
    assert math.isnan(found["close"][1])
    assert converted_columns(documents) is None
    assert converted_columns(raw([document(0)])) is not None
