"""Filters and sorts: translated to the names and types of the wire, or refused before anything is sent."""

import re
from collections import OrderedDict
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from enum import Enum
from typing import Any
from uuid import UUID

import numpy as np
import pandas as pd
import pytest
from bson import Binary, ObjectId
from bson.decimal128 import Decimal128

from backtest_persist import InvalidKeyError, InvalidWhenError, Mode, RecentDbService, SignalDbService
from backtest_persist.core.query import to_query, to_sort

SIGNALS = SignalDbService.schema()
RECENT = RecentDbService.schema()
EAST = timezone(timedelta(hours=5))
ID = ObjectId("65a1b2c3d4e5f60718293a4b")


def translated(filter: Any) -> dict[str, Any]:
    """Translate a filter of the signals."""
    return to_query(filter, SIGNALS)


def ordered(sort: Any) -> list[tuple[str, int]]:
    """Translate a sort of the signals, whose context is the exchange, the strategy and the symbol."""
    return to_sort(sort, SIGNALS)


class Venue(Enum):
    BINANCE = "binance"


@dataclass
class Point:
    x: int
    y: Any


# --- filters ---


@pytest.mark.parametrize(
    ("filter", "query"),
    [
        ({}, {}),
        ({"symbol": "s"}, {"symbol": "s"}),
        ({"strategy_name": "t", "exchangeName": "e"}, {"strategyName": "t", "exchangeName": "e"}),
        ({"payload.price_open": 1}, {"payload.price_open": 1}),
        ({"payload.id": "a"}, {"payload.id": "a"}),
        ({"payload": {"not_a_field": 1}}, {"payload": {"not_a_field": 1}}),
        ({"payload.a.b": 1, "__v": 0}, {"payload.a.b": 1, "__v": 0}),
        ({"$expr": {"$eq": ["$strategy_name", "t"]}}, {"$expr": {"$eq": ["$strategyName", "t"]}}),
        (
            {"$expr": {"$in": ["$$NOW", ["$payload.at", {"$literal": "$a"}]]}},
            {"$expr": {"$in": ["$$NOW", ["$payload.at", {"$literal": "$a"}]]}},
        ),
        ({"payload": {"strategy_name": "t"}}, {"payload": {"strategy_name": "t"}}),
    ],
    ids=str,
)
def test_names_of_fields_are_translated(filter: Any, query: Any) -> None:
    """Both spellings of a field work, in expressions as well; a path into a payload stays as it is."""
    assert translated(filter) == query


@pytest.mark.parametrize("combining", ["$and", "$or", "$nor"])
def test_names_inside_of_combined_filters_are_translated(combining: str) -> None:
    """Filters of a list are filters, at any depth, beside other fields."""
    inner = {"$or": ({"strategy_name": "t"}, {"id": str(ID)})}
    assert translated({"symbol": "s", combining: [inner, {"exchange_name": "e"}]}) == {
        "symbol": "s",
        combining: [{"$or": [{"strategyName": "t"}, {"_id": ID}]}, {"exchangeName": "e"}],
    }


@pytest.mark.parametrize("name", ["id", "_id"])
@pytest.mark.parametrize(
    ("value", "operand"),
    [
        (str(ID), ID),
        (ID, ID),
        ({"$ne": str(ID)}, {"$ne": ID}),
        ({"$in": [str(ID), "junk", None]}, {"$in": [ID, "junk", None]}),
        ({"$not": {"$gt": str(ID)}}, {"$not": {"$gt": ID}}),
        ("junk", "junk"),
        ({"$exists": True}, {"$exists": True}),
    ],
    ids=str,
)
def test_an_id_may_be_text(name: str, value: Any, operand: Any) -> None:
    """MongoDB stores an ObjectId, which no text equals; what is no id is sent as it is, and matches nothing."""
    assert translated({name: value}) == {"_id": operand}


def test_text_that_looks_like_an_id_is_text_in_other_fields() -> None:
    """The symbol of a signal may have 24 hex digits."""
    assert translated({"symbol": str(ID), "payload.id": {"$in": [str(ID)]}}) == {
        "symbol": str(ID),
        "payload.id": {"$in": [str(ID)]},
    }


@pytest.mark.parametrize(
    ("value", "operand"),
    [
        (Venue.BINANCE, "binance"),
        ({"$in": (Venue.BINANCE, "kraken")}, {"$in": ["binance", "kraken"]}),
        ({"$not": {"$eq": Venue.BINANCE}}, {"$not": {"$eq": "binance"}}),
    ],
    ids=str,
)
def test_a_member_of_an_enum_is_its_value(value: Any, operand: Any) -> None:
    """The value is what is stored, and is compared in operators and lists as well."""
    assert translated({"exchange_name": value}) == {"exchangeName": operand}


UNKNOWN: dict[str, tuple[Any, str]] = {
    "misspelled": ({"stratgy_name": "t"}, "the nearest is strategy_name"),
    "misspelled wire name": ({"exchangName": "e"}, "the nearest is exchangeName"),
    "combined": ({"$or": [{"$and": [{"sybol": "s"}]}]}, "the nearest is symbol"),
    "in an expression": ({"$expr": {"$eq": ["$sybol", "s"]}}, "the nearest is symbol"),
    "of the payload": ({"price_open": 1}, r"symbol, .*payload\.price_open"),
    "the head of a path": ({"payloat.x": 1}, "the nearest is payload"),
}


@pytest.mark.parametrize(("filter", "nearest"), UNKNOWN.values(), ids=UNKNOWN)
def test_a_name_that_rows_do_not_have_is_refused_with_the_nearest(filter: Any, nearest: str) -> None:
    """Such a filter would match nothing, or with ``$nor`` everything, without a word."""
    with pytest.raises(InvalidKeyError, match=f"signal-items: rows have no field .*{nearest}"):
        translated(filter)


NOON = datetime(2024, 1, 1, 12, tzinfo=UTC)
NOON_MS = 1_704_110_400_000
FINER = timedelta(microseconds=1500)


@pytest.mark.parametrize(
    ("filter", "query"),
    [
        ({"when": NOON}, {"when": NOON_MS}),
        ({"when": {"$lte": NOON + FINER}}, {"when": {"$lte": NOON_MS + 1}}),
        ({"when": {"$gt": NOON + FINER}}, {"when": {"$gt": NOON_MS + 1}}),
        ({"when": {"$lt": NOON + FINER}}, {"when": {"$lt": NOON_MS + 2}}),
        ({"when": {"$not": {"$gte": NOON + FINER}}}, {"when": {"$not": {"$gte": NOON_MS + 2}}}),
        ({"when": {"$gte": pd.Timestamp("2024-01-01T12:00:00.000000001Z")}}, {"when": {"$gte": NOON_MS + 1}}),
        ({"when": {"$in": [np.int64(NOON_MS), None]}}, {"when": {"$in": [NOON_MS, None]}}),
        ({"when": {"$exists": True, "$type": "long"}}, {"when": {"$exists": True, "$type": "long"}}),
        ({"create_date": {"$gt": NOON_MS, "$lt": NOON}}, {"createDate": {"$gt": NOON, "$lt": NOON}}),
        ({"updatedDate": {"$gte": NOON + FINER}}, {"updatedDate": {"$gte": NOON + timedelta(milliseconds=2)}}),
        ({"createDate": None}, {"createDate": None}),
        ({"backtest": Mode.PAPER}, {"backtest": False}),
        ({"backtest": {"$in": [Mode.BACKTEST, False]}}, {"backtest": {"$in": [True, False]}}),
        ({"payload.p": Decimal("1.5")}, {"payload.p": Decimal128("1.5")}),
        (
            {"payload.p": {"$in": [np.float64(0.5), UUID(int=5)]}},
            {"payload.p": {"$in": [0.5, Binary.from_uuid(UUID(int=5))]}},
        ),
        ({"payload.at": {"$gt": NOON.astimezone(EAST)}}, {"payload.at": {"$gt": NOON}}),
        ({"payload.m": Venue.BINANCE}, {"payload.m": "binance"}),
        ({"symbol": re.compile("^S")}, {"symbol": re.compile("^S")}),
        ({"payload": Point(1, Decimal(2))}, {"payload": {"x": 1, "y": Decimal128("2")}}),
        ({"$expr": {"$gt": ["$payload.at", NOON]}}, {"$expr": {"$gt": ["$payload.at", NOON]}}),
    ],
    ids=str,
)
def test_values_are_converted_as_in_writes(filter: Any, query: Any) -> None:
    """Times, modes, decimals, ids and numbers of numpy are compared with what a write of them has stored."""
    assert to_query(filter, RECENT) == query


REFUSED_VALUES: dict[str, tuple[Any, type[Exception], str]] = {
    "naive when": ({"when": {"$lte": datetime(2024, 1, 1)}}, InvalidWhenError, "naive"),
    "text for when": ({"when": "2024-01-01"}, InvalidWhenError, "str"),
    "seconds for when": (
        {"when": {"$gt": NOON_MS // 1000}},
        InvalidWhenError,
        "looks like seconds: multiply it by 1000",
    ),
    "microseconds": ({"create_date": {"$gt": NOON_MS * 1000}}, InvalidKeyError, "looks like microseconds"),
    "text for a date": ({"updated_date": "2024-01-01"}, InvalidKeyError, "str"),
    "bool for when": ({"when": {"$gt": True}}, InvalidWhenError, "bool"),
    "naive date": ({"create_date": {"$gt": datetime(2024, 1, 1)}}, InvalidKeyError, "naive"),
    "NaT": ({"create_date": pd.NaT}, InvalidKeyError, "NaT"),
    "naive date in a payload": ({"payload.at": {"$in": [datetime(2024, 1, 1)]}}, InvalidKeyError, "naive"),
    "naive date in an expression": (
        {"$expr": {"$gt": ["$payload.at", datetime(2024, 1, 1)]}},
        InvalidKeyError,
        "naive",
    ),
    "a set": ({"symbol": {"$in": {"s"}}}, InvalidKeyError, r"list\(\.\.\.\)"),
    "a number for a flag": ({"backtest": 1}, InvalidKeyError, "bool"),
}


@pytest.mark.parametrize(("filter", "error", "problem"), REFUSED_VALUES.values(), ids=REFUSED_VALUES)
def test_a_value_that_no_write_takes_is_refused(filter: Any, error: type[Exception], problem: str) -> None:
    """A naive time would be taken for UTC, and the others would match nothing, without a word."""
    with pytest.raises(error, match=problem):
        to_query(filter, RECENT)


def test_early_times_are_refused_unless_they_are_admitted() -> None:
    """An int of 1970 to 1973 is taken for seconds, as in writes, but for a program that has them."""
    assert to_query({"when": {"$gt": 5}, "createDate": 0}, RECENT, lambda: True) == {
        "when": {"$gt": 5},
        "createDate": datetime(1970, 1, 1, tzinfo=UTC),
    }


def test_a_filter_is_not_changed() -> None:
    """The caller may use it again."""
    filter = {"id": {"$in": [str(ID)]}, "$or": [{"exchange_name": Venue.BINANCE}]}
    translated(filter)
    assert filter == {"id": {"$in": [str(ID)]}, "$or": [{"exchange_name": Venue.BINANCE}]}


def test_any_mapping_is_a_filter() -> None:
    """The order of its names is kept, which matters in a document that is compared as a whole."""
    assert list(translated(OrderedDict(strategy_name="t", symbol="s"))) == ["strategyName", "symbol"]


def endless() -> dict[str, Any]:
    filter: dict[str, Any] = {}
    filter["$and"] = [filter]
    return filter


UNUSABLE_FILTERS: dict[str, Any] = {
    "text": "symbol",
    "a list": [("symbol", "s")],
    "nothing": None,
    "text in a combined filter": {"$or": ["symbol"]},
    "a list in a combined filter": {"$and": [[]]},
    "a set": {"symbol": {"s"}},
    "an object": {"symbol": object()},
    "a number beyond 64 bits": {"payload.n": 2**63},
    "NUL in a name": {"a\0b": 1},
    "a name that is no text": {5: 1},
    "a lone surrogate": {"symbol": "\ud800"},
    "a cycle": endless(),
}


@pytest.mark.parametrize("filter", UNUSABLE_FILTERS.values(), ids=UNUSABLE_FILTERS)
def test_an_unusable_filter_is_refused(filter: Any) -> None:
    """It is an InvalidKeyError that names the collection, before a server sees it."""
    with pytest.raises(InvalidKeyError, match="signal-items"):
        translated(filter)


# --- sorts ---


@pytest.mark.parametrize(
    ("sort", "order"),
    [
        (None, [("createDate", 1), ("_id", 1)]),
        ([], [("createDate", 1), ("_id", 1)]),
        ([("strategy_name", -1)], [("strategyName", -1), ("_id", 1)]),
        ((("updatedDate", 1), ["payload.n", -1]), [("updatedDate", 1), ("payload.n", -1), ("_id", 1)]),
        ([("symbol", np.int64(-1))], [("symbol", -1), ("_id", 1)]),
    ],
    ids=str,
)
def test_a_sort_is_translated_and_ends_with_the_id(sort: Any, order: Any) -> None:
    """Rows of equal values have one order, as pages of them have to; without a sort the oldest comes first."""
    assert ordered(sort) == order
    assert [type(direction) for _, direction in ordered(sort)] == [int] * len(order)


@pytest.mark.parametrize(
    ("sort", "order"),
    [
        ([("id", -1)], [("_id", -1)]),
        ([("create_date", -1), ("_id", -1)], [("createDate", -1), ("_id", -1)]),
        (
            [("exchange_name", 1), ("strategyName", -1), ("symbol", 1)],
            [("exchangeName", 1), ("strategyName", -1), ("symbol", 1)],
        ),
    ],
    ids=str,
)
def test_a_sort_that_is_total_is_left_alone(sort: Any, order: Any) -> None:
    """By the id or by the whole context no two rows are equal, and an index may serve it."""
    assert ordered(sort) == order


def test_a_sort_by_a_part_of_the_context_is_not_total() -> None:
    """Two signals may share all but one component."""
    assert ordered([("exchange_name", 1), ("symbol", 1)])[-1] == ("_id", 1)


UNUSABLE_SORTS: dict[str, Any] = {
    "text": "symbol",
    "a mapping": {"symbol": 1},
    "a set of pairs": {("symbol", 1)},
    "a name alone": ["symbol"],
    "a number": [5],
    "a pair that is a set": [{"symbol", 1}],
    "a pair that is text": ["ab"],
    "three parts": [("symbol", 1, 1)],
    "no direction": [("symbol",)],
    "zero": [("symbol", 0)],
    "two": [("symbol", 2)],
    "a float": [("symbol", 1.0)],
    "a bool": [("symbol", True)],
    "a word": [("symbol", "asc")],
    "an empty name": [("", 1)],
    "NUL in a name": [("a\0b", 1)],
    "a lone surrogate": [("\ud800", 1)],
    "a name that is no text": [(5, 1)],
    "a field that rows do not have": [("sybol", 1)],
    "a field twice": [("strategy_name", 1), ("strategyName", -1)],
    "one bad pair among others": [("symbol", 1), ("strategy_name", 0)],
}


@pytest.mark.parametrize("sort", UNUSABLE_SORTS.values(), ids=UNUSABLE_SORTS)
def test_an_unusable_sort_is_refused(sort: Any) -> None:
    """It is an InvalidKeyError, before a server sees it."""
    with pytest.raises(InvalidKeyError, match=r"sort|rows have no field"):
        ordered(sort)
