"""The subjects of the conformance kit: how it calls a domain, and the contexts that it makes up for it."""

from types import new_class
from typing import Any, Literal

import pytest
from pydantic import create_model

from backtest_persist import extend
from backtest_persist.testing.subjects import SUBJECTS, Subject, has_many_contexts, is_packaged
from tests.own_domain.funding import FUNDING, FundingRow


def domain_with(parts: dict[str, Any], *, contents: str = "payload", family: Any = extend.Family.LATEST_VALUE) -> Any:
    """Return a domain whose context has these parts, which its adapter takes."""
    fields: Any = {name: (kind, ...) for name, kind in parts.items()}
    context = create_model("QuoteContext", __base__=extend.Context, **fields)
    row_fields: Any = {contents: (Any, ...)}
    row = create_model("QuoteRow", __base__=(context, extend.Row), **row_fields)
    generic: Any = extend.DbService
    db_service = new_class(
        "QuoteDbService", (generic[context, row],), {}, lambda body: body.update(collection="quotes")
    )
    methods = "def __init__(self, {0}, *, ioc=None): pass\nasync def write_quote_data(self, data): pass"
    namespace: dict[str, Any] = {}
    exec(methods.format(", ".join(parts)), namespace)
    bases = (extend.PersistInstance[db_service],)
    adapter = new_class("PersistQuoteInstance", bases, {}, lambda body: body.update(namespace))
    return extend.Domain(
        "quote", family, extend.base_map("quote", -1), db_service, adapter, extend.FileLayout("quote", (), tuple(parts))
    )


@pytest.mark.parametrize("subject", [*SUBJECTS, Subject(FUNDING)], ids=str)
def test_every_part_of_a_sample_fits_its_field(subject: Subject) -> None:
    """The context of the domain accepts the sample and numbered contexts, which all differ."""
    contexts = [subject.sample, *map(subject.numbered, range(5))]
    assert len(set(contexts)) == 6
    for parts in contexts:
        given = dict(zip(subject.fields, parts, strict=True))
        given |= {name: 0 for name in subject.domain.context_type.model_fields if name not in given}
        subject.domain.context_type(**given)


def test_own_domains_are_not_packaged() -> None:
    """All domains of the package have a contract, another one has none."""
    assert all(map(is_packaged, SUBJECTS))
    assert not is_packaged(Subject(FUNDING))
    assert FundingRow.model_fields.keys() >= {"symbol", "exchange_name", "payload", "when"}


def test_a_part_of_any_type_has_a_sample() -> None:
    """A str is the name of its field, whatever that is; a bool is True, an int 0, a Literal its first value."""
    parts = {"interval": extend.Name, "live": extend.Flag, "level": int, "side": Literal["long", "short"]}
    subject = Subject(domain_with(parts))
    assert subject.sample == ("interval", True, 0, "long")
    assert subject.numbered(3) == ("3-interval", True, 0, "long")
    assert (subject.name_positions, subject.flag_positions, subject.number_positions) == ((0,), (1,), (2,))


def test_a_context_without_names_is_numbered_by_a_number() -> None:
    """Without a number either, there are too few contexts."""
    numbered = Subject(domain_with({"live": extend.Flag, "level": int}))
    assert [numbered.numbered(number) for number in range(2)] == [(True, 1), (True, 2)]
    assert has_many_contexts(numbered)
    assert not has_many_contexts(Subject(domain_with({"live": extend.Flag})))


@pytest.mark.parametrize(
    ("domain", "reason"),
    [
        (domain_with({"symbol": extend.Name, "ratio": float}), "its part ratio is no str, bool or int"),
        (
            domain_with({"symbol": extend.Name}, contents="price"),
            "latest value with the keys () and the contents (price)",
        ),
        (
            domain_with({"symbol": extend.Name}, family=extend.Family.LIST),
            "list with the keys () and the contents (pay",
        ),
        (domain_with({"symbol": extend.Name}, family=extend.Family.SERIES), "series with the keys () and the contents"),
    ],
    ids=["part", "contents", "keys", "series"],
)
def test_a_domain_that_the_kit_cannot_call_is_refused(domain: extend.Domain, reason: str) -> None:
    """The error names the domain and what does not fit."""
    with pytest.raises(ValueError, match=r"cannot test the domain 'quote'") as caught:
        Subject(domain)
    assert reason in str(caught.value)
