"""Keys in Redis, read back as the context that they were made of."""

from math import comb
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from backtest_persist import Container
from backtest_persist.core.keys import STORED
from backtest_persist.operations.cache.collection import MOST_READINGS, CachedCollection, cached_collections
from tests.support.cases import CASES, Case

COLLECTIONS = {
    collection.name: collection for collection in cached_collections(Container({"redis_key_prefix": "p[*]:"}))
}
NAMES = st.text(st.sampled_from(":%2345A/ é"), min_size=1) | st.text(
    st.characters(exclude_characters="\0", exclude_categories=("Cs",)), min_size=1
)
VALUES: dict[Any, st.SearchStrategy[Any]] = {str: NAMES, bool: st.booleans(), int: st.integers(-(2**63), 2**63 - 1)}


def built(collection: CachedCollection, values: dict[str, Any]) -> Any:
    return collection.context_type.model_validate(values, context=STORED)  # any interval, as others may store it


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_key_of_a_domain_names_its_context(case: Case) -> None:
    """The keys of the wire format are read back, the prefix included."""
    collection = COLLECTIONS[case.domain]
    context = built(collection, case.context)
    assert collection.key_of(context) == f"p[*]:{case.redis_key}".encode()
    assert collection.context_of(f"p[*]:{case.redis_key}".encode()) == context


@pytest.mark.parametrize("case", CASES, ids=str)
@given(data=st.data())
def test_any_context_is_read_back_from_its_key(case: Case, data: st.DataObject) -> None:
    """Whatever the names hold, colons, percents and what looks encoded included."""
    collection = COLLECTIONS[case.domain]
    fields = collection.context_type.model_fields
    values = {name: data.draw(VALUES[field.annotation], name) for name, field in fields.items()}
    context = built(collection, values)
    assert collection.context_of(collection.key_of(context)) == context


@pytest.mark.parametrize("case", CASES, ids=str)
@given(data=st.data())
def test_any_context_is_among_the_readings_of_its_keys(case: Case, data: st.DataObject) -> None:
    """The framework joins names as they are, so its key can be that of several contexts."""
    collection = COLLECTIONS[case.domain]
    fields = collection.context_type.model_fields
    values = {name: data.draw(VALUES[field.annotation], name) for name, field in fields.items()}
    context = built(collection, values)
    assert collection.readings_of(collection.key_of(context))[0] == context
    plain = collection.plain_key_of(context)
    assume(comb(plain.count(b":") - 1, len(fields) - 1) <= MOST_READINGS)
    readings = collection.readings_of(plain)
    assert context in readings
    assert all(plain in (collection.key_of(reading), collection.plain_key_of(reading)) for reading in readings)


@pytest.mark.parametrize(
    ("domain", "key"),
    [
        ("log", b""),
        ("log", b"\xff"),
        ("signal", b"binance:trend"),
        ("signal", b"binance:%zz:BTC"),
        ("signal", b"binance::BTC"),
        ("signal", b"%3a:t:s"),
        ("storage", b"paper:s-1"),
        ("candle", b"binance:BTC:1m:noon"),
        ("candle", b"binance:BTC:1m:01"),
        ("candle", b"binance:BTC:1m:99999999999999999999"),
    ],
)
def test_a_key_that_no_context_has_says_nothing(domain: str, key: bytes) -> None:
    """Too few parts, bytes that are no text, and unknown modes and numbers give None."""
    assert COLLECTIONS[domain].context_of(COLLECTIONS[domain].namespace + key) is None


def test_the_framework_spells_names_as_they_are() -> None:
    """Colons and percents are not encoded."""
    collection = COLLECTIONS["session"]
    names = {"strategy_name": "a:%", "exchange_name": "e", "frame_name": "", "symbol": "B:C", "backtest": False}
    assert collection.plain_key_of(built(collection, names)) == b"p[*]:session_cache:e:a:%::B:C:live"
