"""Key components and Redis keys."""

from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bson import ObjectId
from hypothesis import given
from hypothesis import strategies as st

from backtest_persist import CandleRow, InvalidKeyError, SignalRow
from backtest_persist.core.keys import checked_limit, checked_name, checked_timestamp, join_key, to_object_id
from backtest_persist.domains.candle import CandleContext
from backtest_persist.domains.session import SessionContext
from backtest_persist.domains.signal import SignalContext

components = st.lists(st.text(alphabet="ab:%3A25", min_size=1, max_size=6), min_size=3, max_size=3).map(tuple)


@given(components, components)
def test_different_components_never_share_a_key(one: tuple[str, ...], other: tuple[str, ...]) -> None:
    """join_key is injective for a fixed number of components."""
    assert (join_key(*one) == join_key(*other)) == (one == other)


def test_all_but_the_last_component_are_encoded() -> None:
    """Percent and colon are encoded in the head and left as they are in the last component."""
    assert join_key("a:b", "50%", "BTC/USDT:USDT%") == "a%3Ab:50%25:BTC/USDT:USDT%"


UNUSABLE: list[Any] = ["", "a\0b", "\ud800", None, 5, True, b"a", ["a"], {"$gt": ""}, {"a": 1}, Path("a")]


@pytest.mark.parametrize("bad", UNUSABLE, ids=repr)
@pytest.mark.parametrize("place", ["symbol", "strategy_name", "exchange_name"])
def test_an_unusable_component_is_refused_and_named(place: str, bad: Any) -> None:
    """Only a non-empty str without NUL and lone surrogates may be part of a context."""
    context = {"symbol": "s", "strategy_name": "t", "exchange_name": "e", place: bad}
    with pytest.raises(InvalidKeyError, match=place):
        SignalContext(**context)


class Sym(str, Enum):  # noqa: UP042  # whose str() is the name of the member
    BTC = "BTC:USDT"


def test_a_member_of_a_str_enum_is_its_content() -> None:
    """The key is what the user compares with, as a plain str."""
    assert checked_name(Sym.BTC, "symbol") == "BTC:USDT"
    assert type(checked_name(Sym.BTC, "symbol")) is str
    context = SignalContext(symbol=Sym.BTC, strategy_name=Sym.BTC, exchange_name="e")
    assert context.cache_key == "e:BTC%3AUSDT:BTC:USDT"
    assert context.to_filter() == {"symbol": "BTC:USDT", "strategyName": "BTC:USDT", "exchangeName": "e"}
    candle = CandleContext(exchange_name="e", symbol=Sym.BTC, interval="1m", timestamp=0)
    assert candle.cache_key == "e:BTC%3AUSDT:1m:0"


@pytest.mark.parametrize("bad", [0, 1, "true", None])
def test_a_mode_is_a_bool(bad: Any) -> None:
    """1 is not True: in MongoDB they are different values."""
    with pytest.raises(InvalidKeyError, match="backtest"):
        SessionContext(strategy_name="t", exchange_name="e", frame_name="f", symbol="s", backtest=bad)


NO_INTS: list[Any] = [True, np.bool_(True), None, "1", np.array([1, 2]), np.array([1]), np.datetime64(1, "ms")]


@pytest.mark.parametrize("bad", [*NO_INTS, 1.5, float("nan"), float("inf"), 2**63, 1.0], ids=repr)
def test_a_timestamp_is_an_int_of_64_bits(bad: Any) -> None:
    """Whole floats of a JavaScript writer pass, nothing else does."""
    with pytest.raises(InvalidKeyError):
        checked_timestamp(bad, "timestamp")
    assert checked_timestamp(1_704_067_200_000.0, "timestamp") == 1_704_067_200_000
    assert type(checked_timestamp(np.int64(0), "timestamp")) is int


def test_a_limit_is_a_whole_number_from_zero() -> None:
    """0 is a limit; a negative number or another type is refused."""
    assert checked_limit(0) == 0
    assert type(checked_limit(np.int64(5))) is int
    for bad in (*NO_INTS, -1, 1.0, 2**63):
        with pytest.raises(InvalidKeyError):
            checked_limit(bad)


def test_a_document_of_another_context_does_not_match() -> None:
    """Every field is compared, type-strictly, with JavaScript numbers counting as what they are."""
    signal = SignalContext(symbol="s", strategy_name="t", exchange_name="e")
    document = {"symbol": "s", "strategyName": "t", "exchangeName": "e"}
    assert signal.matches(document)
    for name in document:
        assert not signal.matches({**document, name: "x"})
        assert not signal.matches({key: value for key, value in document.items() if key != name})
    session = SessionContext(strategy_name="t", exchange_name="e", frame_name="f", symbol="s", backtest=True)
    wire = {**document, "frameName": "f", "backtest": True}
    assert session.matches(wire)
    assert not session.matches({**wire, "backtest": 1})
    candle = CandleContext(exchange_name="e", symbol="s", interval="1m", timestamp=0)
    assert candle.matches({"exchangeName": "e", "symbol": "s", "interval": "1m", "timestamp": 0.0})
    assert not candle.matches({"exchangeName": "e", "symbol": "s", "interval": "1m", "timestamp": False})


def test_rows_are_built_without_a_server() -> None:
    """By Python names or by wire names, and they are frozen."""
    now = "2024-01-01T00:00:00Z"
    row = SignalRow.model_validate(
        {
            "id": "a",
            "symbol": "s",
            "strategy_name": "t",
            "exchange_name": "e",
            "payload": None,
            "create_date": now,
            "updated_date": now,
        }
    )
    assert row == SignalRow.model_validate(
        {
            "_id": "a",
            "symbol": "s",
            "strategyName": "t",
            "exchangeName": "e",
            "payload": None,
            "createDate": now,
            "updatedDate": now,
        }
    )
    assert row.cache_key == "e:t:s"
    with pytest.raises(ValueError, match="frozen"):
        row.symbol = "x"  # pyright: ignore[reportAttributeAccessIssue]
    assert issubclass(CandleRow, CandleContext)


ID = ObjectId("65a1b2c3d4e5f60718293a4b")


@pytest.mark.parametrize("spelling", [str(ID), str(ID).upper(), ID], ids=["lower", "upper", "id"])
def test_24_hex_digits_are_an_id(spelling: Any) -> None:
    """An id may be given as text in either case, or as it is."""
    assert to_object_id(spelling) == ID


@pytest.mark.parametrize(
    "value", [None, "", "f" * 23, "f" * 25, "g" * 24, "\uff11" * 24, b"f" * 12, 5, ["f" * 24]], ids=repr
)
def test_nothing_else_is_an_id(value: Any) -> None:
    """A malformed id leads nowhere; it is no error, as Redis may hold one."""
    assert to_object_id(value) is None
