"""Crash: acknowledged writes survive the end of their process, whatever ends it, and no value is ever torn."""

import signal
from pathlib import Path
from typing import Any

import pytest

from backtest_persist.registry import Registry
from backtest_persist.testing.subjects import (
    MINUTE,
    START,
    Subject,
    candle,
    has_many_contexts,
    is_append_only,
    is_list,
    is_overwritten,
    is_replacing_list,
    is_value,
)
from backtest_persist.testing.suite import Suite, for_first, one_of_each_kind
from backtest_persist.testing.writer import BULK, Writer, bulk_entries, repeated, running

__all__ = ("Crash",)


def _has_many_overwritten(subject: Subject) -> bool:
    return is_overwritten(subject) and has_many_contexts(subject)


class Crash(Suite):
    """Acknowledged writes survive the end of their process, and no value is ever torn."""

    async def test_what_was_written_is_there_after_the_writer_was_killed(self, tmp_path: Path) -> None:
        """A process that dies by SIGKILL right after its writes leaves them in every domain."""
        async with self.open(tmp_path) as before:
            for subject in filter(is_overwritten, self.subjects):
                await subject.write(before, subject.sample, {"n": 1})
            async with running(self, tmp_path, "write each and die", self.subjects) as writer:
                await writer.wait_for_suicide()
            for subject in self.subjects:
                assert await subject.read(before, subject.sample) == {"n": 2}
        async with self.open(tmp_path) as persist:
            for subject in self.subjects:
                assert await subject.read(persist, subject.sample) == {"n": 2}

    @for_first(_has_many_overwritten)
    async def test_a_kill_between_two_writes_keeps_the_first_and_leaves_the_second(
        self, tmp_path: Path, subject: Subject
    ) -> None:
        """A value overwritten before the kill is new, one that was to follow is old; both can be written again."""
        other = subject.numbered(2)
        async with running(self, tmp_path, "die between writes", [subject]) as writer:
            await writer.wait_for_suicide()
        async with self.open(tmp_path) as persist:
            assert await subject.read(persist, subject.sample) == {"n": 2}
            assert await subject.read(persist, other) == {"n": 1}
            for parts in (subject.sample, other):
                await subject.write(persist, parts, {"n": 3})
                assert await subject.read(persist, parts) == {"n": 3}

    @for_first(is_append_only, is_replacing_list)
    async def test_a_kill_before_all_entries_are_checked_leaves_none(self, tmp_path: Path, subject: Subject) -> None:
        """A call stores nothing until it has seen its last entry; an entry written before it is there."""
        async with running(self, tmp_path, "die while entries are checked", [subject]) as writer:
            await writer.wait_for_suicide()
        async with self.open(tmp_path) as persist:
            assert await subject.read_result(persist, subject.sample) == [{"id": "before"}]

    @for_first(is_append_only, is_replacing_list)
    async def test_a_kill_amid_many_entries_leaves_whole_ones_in_order(self, tmp_path: Path, subject: Subject) -> None:
        """Killed as soon as an entry is seen: those that are there are whole, and the call can be made again."""
        async with self.open(tmp_path) as before, running(self, tmp_path, "write bulk", [subject]) as writer:
            await writer.wait_for_acknowledgements()

            async def has_begun() -> bool:
                return bool(await subject.read_result(before, subject.sample))

            await writer.wait_until(has_begun)
            await writer.kill()
        async with self.open(tmp_path) as persist:
            found = await subject.read_result(persist, subject.sample)
            stored = {entry["id"] for entry in found}
            assert found == [entry for entry in bulk_entries() if entry["id"] in stored]
            assert len(found) == BULK or writer.acknowledged != ["begin", "end"]
            await subject.write_entries(persist, subject.sample, bulk_entries())
            again = await subject.read_result(persist, subject.sample)
            assert again[: len(found)] == found
            assert sorted(entry["n"] for entry in again) == list(range(BULK))

    @pytest.mark.parametrize(
        ("moment", "by"), [(1, signal.SIGKILL), (10, signal.SIGTERM), (42, signal.SIGKILL), (83, signal.SIGTERM)]
    )
    async def test_a_kill_at_any_moment_loses_no_write_and_tears_no_value(
        self, tmp_path: Path, moment: int, by: signal.Signals
    ) -> None:
        """Every acknowledged write is there, at most one more is, every value is whole, and the store can be used."""
        subjects = one_of_each_kind(self.subjects)
        async with self.open(tmp_path) as before:
            for subject in subjects:
                assert await subject.read(before, subject.sample) is None
            async with running(self, tmp_path, "count", subjects) as writer:
                await writer.wait_for_acknowledgements(moment)
                await writer.kill(by)
            for subject in subjects:
                await self._check_nothing_is_lost(before, writer, subject)
        async with self.open(tmp_path) as persist:
            for subject in subjects:
                await self._check_nothing_is_lost(persist, writer, subject)
                await self._check_it_can_be_used(persist, subject)

    @for_first(is_value, is_append_only, is_replacing_list)
    async def test_a_kill_as_soon_as_a_write_is_seen_finds_it_whole(self, tmp_path: Path, subject: Subject) -> None:
        """The writer is killed as soon as there is a trace of the write that follows an acknowledged one."""
        subjects = one_of_each_kind(self.subjects)
        moment = len(subjects) + subjects.index(subject)  # the next write is the second one of this domain
        async with self.open(tmp_path) as before:
            async with running(self, tmp_path, "count", subjects) as writer:
                await writer.wait_for_acknowledgements(moment)
                known = writer.acknowledged.count(subject.name)
                assert await self._read_latest_number(before, subject) >= known

                async def is_continued() -> bool:
                    return await self._read_latest_number(before, subject) > known

                await writer.wait_until(is_continued)
                await writer.kill()
            for other in subjects:
                await self._check_nothing_is_lost(before, writer, other)
        async with self.open(tmp_path) as persist:
            for other in subjects:
                await self._check_nothing_is_lost(persist, writer, other)

    async def _read_latest_number(self, persist: Registry, subject: Subject) -> int:
        result = await subject.read_result(persist, subject.sample)
        values = result if is_list(subject) else [result] if result else []
        for value in values:
            assert value["copies"] == repeated(value["n"])["copies"]
        return max((value["n"] for value in values), default=0)

    async def _check_nothing_is_lost(self, persist: Registry, writer: Writer, subject: Subject) -> None:
        acknowledged = writer.acknowledged.count(subject.name)
        possible, parts = (acknowledged, acknowledged + 1), subject.sample
        match subject.kind:
            case "list" if is_append_only(subject):
                entries = await subject.read_result(persist, parts)
                assert len(entries) in possible
                assert entries == [{"id": str(n), **repeated(n)} for n in range(1, len(entries) + 1)]
            case "list":
                entries = await subject.read_result(persist, parts)
                assert [entry["id"] for entry in entries] == list("abc")[: len(entries)] or acknowledged == 0
                assert len(entries) == 3 or acknowledged == 0
                for entry in entries:
                    assert entry in [{"id": entry["id"], **repeated(n)} for n in possible]
            case "candles":
                certain = 2 * acknowledged
                assert await subject.read_window(persist, parts, certain, START) == [candle(n) for n in range(certain)]
                for n in range(certain, certain + 4):
                    window = await subject.read_window(persist, parts, 1, START + n * MINUTE)
                    assert window is None or (window == [candle(n)] and n < certain + 2)
            case "removable":
                payload = await subject.read(persist, parts)
                assert payload in [repeated(n) if n % 2 else None for n in possible]
                assert await subject.keys(persist, parts) == [parts[-1]] * (payload is not None)
            case _:
                assert await subject.read(persist, parts) in [repeated(n) if n else None for n in possible]

    async def _check_it_can_be_used(self, persist: Registry, subject: Subject) -> None:
        payload: Any = {"after": 1}
        match subject.kind:
            case "list" if is_append_only(subject):
                entries = await subject.read_result(persist, subject.sample)
                await subject.write_entries(persist, subject.sample, [{"id": "after"}])
                assert await subject.read_result(persist, subject.sample) == [*entries, {"id": "after"}]
            case "list":
                await subject.write_entries(persist, subject.sample, [{"id": name} for name in "abcd"])
                assert sorted(await subject.keys(persist, subject.sample)) == list("abcd")
            case "candles":
                candles = [candle(n) for n in range(200)]
                await subject.write_entries(persist, subject.sample, candles)
                assert await subject.read_window(persist, subject.sample, 200, START) == candles
            case _:
                await subject.write(persist, subject.sample, payload)
                assert await subject.read(persist, subject.sample) == payload
