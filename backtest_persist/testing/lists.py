"""Lists: whole, without a cap, oldest first; an entry keeps the place of its first write."""

from pathlib import Path
from typing import Any

import pytest

from backtest_persist.errors import InvalidKeyError, InvalidPayloadError
from backtest_persist.registry import Registry
from backtest_persist.testing.domains import LISTS, REMOVABLE, Domain, pick, together
from backtest_persist.testing.suite import Suite

__all__ = ("Lists",)

_REPLACING = pick("notification", "storage")
_BY_MODE = _REPLACING

_UNUSABLE: list[dict[str, Any]] = [
    {"n": 1},
    {"id": None},
    {"id": ""},
    {"id": 7},
    {"id": True},
    {"id": "a\0b"},
    {"id": b"a"},
    {"id": ["a"]},
    {"id": {"$gt": ""}},
]


async def _append(domain: Domain, persist: Registry, entries: Any) -> None:
    instance = await domain.instance(persist, domain.sample)
    await getattr(instance, f"write_{domain.name}_data")(entries)


async def _read(domain: Domain, persist: Registry) -> list[Any]:
    return await domain.read_as_is(persist, domain.sample)


class Lists(Suite):
    """Lists are whole and oldest first."""

    @pytest.mark.parametrize("domain", LISTS, ids=str)
    async def test_a_list_is_whole_and_in_the_order_of_writing(self, tmp_path: Path, domain: Domain) -> None:
        """Two and a half thousand entries come back all, in the order they had in their call, and in later ones."""
        entries = [{"id": f"e-{n * 7919 % 2500}", "n": n} for n in range(2500)]
        async with self.open(tmp_path) as persist:
            await _append(domain, persist, entries[:2400])
            await _append(domain, persist, iter(entries[2400:]))
            assert await _read(domain, persist) == entries
        async with self.open(tmp_path) as persist:
            assert await _read(domain, persist) == entries
            await _append(domain, persist, [{"id": "a", "n": 2500}])
            assert await _read(domain, persist) == [*entries, {"id": "a", "n": 2500}]

    @pytest.mark.parametrize("domain", LISTS, ids=str)
    async def test_calls_follow_each_other_whatever_the_ids_are(self, tmp_path: Path, domain: Domain) -> None:
        """Entries stand in the order of their calls, not of their names, whichever instance has written them."""
        ids = ["b", "10", "9", "a", "Z", "ä", "0", "~", "-1", "c"]
        async with self.open(tmp_path) as persist, self.open(tmp_path) as other:
            for position, entry_id in enumerate(ids):
                await _append(domain, (persist, other)[position % 2], [{"id": entry_id}])
            assert await domain.keys(persist, domain.sample) == await domain.keys(other, domain.sample) == ids

    @pytest.mark.parametrize("domain", _REPLACING, ids=str)
    async def test_an_entry_written_again_is_replaced_in_its_place(self, tmp_path: Path, domain: Domain) -> None:
        """Those that are not among the entries of a call stay; nothing of the old payload is left."""
        async with self.open(tmp_path) as persist:
            await _append(domain, persist, [{"id": name, "old": 1} for name in "cab"])
            await _append(domain, persist, [{"id": "b", "n": 1}, {"id": "d", "n": 2}, {"id": "c", "n": 3}])
            expected = [{"id": "c", "n": 3}, {"id": "a", "old": 1}, {"id": "b", "n": 1}, {"id": "d", "n": 2}]
            assert await _read(domain, persist) == expected

    @pytest.mark.parametrize("domain", _REPLACING, ids=str)
    async def test_of_two_entries_with_one_id_the_later_stands(self, tmp_path: Path, domain: Domain) -> None:
        """Within one call, too, in the place of the first."""
        async with self.open(tmp_path) as persist:
            await _append(domain, persist, [{"id": "a", "n": 1}, {"id": "b", "n": 2}, {"id": "a", "n": 3}])
            assert await _read(domain, persist) == [{"id": "a", "n": 3}, {"id": "b", "n": 2}]

    async def test_the_log_is_append_only(self, tmp_path: Path) -> None:
        """An entry whose id exists is skipped, also within one call, whoever has written it."""
        async with self.open(tmp_path) as persist, self.open(tmp_path) as other:
            log, same = await persist.log(), await other.log()
            await log.write_log_data([{"id": "a", "n": 1}, {"id": "b", "n": 2}, {"id": "a", "n": 3}])
            await same.write_log_data([{"id": "b", "n": 4}, {"id": "c", "n": 5}])
            await log.write_log_data([{"id": "c", "n": 6}])
            assert [entry["n"] for entry in await log.read_log_data()] == [1, 2, 5]

    @pytest.mark.parametrize("domain", _BY_MODE, ids=str)
    async def test_backtest_and_live_are_two_lists(self, tmp_path: Path, domain: Domain) -> None:
        """The same ids in both do not meet."""
        async with self.open(tmp_path) as persist:
            backtest, live = await domain.instance(persist, (True,)), await domain.instance(persist, (False,))
            read, write = f"read_{domain.name}_data", f"write_{domain.name}_data"
            await getattr(backtest, write)([{"id": "1", "n": 1}, {"id": "2", "n": 2}])
            assert await getattr(live, read)() == []
            await getattr(live, write)([{"id": "2", "n": -2}])
            assert await getattr(backtest, read)() == [{"id": "1", "n": 1}, {"id": "2", "n": 2}]
            assert await getattr(live, read)() == [{"id": "2", "n": -2}]

    @pytest.mark.parametrize("domain", LISTS, ids=str)
    async def test_an_entry_without_a_usable_id_stops_the_whole_write(self, tmp_path: Path, domain: Domain) -> None:
        """It is an InvalidKeyError, and the good ones before and behind it are not stored."""
        async with self.open(tmp_path) as persist:
            for bad in _UNUSABLE:
                with pytest.raises(InvalidKeyError):
                    await _append(domain, persist, [{"id": "good"}, bad, {"id": "fine"}])
                with pytest.raises(InvalidKeyError):
                    await _append(domain, persist, [bad])
            assert await _read(domain, persist) == []

    @pytest.mark.parametrize("domain", LISTS, ids=str)
    async def test_an_entry_that_cannot_be_stored_stops_the_whole_write(self, tmp_path: Path, domain: Domain) -> None:
        """It is an InvalidPayloadError, and neither the good ones nor a replacement among them is stored."""
        bad: Any
        async with self.open(tmp_path) as persist:
            await _append(domain, persist, [{"id": "old", "n": 1}])
            for bad in ({"id": "bad", "n": 2**63}, {"id": "bad", "n": {1}}, "text", 5):
                with pytest.raises(InvalidPayloadError):
                    await _append(domain, persist, [{"id": "old", "n": 2}, {"id": "good"}, bad])
            assert await _read(domain, persist) == [{"id": "old", "n": 1}]

    @pytest.mark.parametrize("domain", LISTS, ids=str)
    async def test_a_call_without_entries_changes_nothing(self, tmp_path: Path, domain: Domain) -> None:
        """[] is no error, in an empty list as in another."""
        async with self.open(tmp_path) as persist:
            await _append(domain, persist, [])
            assert await _read(domain, persist) == []
            await _append(domain, persist, [{"id": "a"}])
            await _append(domain, persist, [])
            assert await _read(domain, persist) == [{"id": "a"}]

    @pytest.mark.parametrize("domain", REMOVABLE, ids=str)
    async def test_keys_are_listed_oldest_first(self, tmp_path: Path, domain: Domain) -> None:
        """In the order of their first write, not of their names or their `when`; another write changes no place."""
        keys = ["b", "10", "9", "a", "Z", "ä", "0"]
        async with self.open(tmp_path) as persist, self.open(tmp_path) as other:
            for position, key in enumerate(keys):
                parts = (*domain.sample[:-1], key)
                await domain.write((persist, other)[position % 2], parts, {"n": position}, 1000 - position)
            for key in ("a", "b"):
                await domain.write(other, (*domain.sample[:-1], key), {"again": True}, 2000)
            assert await domain.keys(persist, domain.sample) == await domain.keys(other, domain.sample) == keys

    @pytest.mark.parametrize("domain", REMOVABLE, ids=str)
    async def test_all_keys_of_a_bucket_are_listed(self, tmp_path: Path, domain: Domain) -> None:
        """A bucket has no cap, either; the list goes with what the memories hold."""
        async with self.open(tmp_path) as persist:
            many = [(*domain.sample[:-1], f"k-{n}") for n in range(1010)]
            await together(domain.write(persist, parts, {"n": n}) for n, parts in enumerate(many))
            assert sorted(await domain.keys(persist, domain.sample)) == sorted(parts[-1] for parts in many)
            if domain.name == "memory":
                memory = await persist.memory(*domain.sample[:-1])
                expected = {parts[-1]: {"n": n} for n, parts in enumerate(many)}
                assert {key: data async for key, data in memory.list_memory_data()} == expected
