"""Key components and Redis keys."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backtest_persist import CandleRow, InvalidKeyError, SignalRow
from backtest_persist.core.keys import checked_limit, checked_timestamp, join_key
from backtest_persist.domains.candle import CandleContext
from backtest_persist.domains.session import SessionContext
from backtest_persist.domains.signal import SignalContext

components = st.lists(st.text(alphabet="ab:%3A25", min_size=1, max_size=6), min_size=3, max_size=3).map(tuple)


@given(components, components)
def test_different_components_never_share_a_key(one: tuple[str, ...], other: tuple[str, ...]) -> None:
    """join_key is injective for a fixed number of components."""
    assert (join_key(*one) == join_key(*other)) == (one == other)


def test_all_but_the_last_component_are_encoded() -> None:
    """Percent and colon are encoded in the head and stand as they are in the tail."""
    assert join_key("a:b", "50%", "BTC/USDT:USDT%") == "a%3Ab:50%25:BTC/USDT:USDT%"


UNUSABLE: list[Any] = ["", "a\0b", "\ud800", None, 5, True, b"a", ["a"], {"$gt": ""}, {"a": 1}, object()]


@pytest.mark.parametrize("bad", UNUSABLE, ids=repr)
@pytest.mark.parametrize("place", ["symbol", "strategy_name", "exchange_name"])
def test_an_unusable_component_is_refused_and_named(place: str, bad: Any) -> None:
    """Only a non-empty str without NUL and lone surrogates may be part of a context."""
    context = {"symbol": "s", "strategy_name": "t", "exchange_name": "e", place: bad}
    with pytest.raises(InvalidKeyError, match=place):
        SignalContext(**context)


@pytest.mark.parametrize("bad", [0, 1, "true", None])
def test_a_mode_is_a_bool(bad: Any) -> None:
    """1 is not True: in MongoDB they are different values."""
    with pytest.raises(InvalidKeyError, match="backtest"):
        SessionContext(strategy_name="t", exchange_name="e", frame_name="f", symbol="s", backtest=bad)


@pytest.mark.parametrize("bad", [True, None, 1.5, float("nan"), float("inf"), "1", 2**63])
def test_a_timestamp_is_an_int_of_64_bits(bad: Any) -> None:
    """Whole floats of a JavaScript writer pass, nothing else does."""
    with pytest.raises(InvalidKeyError):
        checked_timestamp(bad, "timestamp")
    assert checked_timestamp(60_000.0, "timestamp") == 60_000


def test_a_limit_is_a_whole_number_from_zero() -> None:
    """0 is a limit; less, or no int, is none."""
    assert checked_limit(0) == 0
    for bad in (-1, True, 1.0, None, "1"):
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
    candle = CandleContext(exchange_name="e", symbol="s", interval="1m", timestamp=1)
    assert candle.matches({"exchangeName": "e", "symbol": "s", "interval": "1m", "timestamp": 1.0})
    assert not candle.matches({"exchangeName": "e", "symbol": "s", "interval": "1m", "timestamp": True})


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
