"""Names in a dump: path segments that are safe on every file system, unique, and decoded to what they were."""

import os

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from backtest_persist.backends.json.names import escape, shorten, unescape
from backtest_persist.backends.json.value_file import natural

NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40)


@given(NAMES)
@example("..")
@example(".")
@example("../../etc/passwd")
@example("a/b\\c\0d")
@example("CON")
@example("nul.json")
@example("%2F")
@example(".tmp-1-2")
@example("ends with a dot.")
def test_a_name_becomes_one_harmless_path_segment_and_comes_back(name: str) -> None:
    """Any name gives a visible file in its directory, and is decoded to what it was."""
    segment = escape(name)
    assert unescape(segment) == name
    assert segment not in ("", ".", "..")
    assert not segment.startswith(".")
    assert not set(segment) & {"/", "\\", "\0", "\n"}
    assert os.path.normpath(f"/dump/{segment}") == f"/dump/{segment}"


@given(st.lists(NAMES, min_size=2, max_size=2, unique=True))
def test_two_names_never_share_a_segment(names: list[str]) -> None:
    """Escaping is injective, also when a name looks like the escape of another."""
    assert escape(names[0]) != escape(names[1])
    assert escape(names[0]) != escape(escape(names[0])) or "%" not in escape(names[0])


@pytest.mark.parametrize("name", ["BTCUSDT", "BTC:USDT", "my_strategy", "llm news", "ü😀", "2024-01", "a.b", "x" * 200])
def test_an_ordinary_name_is_not_changed(name: str) -> None:
    """A name without a meaning in paths names the file that the TypeScript framework gives it."""
    assert shorten(escape(name)) == name


@pytest.mark.parametrize("name", ["x" * 201, "é" * 10_000, "%" * 300, "😀" * 100])
def test_a_long_name_is_shortened_to_a_unique_one(name: str) -> None:
    """It leaves room in the 255 bytes of a file name, is valid text, and differs from that of a similar name."""
    short = shorten(escape(name))
    assert len(short.encode()) <= 200
    assert "%~" in short
    assert short != shorten(escape(name + "x"))


def test_numbers_in_names_are_ordered_as_numbers() -> None:
    """2 comes before 10, as in the lists of the framework."""
    names = ["a10", "a2", "10", "9", "b", "a"]
    assert sorted(names, key=natural) == ["9", "10", "a", "a2", "a10", "b"]
