"""Keys in Redis, read back as the context that they were made of."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backtest_persist import Container
from backtest_persist.operations.ids import Domain, open_domains
from tests.support.cases import CASES, Case

DOMAINS = {domain.name: domain for domain in open_domains(Container({"redis_key_prefix": "p[*]:"}))}
NAMES = st.text(st.sampled_from(":%2345A/ é"), min_size=1) | st.text(
    st.characters(exclude_characters="\0", exclude_categories=("Cs",)), min_size=1
)
VALUES: dict[Any, st.SearchStrategy[Any]] = {str: NAMES, bool: st.booleans(), int: st.integers(-(2**63), 2**63 - 1)}


def built(domain: Domain, values: dict[str, Any]) -> Any:
    return domain.service.context_type(**values)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_key_of_a_domain_names_its_context(case: Case) -> None:
    """The keys of the wire format are read back, the prefix included."""
    domain = DOMAINS[case.domain]
    context = built(domain, case.context)
    assert domain.name_of(context) == f"p[*]:{case.redis_key}".encode()
    assert domain.context_of(f"p[*]:{case.redis_key}".encode()) == context


@pytest.mark.parametrize("case", CASES, ids=str)
@given(data=st.data())
def test_any_context_is_read_back_from_its_key(case: Case, data: st.DataObject) -> None:
    """Whatever the names hold, colons, percents and what looks encoded included."""
    domain = DOMAINS[case.domain]
    fields = domain.service.context_type.model_fields
    values = {name: data.draw(VALUES[field.annotation], name) for name, field in fields.items()}
    context = built(domain, values)
    assert domain.context_of(domain.name_of(context)) == context


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
    assert DOMAINS[domain].context_of(DOMAINS[domain].namespace + key) is None
