"""Tombstones: a removed value is gone for readers, and keeps its position in the list when it is written again."""

from pathlib import Path
from typing import Any

from backtest_persist.testing.subjects import (
    EARLY,
    LATE,
    Subject,
    is_listed_at_when,
    is_removable,
    tells_presence,
)
from backtest_persist.testing.suite import Suite, for_each

__all__ = ("Tombstones",)


class Tombstones(Suite):
    """A removed value is gone for readers, and can be revived."""

    @for_each(is_removable)
    async def test_a_removed_value_is_neither_read_nor_listed(self, tmp_path: Path, subject: Subject) -> None:
        """It is None for this instance and any other, at once and when the store is opened again; others stay."""
        one, two, three = (subject.numbered(number) for number in range(3))
        async with self.open(tmp_path) as persist, self.open(tmp_path) as other:
            for number, parts in enumerate((one, two, three)):
                await subject.write(persist, parts, {"n": number})
            assert await subject.read(other, two) == {"n": 1}
            await subject.remove(persist, two)
            for registry in (persist, other):
                assert await subject.read_many(registry, [one, two, three]) == [{"n": 0}, None, {"n": 2}]
                assert await subject.keys(registry, one) == [one[-1], three[-1]]
        async with self.open(tmp_path) as persist:
            assert await subject.read(persist, two) is None
            assert await subject.keys(persist, one) == [one[-1], three[-1]]

    @for_each(is_removable)
    async def test_a_later_write_revives_a_removed_value_in_its_old_position(
        self, tmp_path: Path, subject: Subject
    ) -> None:
        """It is listed where it was, and reads as it was written, without any mark of the tombstone."""
        many = [subject.numbered(number) for number in range(4)]
        async with self.open(tmp_path) as persist:
            for parts in many:
                await subject.write(persist, parts, {"old": True})
            await subject.remove(persist, many[0])
            await subject.remove(persist, many[2])
            await subject.write(persist, many[2], {"new": True})
            assert await subject.read(persist, many[2]) == {"new": True}
            assert await subject.keys(persist, many[0]) == [parts[-1] for parts in many[1:]]
            await subject.write(persist, many[0], {})
            assert await subject.read(persist, many[0]) == {}
            assert await subject.keys(persist, many[0]) == [parts[-1] for parts in many]

    @for_each(is_removable)
    async def test_removing_an_absent_value_does_nothing(self, tmp_path: Path, subject: Subject) -> None:
        """A key that was never written or is removed already is no error, and leaves no trace."""
        kept, never = subject.numbered(1), subject.numbered(2)
        async with self.open(tmp_path) as persist:
            await subject.remove(persist, never)
            assert await subject.keys(persist, kept) == []
            await subject.write(persist, kept, {"n": 1})
            await subject.remove(persist, never)
            assert await subject.keys(persist, kept) == [kept[-1]]
            await subject.remove(persist, kept)
            await subject.remove(persist, kept)
            assert await subject.keys(persist, kept) == []
            if tells_presence(subject):
                assert await subject.was_written(persist, never) is False

    @for_each(is_removable)
    async def test_none_is_a_value_that_can_be_removed(self, tmp_path: Path, subject: Subject) -> None:
        """It is listed and read as None; a removed one is revived as None or as another payload."""
        parts, other = subject.numbered(1), subject.numbered(2)
        async with self.open(tmp_path) as persist:
            await subject.write(persist, parts, None)
            await subject.write(persist, other, {"n": 1})
            assert await subject.keys(persist, parts) == [parts[-1], other[-1]]
            assert await subject.read(persist, parts) is None
            await subject.remove(persist, parts)
            assert await subject.keys(persist, parts) == [other[-1]]
            assert await subject.read(persist, parts) is None
            await subject.write(persist, parts, None)
            assert await subject.keys(persist, parts) == [parts[-1], other[-1]]
            await subject.remove(persist, parts)
            await subject.write(persist, parts, {"n": 2})
            assert await subject.read(persist, parts) == {"n": 2}

    @for_each(is_removable)
    async def test_a_payload_that_says_it_is_removed_is_a_tombstone(self, tmp_path: Path, subject: Subject) -> None:
        """Only ``removed: true`` at the top level says so; anything else under that name is data."""
        parts = subject.sample
        data: list[dict[str, Any]] = [
            {"removed": False},
            {"removed": None},
            {"removed": "true"},
            {"removed": 1},
            {"inner": {"removed": True}},
        ]
        async with self.open(tmp_path) as persist:
            for payload in data:
                await subject.write(persist, parts, {"removed": True, "n": 1})
                assert await subject.read(persist, parts) is None
                assert await subject.keys(persist, parts) == []
                await subject.write(persist, parts, payload)
                assert await subject.read(persist, parts) == payload
                assert await subject.keys(persist, parts) == [parts[-1]]

    @for_each(is_removable)
    async def test_a_value_with_any_payload_can_be_removed(self, tmp_path: Path, subject: Subject) -> None:
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
                parts = subject.numbered(n)
                await subject.write(persist, parts, payload)
                assert await subject.keys(persist, parts) == [parts[-1]]
                await subject.remove(persist, parts)
                assert await subject.read(persist, parts) is None
                assert await subject.keys(persist, parts) == []

    @for_each(tells_presence)
    async def test_a_removed_value_still_counts_as_written(self, tmp_path: Path, subject: Subject) -> None:
        """The ``has_`` method returns True after the removal, from any instance, and for a payload that is removed."""
        one, two, three, four = many = [subject.numbered(number) for number in range(4)]
        async with self.open(tmp_path) as persist, self.open(tmp_path) as other:
            assert await subject.was_written(persist, one) is False
            await subject.write(persist, one, {"text": "a"})
            await subject.write(persist, two, {"removed": True})
            await subject.write(persist, three, None)
            for parts in (one, three):
                assert await subject.was_written(persist, parts) is True
                await subject.remove(persist, parts)
            for registry in (persist, other):
                written = [parts for parts in many if await subject.was_written(registry, parts)]
                assert written == [one, two, three]
                assert await subject.keys(registry, four) == []

    @for_each(is_listed_at_when)
    async def test_a_removal_is_seen_at_any_when(self, tmp_path: Path, subject: Subject) -> None:
        """It has no `when`: the value is gone for every reader, and a write with any `when` revives it."""
        parts = subject.sample
        async with self.open(tmp_path) as persist:
            await subject.write(persist, parts, {"n": 1}, LATE)
            await subject.remove(persist, parts)
            for when in (EARLY, LATE, LATE + 1):
                assert await subject.read(persist, parts, when=when) is None
                assert await subject.keys(persist, parts, when=when) == []
            if tells_presence(subject):
                assert await subject.was_written(persist, parts, when=LATE - 1) is False
                assert await subject.was_written(persist, parts, when=LATE) is True
            await subject.write(persist, parts, {"n": 2}, EARLY)
            assert await subject.read(persist, parts, when=EARLY) == {"n": 2}
            assert await subject.keys(persist, parts, when=EARLY) == [parts[-1]]
