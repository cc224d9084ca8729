"""Layouts: the names of files by the fields of a context and back, and the form of the values of each domain."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backtest_persist.backends.json.layout import LAYOUTS, Layout, Shape
from tests.support.quotes import QUOTE

NAMES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=12)
QUOTES = Layout(QUOTE)


def test_only_risk_and_candles_are_no_payloads() -> None:
    """A file of risk is the list of positions, that of a candle its numbers, and all others are payloads."""
    shapes = {name: layout.shape for name, layout in LAYOUTS.items() if layout.shape is not Shape.PAYLOAD}
    assert shapes == {"risk": Shape.LIST, "candle": Shape.OBJECT}
    assert QUOTES.shape is Shape.OBJECT
    assert QUOTES.contents == ("bestPrice", "sizes")


@given(symbol=NAMES, backtest=st.booleans())
def test_the_name_of_a_session_tells_symbol_and_mode(symbol: str, backtest: bool) -> None:
    """The mode is the last word, whatever the symbol contains."""
    context = {"symbol": symbol, "backtest": backtest}
    assert LAYOUTS["session"].name(context) == f"{symbol}_{'backtest' if backtest else 'live'}"
    assert LAYOUTS["session"].parse_name(LAYOUTS["session"].name(context)) == context


@given(symbol=NAMES, side=NAMES)
def test_a_name_of_several_fields_tells_them_all(symbol: str, side: str) -> None:
    """Fields with ``_`` and ``%`` are told apart where a user's domain names its files by more than one."""
    context = {"symbol": symbol, "side": side}
    assert QUOTES.parse_name(QUOTES.name(context)) == context


@pytest.mark.parametrize(
    ("domain", "name"),
    [
        ("session", "BTCUSDT"),
        ("session", "_live"),
        ("session", "BTCUSDT_paper"),
        ("candle", "060000"),
        ("candle", "1e5"),
        ("candle", "99999999999999999999"),
        ("risk", "other"),
        ("quote", "BTCUSDT"),
        ("quote", "BTC_USDT_bid"),
        ("quote", "_bid"),
    ],
)
def test_a_name_that_no_context_has_is_not_parsed(domain: str, name: str) -> None:
    """Other files in a directory are told by their names."""
    assert {**LAYOUTS, "quote": QUOTES}[domain].parse_name(name) is None


@pytest.mark.parametrize(
    ("domain", "name", "fields"),
    [
        ("candle", "-60000", {"timestamp": -60000}),
        ("risk", "positions", {}),
        ("signal", "BTC_USDT", {"symbol": "BTC_USDT"}),
    ],
)
def test_a_name_is_parsed_by_the_types_of_its_fields(domain: str, name: str, fields: dict[str, Any]) -> None:
    """Times are ints, and a fixed name tells nothing."""
    assert LAYOUTS[domain].parse_name(name) == fields
