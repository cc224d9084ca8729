"""Isolation: two contexts never share a value, whatever their names; an unusable name is refused."""

import unicodedata
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest

from backtest_persist.errors import InvalidKeyError, InvalidPayloadError
from backtest_persist.mode import Mode
from backtest_persist.registry import Registry
from backtest_persist.testing.subjects import (
    Parts,
    Subject,
    gather_in_batches,
    has_a_flag,
    has_optional_names,
    is_list,
    is_listed,
    is_overwritten,
    is_removable,
    tells_presence,
)
from backtest_persist.testing.suite import Suite, for_each, for_first

__all__ = ("Isolation",)

_NAMES = (
    # special in a path
    *("/", "a/b", "../x", "..", ".", "./x", ".hidden", "a.", "a ", " a", "~", "\\", "a\\b", "CON", "con", "nul.txt"),
    *(".tmp-x", "a.json", ".json", "-rf", "a" * 255, "a" * 256),
    # special in a key, a pattern or a query
    *":%_*?$\t\n\x7f",
    *("a:b", "::", "%2F", "%2f", "%25", "a%3Ab", "__", "a_b", "[a]", "a*", "$gt", "a.b", '{"$gt": ""}', ";|#&+^'"),
    *("' OR '1'='1", "a b", "a\nb", "\r\n", "\x1b[31m"),
    # alike to the eye, or after a normalisation
    *("a", "A", "B", "b", "\N{CYRILLIC SMALL LETTER A}", "\N{FULLWIDTH LATIN SMALL LETTER A}", "a\u200b", "\ufeffa"),
    *(unicodedata.normalize("NFC", "é"), unicodedata.normalize("NFD", "é"), "ß", "ss", "İ", "i"),
    *("K", "\N{KELVIN SIGN}", "1", "01", "1.0", "¹"),
    # words of the stores
    *("None", "null", "true", "backtest", "live", "positions", "log", "__proto__"),
    # long, or beyond the basic plane
    *("😀", "👩‍👩‍👧", "\U0010ffff", "名前", "x" * 10_000, "x" * 9_999 + "y", "😀" * 3_000),
)
_SEPARATORS = ("_", "/", ":", "-", ".")

_UNUSABLE_NAMES: tuple[Any, ...] = (
    "",
    "\0",
    "a\0b",
    "\ud800",
    "a\udfff",
    None,
    7,
    0,
    1.5,
    True,
    False,
    b"bytes",
    ("a",),
)
_UNHASHABLE_KEYS: tuple[Any, ...] = ({}, {"$gt": ""}, ["a"], [])
_UNUSABLE_FLAGS: tuple[Any, ...] = (0, 1, None, "", "live", "true", 1.0, b"", ())


def _hostile_contexts(subject: Subject) -> list[Parts]:
    """Return contexts of a domain of which no two may share a value."""
    names = subject.name_positions
    found = {subject.sample: None}

    def add(changes: dict[int, Any]) -> None:
        found[tuple(changes.get(position, part) for position, part in enumerate(subject.sample))] = None

    for position in names:
        for name in ("", *_NAMES) if position in subject.optional_positions else _NAMES:
            add({position: name})
    for first, second in permutations(names, 2):  # in whatever order they may be joined
        add({first: "A", second: "B"})
        for separator in _SEPARATORS:
            add({first: f"A{separator}B", second: "C"})
            add({first: "A", second: f"B{separator}C"})
            add({first: separator, second: separator * 2})
    for name in ("..", "_", "/", ":", "%"):
        add(dict.fromkeys(names, name))
    for number in subject.number_positions:
        add({number: 1})
    for flag in subject.flag_positions:
        found |= {(*parts[:flag], False, *parts[flag + 1 :]): None for parts in list(found)[::5]}
    return list(found)


class Isolation(Suite):
    """Two contexts never share a value, and an unusable name is refused."""

    @for_each(has_a_flag)
    async def test_a_mode_is_its_flag(self, tmp_path: Path, subject: Subject) -> None:
        """A flag can be given as a `Mode`: backtest is True, paper and live are False."""
        position = subject.flag_positions[0]
        async with self.open(tmp_path) as persist:
            await subject.write(persist, subject.with_part(position, Mode.PAPER), {"n": 1})
            for flag in (False, Mode.LIVE, Mode.PAPER):
                assert await subject.read(persist, subject.with_part(position, flag)) == {"n": 1}
            assert await subject.read(persist, subject.with_part(position, Mode.BACKTEST)) is None

    @for_each()
    async def test_no_two_contexts_share_a_value(self, tmp_path: Path, subject: Subject) -> None:
        """Each keeps its value, with hostile names in every part, and with parts that are alike when joined."""
        many = _hostile_contexts(subject)
        async with self.open(tmp_path) as persist:
            await gather_in_batches(subject.write(persist, parts, {"n": n}) for n, parts in enumerate(many))
        async with self.open(tmp_path) as persist:
            found = await subject.read_many(persist, many)
            wrong = [(parts, n, got) for n, (parts, got) in enumerate(zip(many, found, strict=True)) if got != {"n": n}]
            assert wrong == []

    @for_each(is_listed)
    async def test_lists_have_the_names_of_one_context_unchanged(self, tmp_path: Path, subject: Subject) -> None:
        """A hostile bucket lists its keys and no others, and hostile keys and ids are listed as they were given."""
        many = _hostile_contexts(subject)[::2]
        contexts: dict[Parts, list[str]] = {}
        async with self.open(tmp_path) as persist:
            await gather_in_batches(subject.write(persist, parts, {"n": 1}) for parts in many)
            for parts in many:
                contexts.setdefault(parts[:-1], []).append(parts[-1])
            found = await gather_in_batches(subject.keys(persist, (*context, "")) for context in contexts)
            assert [sorted(keys) for keys in found] == [sorted(keys) for keys in contexts.values()]

    @for_each(is_removable)
    async def test_a_removal_removes_one_value(self, tmp_path: Path, subject: Subject) -> None:
        """A key that looks like a pattern, or like the parent of others, removes nothing else."""
        many = _hostile_contexts(subject)[::3]
        gone = set(range(0, len(many), 2))
        async with self.open(tmp_path) as persist:
            await gather_in_batches(subject.write(persist, parts, {"n": n}) for n, parts in enumerate(many))
            await gather_in_batches(subject.remove(persist, many[n]) for n in gone)
            expected = [None if n in gone else {"n": n} for n in range(len(many))]
            assert await subject.read_many(persist, many) == expected

    async def test_no_two_domains_share_a_value(self, tmp_path: Path) -> None:
        """The same names are different values in all domains."""
        async with self.open(tmp_path) as persist:
            same = {
                subject: tuple("a" if n in subject.name_positions else part for n, part in enumerate(subject.sample))
                for subject in self.subjects
            }
            for n, (subject, parts) in enumerate(same.items()):
                assert await subject.read(persist, parts) is None
                await subject.write(persist, parts, {"n": n})
            for n, (subject, parts) in enumerate(same.items()):
                assert await subject.read(persist, parts) == {"n": n}

    @for_first(is_overwritten)
    async def test_two_places_are_two_stores(self, tmp_path: Path, subject: Subject) -> None:
        """A value that is written at one place is not at another; otherwise `use` ignores its place."""
        one, two = tmp_path / "one", tmp_path / "two"
        one.mkdir()
        two.mkdir()
        async with self.open(one) as persist, self.open(two) as other:
            await subject.write(persist, subject.sample, {"n": 1})
            assert await subject.read(other, subject.sample) is None

    @for_each(has_optional_names)
    async def test_an_empty_name_is_a_name_where_the_domain_takes_it(self, tmp_path: Path, subject: Subject) -> None:
        """Live trading has no frame: its contexts are kept apart from each other and from those with a frame."""
        contexts = {subject.sample: None}
        for position in subject.optional_positions:
            contexts |= {subject.with_part(position, name): None for name in ("", "-", "live", "backtest")}
        for flag in subject.flag_positions:
            contexts |= {(*parts[:flag], False, *parts[flag + 1 :]): None for parts in list(contexts)}
        many = list(contexts)
        async with self.open(tmp_path) as persist:
            assert await subject.read_many(persist, many) == [None] * len(many)
            for n, parts in enumerate(many):
                await subject.write(persist, parts, {"n": n})
        async with self.open(tmp_path) as persist:
            assert await subject.read_many(persist, many) == [{"n": n} for n in range(len(many))]

    @for_each()
    async def test_an_unusable_name_is_refused(self, tmp_path: Path, subject: Subject) -> None:
        """In any part it is an InvalidKeyError, by the first read or write at the latest, and nothing is stored."""
        async with self.open(tmp_path) as persist:
            for position in subject.flag_positions:
                for value in _UNUSABLE_FLAGS:
                    await self._check_refusal(persist, subject, subject.with_part(position, value))
            for position in subject.name_positions:
                is_key = position >= len(subject.context)
                if is_key and is_list(subject):
                    continue  # ids of entries are tested by Lists
                for value in (*_UNUSABLE_NAMES, *(_UNHASHABLE_KEYS if is_key else ())):
                    if value == "" and position in subject.optional_positions:
                        continue
                    await self._check_refusal(persist, subject, subject.with_part(position, value))
        async with self.open(tmp_path) as persist:
            if is_listed(subject):
                assert await subject.keys(persist, subject.sample) == []
            assert await subject.read(persist, subject.sample) is None
            await subject.write(persist, subject.sample, {"n": 1})
            assert await subject.read(persist, subject.sample) == {"n": 1}

    @for_each(is_list)
    async def test_an_id_with_a_lone_surrogate_is_refused(self, tmp_path: Path, subject: Subject) -> None:
        """It is neither an id nor a text, so either error fits; nothing of the call is stored."""
        async with self.open(tmp_path) as persist:
            with pytest.raises((InvalidKeyError, InvalidPayloadError)):
                await subject.write_entries(persist, subject.sample, [{"id": "good"}, {"id": "\ud800"}])
            assert await subject.read_result(persist, subject.sample) == []

    async def _check_refusal(self, persist: Registry, subject: Subject, parts: Parts) -> None:
        with pytest.raises(InvalidKeyError):
            await subject.read(persist, parts)
        with pytest.raises(InvalidKeyError):
            await subject.write(persist, parts, {"n": 1})
        if is_removable(subject):
            with pytest.raises(InvalidKeyError):
                await subject.remove(persist, parts)
            if parts[-1] == subject.sample[-1]:
                with pytest.raises(InvalidKeyError):
                    await subject.keys(persist, parts)
        if tells_presence(subject):
            with pytest.raises(InvalidKeyError):
                await subject.was_written(persist, parts)
