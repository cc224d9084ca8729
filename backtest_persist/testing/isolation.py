"""Isolation: two contexts never share a value, whatever their names are; what is no name is refused."""

import unicodedata
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest

from backtest_persist.errors import InvalidKeyError, InvalidPayloadError
from backtest_persist.registry import Registry
from backtest_persist.testing.domains import DOMAINS, LISTS, REMOVABLE, Domain, Parts, together
from backtest_persist.testing.suite import Suite

__all__ = ("Isolation",)

_NAMES = (
    # what means something in a path
    *("/", "a/b", "../x", "..", ".", "./x", ".hidden", "a.", "a ", " a", "~", "\\", "a\\b", "CON", "con", "nul.txt"),
    *(".tmp-x", "a.json", ".json", "-rf", "a" * 255, "a" * 256),
    # what means something in a key, a pattern or a query
    *":%_*?$\t\n\x7f",
    *("a:b", "::", "%2F", "%2f", "%25", "a%3Ab", "__", "a_b", "[a]", "a*", "$gt", "a.b", '{"$gt": ""}', ";|#&+^'"),
    *("' OR '1'='1", "a b", "a\nb", "\r\n", "\x1b[31m"),
    # what looks alike
    *("a", "A", "B", "b", "\N{CYRILLIC SMALL LETTER A}", "\N{FULLWIDTH LATIN SMALL LETTER A}", "a\u200b", "\ufeffa"),
    *(unicodedata.normalize("NFC", "é"), unicodedata.normalize("NFD", "é"), "ß", "ss", "İ", "i"),
    *("K", "\N{KELVIN SIGN}", "1", "01", "1.0", "¹"),
    # what is said inside
    *("None", "null", "true", "backtest", "live", "positions", "log", "__proto__"),
    # what is long or far away
    *("😀", "👩‍👩‍👧", "\U0010ffff", "名前", "x" * 10_000, "x" * 9_999 + "y", "😀" * 3_000),
)
_JOINTS = ("_", "/", ":", "-", ".")

_UNUSABLE: tuple[Any, ...] = ("", "\0", "a\0b", "\ud800", "a\udfff", None, 7, 0, 1.5, True, False, b"bytes", ("a",))
_UNHASHABLE: tuple[Any, ...] = ({}, {"$gt": ""}, ["a"], [])
_NO_FLAGS: tuple[Any, ...] = (0, 1, None, "", "live", "true", 1.0, b"", ())


def _hostile(domain: Domain) -> list[Parts]:
    """Contexts of a domain of which no two may meet."""
    names = [position for position, part in enumerate(domain.sample) if isinstance(part, str) and part != "1m"]
    found = {domain.sample: None}

    def add(changes: dict[int, Any]) -> None:
        found[tuple(changes.get(position, part) for position, part in enumerate(domain.sample))] = None

    for position in names:
        for name in _NAMES:
            add({position: name})
    for first, second in permutations(names, 2):  # in whatever order they may be joined
        add({first: "A", second: "B"})
        for joint in _JOINTS:
            add({first: f"A{joint}B", second: "C"})
            add({first: "A", second: f"B{joint}C"})
            add({first: joint, second: joint * 2})
    for name in ("..", "_", "/", ":", "%"):
        add(dict.fromkeys(names, name))
    if "backtest" in domain.fields:
        flag = domain.fields.index("backtest")
        found |= {(*parts[:flag], False, *parts[flag + 1 :]): None for parts in list(found)[::5]}
    return list(found)


class Isolation(Suite):
    """Two contexts never share a value, and what is no name is refused."""

    @pytest.mark.parametrize("domain", DOMAINS, ids=str)
    async def test_no_two_contexts_share_a_value(self, tmp_path: Path, domain: Domain) -> None:
        """Hostile names in every part, and parts that are alike when they are joined: each has a value of its own."""
        many = _hostile(domain)
        async with self.open(tmp_path) as persist:
            await together(domain.write(persist, parts, {"n": n}) for n, parts in enumerate(many))
        async with self.open(tmp_path) as persist:
            found = await domain.read_many(persist, many)
            wrong = [(parts, n, got) for n, (parts, got) in enumerate(zip(many, found, strict=True)) if got != {"n": n}]
            assert wrong == []

    @pytest.mark.parametrize("domain", [*REMOVABLE, *LISTS], ids=str)
    async def test_lists_have_the_names_of_their_own_context_as_they_are(self, tmp_path: Path, domain: Domain) -> None:
        """A hostile bucket lists its own keys only, and hostile keys and ids are listed as they were given."""
        many = _hostile(domain)[::2]
        contexts: dict[Parts, list[str]] = {}
        async with self.open(tmp_path) as persist:
            await together(domain.write(persist, parts, {"n": 1}) for parts in many)
            for parts in many:
                contexts.setdefault(parts[:-1], []).append(parts[-1])
            found = await together(domain.keys(persist, (*context, "")) for context in contexts)
            assert [sorted(keys) for keys in found] == [sorted(keys) for keys in contexts.values()]

    @pytest.mark.parametrize("domain", REMOVABLE, ids=str)
    async def test_a_removal_takes_one_value(self, tmp_path: Path, domain: Domain) -> None:
        """Removing what looks like a pattern, or like the parent of others, removes nothing else."""
        many = _hostile(domain)[::3]
        gone = set(range(0, len(many), 2))
        async with self.open(tmp_path) as persist:
            await together(domain.write(persist, parts, {"n": n}) for n, parts in enumerate(many))
            await together(domain.remove(persist, many[n]) for n in gone)
            expected = [None if n in gone else {"n": n} for n in range(len(many))]
            assert await domain.read_many(persist, many) == expected

    async def test_no_two_domains_share_a_value(self, tmp_path: Path) -> None:
        """The same names in all fifteen name fifteen values."""
        async with self.open(tmp_path) as persist:
            same = {
                domain: tuple("a" if isinstance(part, str) and part != "1m" else part for part in domain.sample)
                for domain in DOMAINS
            }
            for n, (domain, parts) in enumerate(same.items()):
                assert await domain.read(persist, parts) is None
                await domain.write(persist, parts, {"n": n})
            for n, (domain, parts) in enumerate(same.items()):
                assert await domain.read(persist, parts) == {"n": n}

    async def test_two_places_are_two_stores(self, tmp_path: Path) -> None:
        """What is written at one place is not at another: or else `use` does not mind the place it is given."""
        one, two = tmp_path / "one", tmp_path / "two"
        one.mkdir()
        two.mkdir()
        async with self.open(one) as persist, self.open(two) as other:
            await (await persist.signal("s", "t", "e")).write_signal_data({"n": 1})
            assert await (await other.signal("s", "t", "e")).read_signal_data() is None

    @pytest.mark.parametrize("domain", DOMAINS, ids=str)
    async def test_what_is_no_name_is_refused(self, tmp_path: Path, domain: Domain) -> None:
        """In any part it is an InvalidKeyError by the first read or write at the latest, and nothing is stored."""
        async with self.open(tmp_path) as persist:
            for position, part in enumerate(domain.sample):
                is_key = position >= len(domain.context)
                if domain.fields[position] == "interval" or (is_key and domain.kind == "list"):
                    continue  # the ids of entries are those of Lists
                bad = _NO_FLAGS if isinstance(part, bool) else (*_UNUSABLE, *(_UNHASHABLE if is_key else ()))
                for value in bad:
                    await self._refuses(persist, domain, domain.with_part(position, value))
        async with self.open(tmp_path) as persist:
            if domain.kind in ("removable", "list"):
                assert await domain.keys(persist, domain.sample) == []
            assert await domain.read(persist, domain.sample) is None
            await domain.write(persist, domain.sample, {"n": 1})
            assert await domain.read(persist, domain.sample) == {"n": 1}

    @pytest.mark.parametrize("domain", LISTS, ids=str)
    async def test_an_id_with_a_lone_surrogate_is_refused(self, tmp_path: Path, domain: Domain) -> None:
        """It is no id and no text either, so both errors say so; the whole call is off."""
        async with self.open(tmp_path) as persist:
            instance = await domain.instance(persist, domain.sample)
            with pytest.raises((InvalidKeyError, InvalidPayloadError)):
                await getattr(instance, f"write_{domain.name}_data")([{"id": "good"}, {"id": "\ud800"}])
            assert await domain.read_as_is(persist, domain.sample) == []

    async def _refuses(self, persist: Registry, domain: Domain, parts: Parts) -> None:
        with pytest.raises(InvalidKeyError):
            await domain.read(persist, parts)
        with pytest.raises(InvalidKeyError):
            await domain.write(persist, parts, {"n": 1})
        if domain.kind == "removable":
            with pytest.raises(InvalidKeyError):
                await domain.remove(persist, parts)
            if parts[-1] == domain.sample[-1]:
                with pytest.raises(InvalidKeyError):
                    await domain.keys(persist, parts)
        if domain.name == "memory":
            with pytest.raises(InvalidKeyError):
                await (await persist.memory(*parts[:-1])).has_memory_data(parts[-1])
