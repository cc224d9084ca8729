"""LookAhead: a reader at a time of the simulation sees no value that was written at a later one."""

from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from backtest_persist.domains.measure import MEASURE
from backtest_persist.errors import InvalidWhenError
from backtest_persist.testing.subjects import (
    EARLY,
    LATE,
    LATEST,
    NO_MILLIS,
    Subject,
    is_listed_at_when,
    is_timed,
    may_omit_when,
    tells_presence,
)
from backtest_persist.testing.suite import Suite, for_each, requires

__all__ = ("LookAhead",)

_BAD_WHENS: tuple[Any, ...] = (
    True,
    False,
    float("nan"),
    1.5,
    "2024-01-01",
    "1700000000000",
    datetime(2024, 1, 1),
    {},
    [0],
    *NO_MILLIS,
)


class LookAhead(Suite):
    """A reader sees no value that was written with a later `when`."""

    @for_each(is_timed)
    async def test_a_value_is_hidden_from_readers_before_its_when(self, tmp_path: Path, subject: Subject) -> None:
        """Every instance sees it from the ms of its `when` on, and nothing before."""
        async with self.open(tmp_path) as persist, self.open(tmp_path) as other:
            await subject.write(persist, subject.sample, {"n": 1}, LATE)
            for registry in (persist, other):
                for when in (0, EARLY, LATE - 1):
                    assert await subject.read(registry, subject.sample, when=when) is None
                for when in (LATE, LATE + 1, LATEST):
                    assert await subject.read(registry, subject.sample, when=when) == {"n": 1}

    @for_each(is_timed)
    async def test_a_hidden_value_does_not_reveal_an_older_one(self, tmp_path: Path, subject: Subject) -> None:
        """Only the latest is kept: a reader between the two writes sees nothing."""
        async with self.open(tmp_path) as persist:
            await subject.write(persist, subject.sample, {"n": 1}, EARLY)
            await subject.write(persist, subject.sample, {"n": 2}, LATE)
            assert await subject.read(persist, subject.sample, when=LATE - 1) is None
            assert await subject.read(persist, subject.sample, when=LATE) == {"n": 2}

    @for_each(is_timed)
    async def test_a_write_with_an_earlier_when_overwrites(self, tmp_path: Path, subject: Subject) -> None:
        """A backtest can start over: the last write replaces both the value and its `when`."""
        async with self.open(tmp_path) as persist:
            await subject.write(persist, subject.sample, {"n": 1}, LATE)
            await subject.write(persist, subject.sample, {"n": 0}, EARLY)
            assert await subject.read(persist, subject.sample, when=EARLY - 1) is None
            assert await subject.read(persist, subject.sample, when=EARLY) == {"n": 0}
            assert await subject.read(persist, subject.sample, when=LATE) == {"n": 0}

    @for_each(is_timed)
    async def test_the_same_payload_can_get_another_when(self, tmp_path: Path, subject: Subject) -> None:
        """A write that changes nothing but the `when` is stored as well."""
        async with self.open(tmp_path) as persist:
            for when in (EARLY, LATE, EARLY, LATE):
                await subject.write(persist, subject.sample, {"n": 1}, when)
                assert await subject.read(persist, subject.sample, when=when - 1) is None
                assert await subject.read(persist, subject.sample, when=when) == {"n": 1}

    @for_each(is_timed)
    async def test_every_form_of_a_when_is_the_same_instant(self, tmp_path: Path, subject: Subject) -> None:
        """Ms since the epoch and aware datetimes of any time zone are equal, at 0 and before 1970 as well."""
        eastern = timezone(timedelta(hours=-5))
        async with self.open(tmp_path) as persist:
            for millis in (LATE, 0, -(10**12)):
                utc = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=millis)
                for when in (millis, utc, utc.astimezone(eastern)):
                    await subject.write(persist, subject.sample, {"n": millis}, when)
                    for visible in (millis, utc, utc.astimezone(eastern)):
                        assert await subject.read(persist, subject.sample, when=visible) == {"n": millis}
                    for hidden in (millis - 1, utc.astimezone(eastern) - timedelta(microseconds=1)):
                        assert await subject.read(persist, subject.sample, when=hidden) is None

    @for_each(may_omit_when)
    async def test_a_reader_without_a_when_sees_every_value(self, tmp_path: Path, subject: Subject) -> None:
        """Without it no value is hidden, whatever its `when`."""
        async with self.open(tmp_path) as persist:
            for when in (LATE, EARLY, LATEST, -EARLY):
                await subject.write(persist, subject.sample, {"n": when}, when)
                assert await subject.read(persist, subject.sample) == {"n": when}
                assert await subject.read(persist, subject.sample, when=None) == {"n": when}

    @for_each(is_listed_at_when)
    async def test_lists_leave_out_what_is_later(self, tmp_path: Path, subject: Subject) -> None:
        """At a `when` the list has the keys that were written by then, oldest first; without one it has all."""
        whens = (LATE, EARLY, LATE + 1, 0)
        many = [subject.numbered(number) for number in range(len(whens))]
        keys = [parts[-1] for parts in many]
        async with self.open(tmp_path) as persist:
            for parts, when in zip(many, whens, strict=True):
                await subject.write(persist, parts, None if when == EARLY else {"n": when}, when)
            for horizon in (-1, 0, EARLY, LATE - 1, LATE, LATE + 1):
                expected = [key for key, when in zip(keys, whens, strict=True) if when <= horizon]
                assert await subject.keys(persist, many[0], when=horizon) == expected
                if tells_presence(subject):
                    written = [parts[-1] for parts in many if await subject.was_written(persist, parts, when=horizon)]
                    assert written == expected
            assert await subject.keys(persist, many[0]) == keys

    @for_each(is_timed)
    async def test_a_when_that_is_no_instant_is_refused(self, tmp_path: Path, subject: Subject) -> None:
        """It is an InvalidWhenError of writes and reads; the stored value and its `when` stay."""
        async with self.open(tmp_path) as persist:
            with pytest.raises(InvalidWhenError):
                await subject.write(persist, subject.sample, {"n": 2}, None)
            assert await subject.read(persist, subject.sample) is None
            await subject.write(persist, subject.sample, {"n": 1}, LATE)
            for bad in (None, *_BAD_WHENS):
                with pytest.raises(InvalidWhenError):
                    await subject.write(persist, subject.sample, {"n": 2}, bad)
            for bad in _BAD_WHENS if may_omit_when(subject) else (None, *_BAD_WHENS):
                with pytest.raises(InvalidWhenError):
                    await subject.read(persist, subject.sample, when=bad)
                if is_listed_at_when(subject):
                    with pytest.raises(InvalidWhenError):
                        await subject.keys(persist, subject.sample, when=bad)
                if tells_presence(subject):
                    with pytest.raises(InvalidWhenError):
                        await subject.was_written(persist, subject.sample, when=bad)
            assert await subject.read(persist, subject.sample, when=LATE - 1) is None
            assert await subject.read(persist, subject.sample, when=LATE) == {"n": 1}

    @requires(MEASURE)
    async def test_the_answers_of_a_measure_are_never_hidden(self, tmp_path: Path) -> None:
        """They are read whatever `when` they were written with; the `when` is still checked."""
        async with self.open(tmp_path) as persist:
            measure = await persist.measure("news")
            for when in (LATEST, EARLY, datetime(9999, 1, 1, tzinfo=UTC)):
                await measure.write_measure_data({"when": str(when)}, "k", when)
                assert await measure.read_measure_data("k") == {"when": str(when)}
                assert [key async for key in measure.list_measure_data()] == ["k"]
            bad: Any
            for bad in (None, *_BAD_WHENS):
                with pytest.raises(InvalidWhenError):
                    await measure.write_measure_data({"n": 2}, "k", bad)
            assert await measure.read_measure_data("k") == {"when": "9999-01-01 00:00:00+00:00"}
