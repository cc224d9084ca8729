"""Lists of rows as frames: flat columns, one type each, in pandas, polars and Arrow."""

import json
import pickle
import sys
from copy import copy, deepcopy
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from importlib import import_module
from typing import Any, cast
from uuid import UUID

import pytest
from bson import ObjectId
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from backtest_persist import (
    CandleRow,
    InvalidPayloadError,
    MemoryRow,
    Page,
    RecentRow,
    RiskRow,
    RowList,
    SignalRow,
    StorageRow,
)
from backtest_persist.core.frames.frame import RowFrame
from backtest_persist.core.frames.libraries import _by_arro3
from tests.own_domain.funding import FundingRow

pandas, polars, pyarrow = (import_module(name) for name in ("pandas", "polars", "pyarrow"))

NOW = datetime(2024, 1, 1, 12, 0, 0, 5000, tzinfo=UTC)
NOON = 1_704_110_400_000
DATES: dict[str, Any] = {"id": "0" * 24, "create_date": NOW, "updated_date": NOW}
EDGES = datetime(1, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC)
UUID_ = UUID(int=7)
TRADES: list[dict[str, Any]] = [
    {
        "id": "t-1",
        "symbol": "BTCUSDT",
        "priceOpen": 42_000,
        "pnl": {"percentage": 1.5, "fees": {"in": 0.1}},
        "partials": [{"price": 1, "at": NOW}, {"price": 2, "note": None}],
        "amount": Decimal("0.10"),
        "broker": UUID_,
        "raw": b"\x00",
        "closed": NOW,
        "isLong": True,
        "tag": "x",
        "odd": [1, "a"],
    },
    {
        "id": "t-2",
        "symbol": "ETHUSDT",
        "priceOpen": 2.5,
        "pnl": None,
        "partials": [],
        "amount": Decimal("12.345"),
        "bars": 2**60,
        "tag": 3,
        "account": ObjectId("1" * 24),
        "nothing": None,
    },
]
"""Trades with all that a payload can hold, of which no two columns are alike."""


def trades() -> RowList[StorageRow]:
    return RowList(
        (StorageRow(backtest=True, signal_id=trade["id"], payload=trade, **DATES) for trade in TRADES), StorageRow
    )


def test_a_row_list_is_a_list() -> None:
    """Equality, copies, pickles, JSON and slices are as of a list; a slice can be had as a frame, too."""
    rows = trades()
    plain = [*rows]
    assert rows == plain
    assert plain == rows
    assert isinstance(rows, list)
    assert repr(rows) == repr(plain)
    for copied in (copy(rows), deepcopy(rows), pickle.loads(pickle.dumps(rows)), rows[:], rows[0:2]):
        assert type(copied) is RowList
        assert copied == plain
        assert len(copied.to_frame()) == 2
    assert json.dumps(RowList[Any]()) == "[]"
    assert rows[1] is plain[1]
    assert rows[1:].to_frame().columns["signal_id"] == ["t-2"]
    assert rows[5:].to_frame().to_pandas().empty
    assert [*rows[5:].to_frame().columns] == ["backtest", "signal_id", "create_date", "updated_date"]
    assert [*Page(rows, total=9).to_frame().columns] == [*rows.to_frame().columns]


def test_trades_are_flat_columns_of_one_type() -> None:
    """The context comes first, the members of the payload as they are stored, the dates last."""
    frame = trades().to_frame()
    assert len(frame) == 2
    names = "backtest, signal_id, id, symbol, priceOpen, pnl.percentage, …"
    assert repr(frame) == f"<RowFrame: 2 rows, 20 columns: {names}>"
    columns = frame.columns
    assert [*columns][:7] == ["backtest", "signal_id", "id", "symbol", "priceOpen", "pnl.percentage", "pnl.fees.in"]
    assert [*columns][-2:] == ["create_date", "updated_date"]
    assert columns["priceOpen"] == [42_000.0, 2.5]
    assert columns["pnl.percentage"] == [1.5, None]
    found = frame.to_pandas()
    kinds = {name: str(dtype) for name, dtype in found.dtypes.items()}
    assert {name: kinds[name] for name in ("backtest", "priceOpen", "isLong", "bars", "closed", "create_date")} == {
        "backtest": "bool",
        "priceOpen": "float64",
        "isLong": "boolean",
        "bars": "Int64",
        "closed": "datetime64[ms, UTC]",
        "create_date": "datetime64[ms, UTC]",
    }
    assert found["bars"][1] == 2**60
    assert found["closed"][0] == NOW
    assert found["amount"].tolist() == [Decimal("0.10"), Decimal("12.345")]
    assert found["partials"][1] == []
    assert found["tag"].tolist() == ["x", 3]
    assert found["broker"][0] == str(UUID_)
    assert found["account"][1] == "1" * 24
    assert found["raw"][0] == b"\x00"
    assert found["odd"][0] == [1, "a"]


@pytest.mark.parametrize("library", ["pyarrow", "polars", "arro3.core", "polars itself"])
def test_arrow_has_the_same_columns(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What has no type in Arrow is text: values of several types, UUIDs, ids; arro3 alone makes text of lists."""
    frame, read = trades().to_frame(), pyarrow.table
    for other in {"pyarrow", "polars", "arro3.core"} - {library.split()[0]}:
        monkeypatch.setitem(sys.modules, other, None)
    table = read(frame.to_polars() if library == "polars itself" else frame)
    assert table.column_names == [*frame.columns]
    first, second = table.to_pylist()
    assert (first["amount"], second["amount"]) == (Decimal("0.100"), Decimal("12.345"))
    assert (first["isLong"], second["isLong"]) == (True, None)
    assert (first["closed"], second["closed"]) == (NOW, None)
    assert (first["create_date"], second["bars"]) == (NOW, 2**60)
    assert (first["tag"], second["tag"], first["odd"]) == ("x", "3", '[1, "a"]')
    assert (first["broker"], second["account"], first["raw"]) == (str(UUID_), "1" * 24, b"\x00")
    if library == "arro3.core":
        assert json.loads(first["partials"])[1] == {"price": 2, "note": None}
    else:
        assert [partial["price"] for partial in first["partials"]] == [1, 2]
        assert first["partials"][0]["at"] == NOW
        assert second["partials"] == []


def test_decimals_that_no_type_holds_are_text() -> None:
    """NaN, infinities, and numbers of more than 38 digits crash neither polars nor Arrow."""
    for odd in (Decimal("NaN"), Decimal("Infinity"), Decimal("1e40"), Decimal("1E-39"), Decimal("1" * 39)):
        rows = RowList(StorageRow(backtest=True, signal_id="s", payload={"n": n}, **DATES) for n in (odd, Decimal(1)))
        frame = rows.to_frame()
        assert frame.to_polars()["n"].to_list() == [str(odd), "1"]
        assert pyarrow.table(frame)["n"].to_pylist() == [str(odd), "1"]
        assert str(frame.to_pandas()["n"][0]) == str(odd)


def payload_frame(*payloads: dict[str, Any]) -> RowFrame:
    return RowList(StorageRow(backtest=True, signal_id="s", payload=one, **DATES) for one in payloads).to_frame()


LISTS: dict[str, tuple[list[Any], list[Any]]] = {
    "a member that the first lacks": (
        [[{"px": 1.0}], [{"px": 2.0, "fee": 0.1}]],
        [[{"px": 1.0, "fee": None}], [{"px": 2.0, "fee": 0.1}]],
    ),
    "an empty list of lists": ([[[]], [["s"]]], [[[]], [["s"]]]),
    "None before a datetime": ([[{"at": None}], [{"at": NOW}]], [[{"at": None}], [{"at": NOW}]]),
    "None alone": ([[None], [], None], [[None], [], None]),
    "None before an int": ([[None], [None, 2**60]], [[None], [None, 2**60]]),
    "members in members": (
        [[{"a": [{"b": 1}]}], [{"a": [{"c": b"x"}]}, None], [{"d": {"e": True}}]],
        [
            [{"a": [{"b": 1, "c": None}], "d": None}],
            [{"a": [{"b": None, "c": b"x"}], "d": None}, None],
            [{"a": None, "d": {"e": True}}],
        ],
    ),
    "an offset": ([[NOW.astimezone(timezone(timedelta(hours=2)))], []], [[NOW], []]),
    "the first and the last year": ([[EDGES[0]], [EDGES[1]]], [[EDGES[0]], [EDGES[1]]]),
}


@pytest.mark.parametrize("library", ["pyarrow", "polars", "an Arrow stream of polars"])
@pytest.mark.parametrize("case", LISTS)
def test_a_list_keeps_all_members(case: str, library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What only some items have is None in the others; the first row decides nothing."""
    given, expected = LISTS[case]
    frame = payload_frame(*({"items": one} for one in given))
    read = pyarrow.table
    if library == "an Arrow stream of polars":
        monkeypatch.setitem(sys.modules, "pyarrow", None)
    found = frame.to_polars()["items"].to_list() if library == "polars" else read(frame)["items"].to_pylist()
    assert found == expected


def test_decimals_have_their_values_in_every_library() -> None:
    """Also those that are written with an exponent, such as a zero of thirty digits."""
    for texts in (("0E+30", "1E-20"), ("1E+30", "1.5"), ("-0E+3", "1E+36"), ("1E-37", "0")):
        expected = [*map(Decimal, texts)]
        frame = payload_frame(*({"n": one} for one in expected))
        assert frame.to_polars()["n"].to_list() == expected
        assert pyarrow.table(frame)["n"].to_pylist() == expected
        assert pyarrow.table(_by_arro3(vars(frame)["_typed"]))["n"].to_pylist() == expected
        assert list(map(str, frame.to_pandas()["n"])) == list(map(str, expected))


def test_a_name_may_be_empty() -> None:
    """A member of the name "" has that name in every library."""
    frame = payload_frame({"": 1, " ": 2})
    names = ["backtest", "signal_id", "", " ", "create_date", "updated_date"]
    assert [*frame.to_pandas().columns] == frame.to_polars().columns == pyarrow.table(frame).column_names == names


SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(),
    st.text(),
    st.binary(),
    st.decimals(),
    st.uuids(),
    st.datetimes(timezones=st.just(UTC)).map(lambda at: at.replace(microsecond=0)),
    st.just(ObjectId("1" * 24)),
)
ROW_FIELDS = ("backtest", "signal_id", "create_date", "updated_date")
NAMES = st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=2)
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3))


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.dictionaries(st.sampled_from(["a", "b", "a.b"]), VALUES), min_size=1, max_size=4))
def test_no_payload_crashes_a_library(payloads: list[dict[str, Any]]) -> None:
    """Whatever payloads hold, a frame has a row for each with all of its values, the same in polars and pyarrow."""
    rows = RowList(StorageRow(backtest=True, signal_id="s", payload=payload, **DATES) for payload in payloads)
    frame = rows.to_frame()
    for found in (frame.to_pandas(), frame.to_polars(), pyarrow.table(frame)):
        assert found.shape == (len(payloads), len(frame.columns))
    columns: Any = vars(frame)["_typed"]
    assert pyarrow.table(_by_arro3(columns)).shape == frame.to_pandas().shape
    held = [value for name, values in frame.columns.items() if name not in ROW_FIELDS for value in values]
    assert sum(value is not None for value in held) == sum(map(count_values, payloads))
    by_polars, by_pyarrow = frame.to_polars().to_dict(as_series=False), pyarrow.table(frame).to_pydict()
    assert repr(by_polars) == repr(by_pyarrow)


def count_values(value: Any) -> int:
    if isinstance(value, dict):
        return sum(map(count_values, cast("dict[str, Any]", value).values()))
    return value is not None


def test_names_that_two_columns_have_are_told_apart() -> None:
    """A member that says what the context says is left out; one that differs is called after its field."""
    payload = {"symbol": "BTC", "when": NOON, "backtest": True, "frameName": "f", "close": 1.0, "payload": 2}
    context: dict[str, Any] = {"strategy_name": "s", "exchange_name": "e", "frame_name": "f", "backtest": True}
    context["when"] = NOON
    rows = RowList([RecentRow(symbol="BTC", payload=payload, **context, **DATES)])
    assert rows.to_frame().columns.keys() == {
        *("symbol", "strategy_name", "exchange_name", "frame_name", "backtest", "frameName", "close", "payload"),
        *("when", "create_date", "updated_date"),
    }
    rows.append(RecentRow(symbol="BTC", payload={"symbol": "ETH"}, **context, **DATES))
    frame = rows.to_frame()
    assert frame.columns["payload.symbol"] == ["BTC", "ETH"]
    assert frame.columns["symbol"] == ["BTC", "BTC"]
    assert frame.to_pandas()["when"][0] == pandas.Timestamp(NOON, unit="ms", tz="UTC")


def test_no_column_overwrites_another() -> None:
    """Of members whose columns would have one name, the second is called after the field, as often as it takes."""
    dots = {"a.b": 1, "a": {"b": 2}}
    fields: dict[str, Any] = {"payload": {"signal_id": "in", "a.b": 4}, "signal_id": "out", "a": {"b": 3}, "a.b": None}
    expected: dict[str, list[Any]] = {
        "a.b": [1, 3],
        "payload.a.b": [2, None],
        "payload.signal_id": [None, "in"],
        "payload.payload.a.b": [None, 4],
        "payload.payload.signal_id": [None, "out"],
    }
    found = payload_frame(dots, {**fields, "a.b": 3, "a": {}}).columns
    assert {name: found[name] for name in found if "." in name} == expected
    assert len(found) == len(expected) + 4
    row = StorageRow(backtest=True, signal_id="s", payload={}, **DATES)
    payloads: list[Any] = [{"payload": {"payload": 3}}, {"payload": 2}, [4]]
    both = RowList(row.model_copy(update={"payload": one}) for one in payloads).to_frame().columns
    names = ("payload", "payload.payload", "payload.payload.payload")
    assert [both[name] for name in names] == [[None, None, [4]], [3, None, None], [None, 2, None]]


def test_an_empty_mapping_has_no_value() -> None:
    """It has a column by its name unless a row has members of it."""
    names = {*ROW_FIELDS}
    found = payload_frame({"m": {}, "n": {"x": {}}, "o": {}}, {"o": {"a": 1}}).columns
    assert found.keys() - names == {"m", "n.x", "o.a"}
    assert (found["m"], found["n.x"], found["o.a"]) == ([None, None], [None, None], [None, 1])
    assert payload_frame({}).columns["payload"] == [None]
    assert payload_frame({}, {"a": 1}).columns.keys() - names == {"a"}


def test_many_columns_take_no_longer_each() -> None:
    """Comparing each name with each other would take minutes here, during which nothing else runs."""
    payload: dict[str, Any] = {f"m{i}": {"open": {"at": i}, "closed": None} for i in range(30_000)}
    frame = payload_frame(payload, {})
    assert len(frame.columns) == 60_004


def test_rows_of_several_types_are_refused() -> None:
    """They have different contexts: each type has a frame of its own."""
    rows: list[Any] = [StorageRow(backtest=True, signal_id="s", payload={}, **DATES)]
    rows.append(RiskRow(risk_name="r", exchange_name="e", positions=[], when=NOON, **DATES))
    with pytest.raises(
        InvalidPayloadError, match="rows of one type, not of RiskRow and StorageRow; make a frame of ea"
    ):
        RowList(rows).to_frame()


def test_rows_of_other_domains_are_frames() -> None:
    """Payloads that are null, lists, tombstones, candles, and the rows of a user's own domain."""
    context = {"symbol": "BTC", "strategy_name": "s", "exchange_name": "e"}
    signals = RowList(SignalRow(payload=payload, **context, **DATES) for payload in ({"id": "a"}, None))
    assert [*signals.to_frame().columns] == [*context, "id", "create_date", "updated_date"]
    empty = RowList([SignalRow(payload=None, **context, **DATES)])
    assert [*empty.to_frame().to_polars().columns] == [*context, "payload", "create_date", "updated_date"]
    risk = RowList([RiskRow(risk_name="r", exchange_name="e", positions=[{"symbol": "X"}], when=NOON, **DATES)])
    assert risk.to_frame().to_polars()["positions"].to_list() == [[{"symbol": "X"}]]
    memory: dict[str, Any] = {"signal_id": "s", "bucket_name": "b", "memory_id": "m", "when": NOON}
    removed = RowList([MemoryRow(payload={"removed": True, "n": 1}, removed=True, **memory, **DATES)])
    assert [*removed.to_frame().columns][3:6] == ["n", "removed", "when"]
    own = RowList([FundingRow(symbol="X", exchange_name="e", payload={"rate": 0.1}, when=NOON, **DATES)])
    assert [*own.to_frame().columns] == ["symbol", "exchange_name", "rate", "when", "create_date", "updated_date"]
    prices: dict[str, Any] = dict.fromkeys(("open", "high", "low", "close", "volume"), 1.0)
    candles = RowList([CandleRow(exchange_name="e", symbol="X", interval="1m", timestamp=NOON, **prices, **DATES)])
    found = candles.to_frame().to_polars()
    assert found.columns[:4] == ["exchange_name", "symbol", "interval", "timestamp"]
    assert found["timestamp"].dtype == polars.Datetime("ms", "UTC")
    none = RowList[CandleRow]([], CandleRow).to_frame()
    assert none.to_polars().schema == found.schema
    assert pyarrow.table(none).schema == pyarrow.table(candles.to_frame()).schema


def test_pandas_reads_a_frame_by_narwhals() -> None:
    """Whatever takes an Arrow stream takes a frame of rows."""
    narwhals = import_module("narwhals")
    assert narwhals.from_arrow(trades().to_frame(), backend="polars").shape == (2, 20)
