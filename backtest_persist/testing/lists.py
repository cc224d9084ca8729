"""Lists: a read returns all entries, oldest first; an entry keeps the position of its first write."""

from pathlib import Path
from typing import Any

import pytest

from backtest_persist.domains.log import LOG
from backtest_persist.errors import InvalidKeyError, InvalidPayloadError
from backtest_persist.testing.subjects import (
    EARLY,
    LATE,
    Subject,
    gather_in_batches,
    is_by_mode,
    is_list,
    is_removable,
    is_replacing_list,
)
from backtest_persist.testing.suite import Suite, for_each, requires

__all__ = ("Lists",)

_ENTRIES_WITHOUT_ID: list[dict[str, Any]] = [
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


class Lists(Suite):
    """A read returns all entries, oldest first."""

    @for_each(is_list)
    async def test_a_list_has_all_entries_in_the_order_of_writing(self, tmp_path: Path, subject: Subject) -> None:
        """Thousands of entries come back in the order they had in their call; those of later calls follow."""
        entries = [{"id": f"e-{n * 7919 % 2500}", "n": n} for n in range(2500)]
        async with self.open(tmp_path) as persist:
            await subject.write_entries(persist, subject.sample, entries[:2400])
            await subject.write_entries(persist, subject.sample, iter(entries[2400:]))
            assert await subject.read_result(persist, subject.sample) == entries
        async with self.open(tmp_path) as persist:
            assert await subject.read_result(persist, subject.sample) == entries
            await subject.write_entries(persist, subject.sample, [{"id": "a", "n": 2500}])
            assert await subject.read_result(persist, subject.sample) == [*entries, {"id": "a", "n": 2500}]

    @for_each(is_list)
    async def test_entries_are_in_the_order_of_their_calls(self, tmp_path: Path, subject: Subject) -> None:
        """The order of their ids does not matter, nor which instance has written them."""
        ids = ["b", "10", "9", "a", "Z", "ä", "0", "~", "-1", "c"]
        async with self.open(tmp_path) as persist, self.open(tmp_path) as other:
            for position, entry_id in enumerate(ids):
                await subject.write_entries((persist, other)[position % 2], subject.sample, [{"id": entry_id}])
            assert await subject.keys(persist, subject.sample) == await subject.keys(other, subject.sample) == ids

    @for_each(is_replacing_list)
    async def test_an_entry_written_again_keeps_its_position(self, tmp_path: Path, subject: Subject) -> None:
        """It is replaced as a whole; entries that a call does not mention stay."""
        async with self.open(tmp_path) as persist:
            await subject.write_entries(persist, subject.sample, [{"id": name, "old": 1} for name in "cab"])
            await subject.write_entries(
                persist, subject.sample, [{"id": "b", "n": 1}, {"id": "d", "n": 2}, {"id": "c", "n": 3}]
            )
            expected = [{"id": "c", "n": 3}, {"id": "a", "old": 1}, {"id": "b", "n": 1}, {"id": "d", "n": 2}]
            assert await subject.read_result(persist, subject.sample) == expected

    @for_each(is_replacing_list)
    async def test_the_later_of_two_entries_with_one_id_is_kept(self, tmp_path: Path, subject: Subject) -> None:
        """It has the position of the first, also if both are in one call."""
        async with self.open(tmp_path) as persist:
            await subject.write_entries(
                persist, subject.sample, [{"id": "a", "n": 1}, {"id": "b", "n": 2}, {"id": "a", "n": 3}]
            )
            assert await subject.read_result(persist, subject.sample) == [{"id": "a", "n": 3}, {"id": "b", "n": 2}]

    @requires(LOG)
    async def test_the_log_is_append_only(self, tmp_path: Path) -> None:
        """An entry whose id exists is skipped, also within one call, whichever instance has written it."""
        async with self.open(tmp_path) as persist, self.open(tmp_path) as other:
            log, same = await persist.log(), await other.log()
            await log.write_log_data([{"id": "a", "n": 1}, {"id": "b", "n": 2}, {"id": "a", "n": 3}])
            await same.write_log_data([{"id": "b", "n": 4}, {"id": "c", "n": 5}])
            await log.write_log_data([{"id": "c", "n": 6}])
            assert [entry["n"] for entry in await log.read_log_data()] == [1, 2, 5]

    @for_each(is_by_mode)
    async def test_each_mode_has_a_separate_list(self, tmp_path: Path, subject: Subject) -> None:
        """The same ids in a backtest and in live trading are different entries."""
        async with self.open(tmp_path) as persist:
            backtest, live = (subject.with_part(subject.flag_positions[0], flag) for flag in (True, False))
            await subject.write_entries(persist, backtest, [{"id": "1", "n": 1}, {"id": "2", "n": 2}])
            assert await subject.read_result(persist, live) == []
            await subject.write_entries(persist, live, [{"id": "2", "n": -2}])
            assert await subject.read_result(persist, backtest) == [{"id": "1", "n": 1}, {"id": "2", "n": 2}]
            assert await subject.read_result(persist, live) == [{"id": "2", "n": -2}]

    @for_each(is_list)
    async def test_an_entry_without_a_usable_id_stops_the_whole_write(self, tmp_path: Path, subject: Subject) -> None:
        """It is an InvalidKeyError, and the good entries before and after it are not stored."""
        async with self.open(tmp_path) as persist:
            for bad in _ENTRIES_WITHOUT_ID:
                with pytest.raises(InvalidKeyError):
                    await subject.write_entries(persist, subject.sample, [{"id": "good"}, bad, {"id": "fine"}])
                with pytest.raises(InvalidKeyError):
                    await subject.write_entries(persist, subject.sample, [bad])
            assert await subject.read_result(persist, subject.sample) == []

    @for_each(is_list)
    async def test_an_entry_that_cannot_be_stored_stops_the_whole_write(self, tmp_path: Path, subject: Subject) -> None:
        """It is an InvalidPayloadError, and neither good entries nor replacements of the call are stored."""
        bad: Any
        async with self.open(tmp_path) as persist:
            await subject.write_entries(persist, subject.sample, [{"id": "old", "n": 1}])
            for bad in ({"id": "bad", "n": 2**63}, {"id": "bad", "n": {1}}, "text", 5):
                with pytest.raises(InvalidPayloadError):
                    await subject.write_entries(persist, subject.sample, [{"id": "old", "n": 2}, {"id": "good"}, bad])
            assert await subject.read_result(persist, subject.sample) == [{"id": "old", "n": 1}]

    @for_each(is_list)
    async def test_a_call_without_entries_changes_nothing(self, tmp_path: Path, subject: Subject) -> None:
        """Writing [] is no error, in an empty list as in another."""
        async with self.open(tmp_path) as persist:
            await subject.write_entries(persist, subject.sample, [])
            assert await subject.read_result(persist, subject.sample) == []
            await subject.write_entries(persist, subject.sample, [{"id": "a"}])
            await subject.write_entries(persist, subject.sample, [])
            assert await subject.read_result(persist, subject.sample) == [{"id": "a"}]

    @for_each(is_removable)
    async def test_keys_are_listed_oldest_first(self, tmp_path: Path, subject: Subject) -> None:
        """They are in the order of their first writes, whatever their names and `when`; a later write moves none."""
        keys = ["b", "10", "9", "a", "Z", "ä", "0"]
        async with self.open(tmp_path) as persist, self.open(tmp_path) as other:
            for position, key in enumerate(keys):
                parts = (*subject.sample[:-1], key)
                await subject.write((persist, other)[position % 2], parts, {"n": position}, EARLY - position)
            for key in ("a", "b"):
                await subject.write(other, (*subject.sample[:-1], key), {"again": True}, LATE)
            assert await subject.keys(persist, subject.sample) == await subject.keys(other, subject.sample) == keys

    @for_each(is_removable)
    async def test_all_keys_of_a_bucket_are_listed(self, tmp_path: Path, subject: Subject) -> None:
        """There is no limit; where payloads are listed along with their keys, they are those that were written."""
        async with self.open(tmp_path) as persist:
            many = [(*subject.sample[:-1], f"k-{n}") for n in range(1010)]
            await gather_in_batches(subject.write(persist, parts, {"n": n}) for n, parts in enumerate(many))
            assert sorted(await subject.keys(persist, subject.sample)) == sorted(parts[-1] for parts in many)
            listed = await subject.listed(persist, subject.sample)
            if isinstance(listed[0], tuple):
                assert dict(listed) == {parts[-1]: {"n": n} for n, parts in enumerate(many)}
