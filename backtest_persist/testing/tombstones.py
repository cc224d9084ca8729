"""Tombstones: what is removed is gone for readers, and comes back in its old place when it is written again."""

from pathlib import Path
from typing import Any

import pytest

from backtest_persist.testing.domains import EARLY, LATE, REMOVABLE, Domain, pick
from backtest_persist.testing.suite import Suite

__all__ = ("Tombstones",)

_TIMED = pick("interval", "memory")


class Tombstones(Suite):
    """What is removed is gone for readers, and can be revived."""

    @pytest.mark.parametrize("domain", REMOVABLE, ids=str)
    async def test_a_removed_value_is_neither_read_nor_listed(self, tmp_path: Path, domain: Domain) -> None:
        """It is None for this instance and any other, at once and when the store is opened again; others stay."""
        one, two, three = (domain.numbered(number) for number in range(3))
        async with self.open(tmp_path) as persist, self.open(tmp_path) as other:
            for number, parts in enumerate((one, two, three)):
                await domain.write(persist, parts, {"n": number})
            assert await domain.read(other, two) == {"n": 1}
            await domain.remove(persist, two)
            for registry in (persist, other):
                assert await domain.read_many(registry, [one, two, three]) == [{"n": 0}, None, {"n": 2}]
                assert await domain.keys(registry, one) == [one[-1], three[-1]]
        async with self.open(tmp_path) as persist:
            assert await domain.read(persist, two) is None
            assert await domain.keys(persist, one) == [one[-1], three[-1]]

    @pytest.mark.parametrize("domain", REMOVABLE, ids=str)
    async def test_a_later_write_revives_a_removed_value_in_its_old_place(self, tmp_path: Path, domain: Domain) -> None:
        """It is listed where it was, and reads as what was written: no mark of the tombstone is left in it."""
        many = [domain.numbered(number) for number in range(4)]
        async with self.open(tmp_path) as persist:
            for parts in many:
                await domain.write(persist, parts, {"old": True})
            await domain.remove(persist, many[0])
            await domain.remove(persist, many[2])
            await domain.write(persist, many[2], {"new": True})
            assert await domain.read(persist, many[2]) == {"new": True}
            assert await domain.keys(persist, many[0]) == [parts[-1] for parts in many[1:]]
            await domain.write(persist, many[0], {})
            assert await domain.read(persist, many[0]) == {}
            assert await domain.keys(persist, many[0]) == [parts[-1] for parts in many]

    @pytest.mark.parametrize("domain", REMOVABLE, ids=str)
    async def test_removing_what_is_not_there_does_nothing(self, tmp_path: Path, domain: Domain) -> None:
        """Neither a key that was never written, nor one that was removed already, is an error or leaves a trace."""
        kept, never = domain.numbered(1), domain.numbered(2)
        async with self.open(tmp_path) as persist:
            await domain.remove(persist, never)
            assert await domain.keys(persist, kept) == []
            await domain.write(persist, kept, {"n": 1})
            await domain.remove(persist, never)
            assert await domain.keys(persist, kept) == [kept[-1]]
            await domain.remove(persist, kept)
            await domain.remove(persist, kept)
            assert await domain.keys(persist, kept) == []
            if domain.name == "memory":
                memory = await persist.memory(*never[:-1])
                assert await memory.has_memory_data(never[-1]) is False

    @pytest.mark.parametrize("domain", REMOVABLE, ids=str)
    async def test_none_is_a_value_like_any_other(self, tmp_path: Path, domain: Domain) -> None:
        """It is listed and read as None; it can be removed, and revived as None or as something else."""
        parts, other = domain.numbered(1), domain.numbered(2)
        async with self.open(tmp_path) as persist:
            await domain.write(persist, parts, None)
            await domain.write(persist, other, {"n": 1})
            assert await domain.keys(persist, parts) == [parts[-1], other[-1]]
            assert await domain.read(persist, parts) is None
            await domain.remove(persist, parts)
            assert await domain.keys(persist, parts) == [other[-1]]
            assert await domain.read(persist, parts) is None
            await domain.write(persist, parts, None)
            assert await domain.keys(persist, parts) == [parts[-1], other[-1]]
            await domain.remove(persist, parts)
            await domain.write(persist, parts, {"n": 2})
            assert await domain.read(persist, parts) == {"n": 2}

    @pytest.mark.parametrize("domain", REMOVABLE, ids=str)
    async def test_a_payload_that_says_it_is_removed_is_a_tombstone(self, tmp_path: Path, domain: Domain) -> None:
        """Only ``removed: true`` at the top says so; anything else under that name is data."""
        parts = domain.sample
        data: list[dict[str, Any]] = [
            {"removed": False},
            {"removed": None},
            {"removed": "true"},
            {"removed": 1},
            {"inner": {"removed": True}},
        ]
        async with self.open(tmp_path) as persist:
            for payload in data:
                await domain.write(persist, parts, {"removed": True, "n": 1})
                assert await domain.read(persist, parts) is None
                assert await domain.keys(persist, parts) == []
                await domain.write(persist, parts, payload)
                assert await domain.read(persist, parts) == payload
                assert await domain.keys(persist, parts) == [parts[-1]]

    @pytest.mark.parametrize("domain", REMOVABLE, ids=str)
    async def test_whatever_a_payload_holds_can_be_removed(self, tmp_path: Path, domain: Domain) -> None:
        """Keys that look like an encoding or like the mark of a tombstone do not keep a value alive."""
        payloads: list[dict[str, Any]] = [
            {},
            {"$date": "today"},
            {"$literal": {"n": 1}},
            {"$literal": {"n": 1}, "removed": False},
            {"$set": {"removed": False}, "$numberDecimal": "1"},
        ]
        async with self.open(tmp_path) as persist:
            for n, payload in enumerate(payloads):
                parts = domain.numbered(n)
                await domain.write(persist, parts, payload)
                assert await domain.keys(persist, parts) == [parts[-1]]
                await domain.remove(persist, parts)
                assert await domain.read(persist, parts) is None
                assert await domain.keys(persist, parts) == []

    async def test_a_removed_memory_still_counts_as_known(self, tmp_path: Path) -> None:
        """has_memory_data is True after the removal, from any instance; of what a payload removed itself as well."""
        async with self.open(tmp_path) as persist, self.open(tmp_path) as other:
            memory = await persist.memory("s-1", "notes")
            assert await memory.has_memory_data("m1") is False
            await memory.write_memory_data({"text": "a"}, "m1", EARLY)
            await memory.write_memory_data({"removed": True}, "m2", EARLY)
            await memory.write_memory_data(None, "m3", EARLY)
            for key in ("m1", "m3"):
                assert await memory.has_memory_data(key) is True
                await memory.remove_memory_data(key)
            for registry in (persist, other):
                again = await registry.memory("s-1", "notes")
                assert [await again.has_memory_data(key) for key in ("m1", "m2", "m3", "m4")] == [True] * 3 + [False]
                assert [item async for item in again.list_memory_data()] == []

    @pytest.mark.parametrize("domain", _TIMED, ids=str)
    async def test_a_removal_holds_at_any_when(self, tmp_path: Path, domain: Domain) -> None:
        """It takes no `when`: the value is gone for readers at every time, and a write at any time revives it."""
        parts = domain.sample
        async with self.open(tmp_path) as persist:
            await domain.write(persist, parts, {"n": 1}, LATE)
            await domain.remove(persist, parts)
            for when in (EARLY, LATE, LATE + 1):
                assert await domain.read(persist, parts, when=when) is None
                assert await domain.keys(persist, parts, when=when) == []
            if domain.name == "memory":
                memory = await persist.memory(*parts[:-1])
                assert await memory.has_memory_data(parts[-1], when=LATE - 1) is False
                assert await memory.has_memory_data(parts[-1], when=LATE) is True
            await domain.write(persist, parts, {"n": 2}, EARLY)
            assert await domain.read(persist, parts, when=EARLY) == {"n": 2}
            assert await domain.keys(persist, parts, when=EARLY) == [parts[-1]]
