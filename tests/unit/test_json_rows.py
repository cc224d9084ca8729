"""Rows and the texts of files: what a file contains, and the row that is read from it."""

from pathlib import Path
from typing import Any

import pytest

from backtest_persist import InvalidPayloadError
from backtest_persist.backends.json.layout import LAYOUTS, Layout
from backtest_persist.backends.json.rows import to_fields, to_row, to_text
from backtest_persist.backends.json.value_file import Stored, ValueFile
from tests.support.quotes import QUOTE

TEXTS: list[tuple[str, dict[str, Any], str]] = [
    ("signal", {"payload": {"id": "a"}}, '{"id":"a"}'),
    ("signal", {"payload": None}, "null"),
    ("signal", {"payload": {"removed": True}}, '{"removed":true}'),
    ("risk", {"positions": [["A", 1]], "when": 5}, '[["A",1]]'),
    ("measure", {"payload": {"n": 1}, "removed": False}, '{"n":1}'),
    ("measure", {"payload": {"n": 1, "removed": True}, "removed": True}, '{"n":1,"removed":true}'),
    ("measure", {"payload": {"n": 1}, "removed": True}, '{"$literal":{"n":1},"removed":true}'),
    ("measure", {"payload": {"removed": True}, "removed": False}, '{"$literal":{"removed":true},"removed":false}'),
    ("memory", {"payload": None, "removed": False, "when": 5}, '{"$literal":null}'),
    ("memory", {"payload": None, "removed": True, "when": 5}, '{"$literal":null,"removed":true}'),
    ("quote", {"bestPrice": 1.5, "sizes": [1, 2], "when": 5}, '{"bestPrice":1.5,"sizes":[1,2]}'),
]
ALL = {**LAYOUTS, "quote": Layout(QUOTE)}


@pytest.mark.parametrize(("domain", "fields", "text"), TEXTS)
def test_a_row_comes_back_from_its_text(domain: str, fields: dict[str, Any], text: str) -> None:
    """The text is that of the framework where it can be; tombstones are told, and `when` is kept beside the text."""
    layout = ALL[domain]
    assert to_text(layout, fields).decode() == text
    value, removed = ValueFile(Path(), layout, Path(), "x").parse(text.encode())
    assert to_fields(layout, Stored(value, removed, 5, 0, 0)) == fields


def test_a_file_holds_a_whole_row() -> None:
    """A file without a field of its row would lose what is stored of it, so it is refused."""
    with pytest.raises(InvalidPayloadError, match=r"quote-items: .* give sizes as well"):
        to_text(ALL["quote"], {"bestPrice": 1.5, "when": 5})


def test_a_row_has_the_same_id_in_every_dump_and_dates_in_whole_ms() -> None:
    """Its id depends on its context alone, and its dates on its file."""
    context = {"backtest": True, "signal_id": "a"}
    row = to_row(LAYOUTS["storage"], context, Stored({"id": "a"}, False, 0, 1_999_999, 5_000_000))
    again = to_row(LAYOUTS["storage"], context, Stored({"id": "b"}, False, 0, 0, 0))
    other = to_row(LAYOUTS["storage"], {**context, "backtest": False}, Stored({"id": "a"}, False, 0, 0, 0))
    assert row.id == again.id != other.id
    assert len(bytes.fromhex(row.id)) == 12
    assert (row.create_date.timestamp(), row.updated_date.timestamp()) == (0.001, 0.005)


@pytest.mark.parametrize(
    ("domain", "context", "stored"),
    [
        ("log", {"entry_id": "a"}, Stored(None, False, 0, 0, 0)),
        ("quote", dict.fromkeys(("venue", "symbol", "side"), "x") | {"backtest": True}, Stored({}, False, 0, 0, 0)),
        ("log", {"entry_id": "a\0"}, Stored({}, False, 0, 0, 0)),
        ("log", {"entry_id": "a"}, Stored({}, False, 0, 10**40, 0)),
    ],
)
def test_a_file_without_a_row_is_an_error_that_names_domain_and_context(
    domain: str, context: dict[str, Any], stored: Stored
) -> None:
    """A payload that must not be null, a missing field, a name that no context has, and a time that no date has."""
    with pytest.raises(InvalidPayloadError, match=rf"^The file of {domain} \(.*\) is damaged: .*Repair or remove it"):
        to_row(ALL[domain], context, stored)
