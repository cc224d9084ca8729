"""LookAhead: a reader at some time of a simulation sees nothing that was written at a later one."""

from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from backtest_persist.errors import InvalidWhenError
from backtest_persist.testing.domains import EARLY, LATE, TIMED, Domain, pick
from backtest_persist.testing.suite import Suite

__all__ = ("LookAhead",)

_OPTIONAL = pick("interval", "memory", "recent", "session", "state")
_LISTED = pick("interval", "memory")

_BAD: tuple[Any, ...] = (True, False, float("nan"), 1.5, "2024-01-01", "1700000000000", datetime(2024, 1, 1), {}, [0])


class LookAhead(Suite):
    """A reader sees nothing that was written at a later `when` than its own."""

    @pytest.mark.parametrize("domain", TIMED, ids=str)
    async def test_a_value_is_hidden_from_readers_before_its_when(self, tmp_path: Path, domain: Domain) -> None:
        """From the ms of its `when` on it is seen, for this instance and any other; before, nothing is."""
        async with self.open(tmp_path) as persist, self.open(tmp_path) as other:
            await domain.write(persist, domain.sample, {"n": 1}, LATE)
            for registry in (persist, other):
                for when in (0, EARLY, LATE - 1):
                    assert await domain.read(registry, domain.sample, when=when) is None
                for when in (LATE, LATE + 1, 2**62):
                    assert await domain.read(registry, domain.sample, when=when) == {"n": 1}

    @pytest.mark.parametrize("domain", TIMED, ids=str)
    async def test_a_hidden_value_does_not_uncover_an_older_one(self, tmp_path: Path, domain: Domain) -> None:
        """Only the latest is kept: a reader between the two writes sees nothing."""
        async with self.open(tmp_path) as persist:
            await domain.write(persist, domain.sample, {"n": 1}, EARLY)
            await domain.write(persist, domain.sample, {"n": 2}, LATE)
            assert await domain.read(persist, domain.sample, when=LATE - 1) is None
            assert await domain.read(persist, domain.sample, when=LATE) == {"n": 2}

    @pytest.mark.parametrize("domain", TIMED, ids=str)
    async def test_a_write_with_an_earlier_when_overwrites(self, tmp_path: Path, domain: Domain) -> None:
        """A backtest can start over: the write that comes last stands, and with it its `when`."""
        async with self.open(tmp_path) as persist:
            await domain.write(persist, domain.sample, {"n": 1}, LATE)
            await domain.write(persist, domain.sample, {"n": 0}, EARLY)
            assert await domain.read(persist, domain.sample, when=EARLY - 1) is None
            assert await domain.read(persist, domain.sample, when=EARLY) == {"n": 0}
            assert await domain.read(persist, domain.sample, when=LATE) == {"n": 0}

    @pytest.mark.parametrize("domain", TIMED, ids=str)
    async def test_the_same_payload_can_get_another_when(self, tmp_path: Path, domain: Domain) -> None:
        """Whether a value is new is not told by its payload."""
        async with self.open(tmp_path) as persist:
            for when in (EARLY, LATE, EARLY, LATE):
                await domain.write(persist, domain.sample, {"n": 1}, when)
                assert await domain.read(persist, domain.sample, when=when - 1) is None
                assert await domain.read(persist, domain.sample, when=when) == {"n": 1}

    @pytest.mark.parametrize("domain", TIMED, ids=str)
    async def test_a_when_is_an_instant_in_whatever_way_it_is_given(self, tmp_path: Path, domain: Domain) -> None:
        """Ms since the epoch and aware datetimes of any zone are the same; so are 0 and times before 1970."""
        eastern = timezone(timedelta(hours=-5))
        async with self.open(tmp_path) as persist:
            for millis in (LATE, 0, -(10**12)):
                utc = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=millis)
                for when in (millis, utc, utc.astimezone(eastern)):
                    await domain.write(persist, domain.sample, {"n": millis}, when)
                    for seeing in (millis, utc, utc.astimezone(eastern)):
                        assert await domain.read(persist, domain.sample, when=seeing) == {"n": millis}
                    for blind in (millis - 1, utc.astimezone(eastern) - timedelta(microseconds=1)):
                        assert await domain.read(persist, domain.sample, when=blind) is None

    @pytest.mark.parametrize("domain", _OPTIONAL, ids=str)
    async def test_a_reader_without_a_when_sees_every_value(self, tmp_path: Path, domain: Domain) -> None:
        """Neither the present nor any other time hides a value then."""
        async with self.open(tmp_path) as persist:
            for when in (LATE, EARLY, 2**62, -EARLY):
                await domain.write(persist, domain.sample, {"n": when}, when)
                assert await domain.read(persist, domain.sample) == {"n": when}
                assert await domain.read(persist, domain.sample, when=None) == {"n": when}

    @pytest.mark.parametrize("domain", _LISTED, ids=str)
    async def test_lists_leave_out_what_is_later(self, tmp_path: Path, domain: Domain) -> None:
        """A list at some time has the keys of that time, oldest write first; without a `when` it has all."""
        whens = (LATE, EARLY, LATE + 1, 0)
        many = [domain.numbered(number) for number in range(len(whens))]
        keys = [parts[-1] for parts in many]
        async with self.open(tmp_path) as persist:
            for parts, when in zip(many, whens, strict=True):
                await domain.write(persist, parts, None if when == EARLY else {"n": when}, when)
            for horizon in (-1, 0, EARLY, LATE - 1, LATE, LATE + 1):
                expected = [key for key, when in zip(keys, whens, strict=True) if when <= horizon]
                assert await domain.keys(persist, many[0], when=horizon) == expected
                if domain.name == "memory":
                    memory = await persist.memory(*many[0][:-1])
                    known = [key for key in keys if await memory.has_memory_data(key, when=horizon)]
                    assert known == expected
            assert await domain.keys(persist, many[0]) == keys

    @pytest.mark.parametrize("domain", TIMED, ids=str)
    async def test_what_is_no_time_is_refused(self, tmp_path: Path, domain: Domain) -> None:
        """A bad `when` of a write or a read is an InvalidWhenError; what stands still does, with its own `when`."""
        async with self.open(tmp_path) as persist:
            with pytest.raises(InvalidWhenError):
                await domain.write(persist, domain.sample, {"n": 2}, None)
            assert await domain.read(persist, domain.sample) is None
            await domain.write(persist, domain.sample, {"n": 1}, LATE)
            for bad in (None, *_BAD):
                with pytest.raises(InvalidWhenError):
                    await domain.write(persist, domain.sample, {"n": 2}, bad)
            for bad in _BAD if domain in _OPTIONAL else (None, *_BAD):
                with pytest.raises(InvalidWhenError):
                    await domain.read(persist, domain.sample, when=bad)
                if domain in _LISTED:
                    with pytest.raises(InvalidWhenError):
                        await domain.keys(persist, domain.sample, when=bad)
                if domain.name == "memory":
                    memory = await persist.memory(*domain.sample[:-1])
                    with pytest.raises(InvalidWhenError):
                        await memory.has_memory_data(domain.sample[-1], when=bad)
            assert await domain.read(persist, domain.sample, when=LATE - 1) is None
            assert await domain.read(persist, domain.sample, when=LATE) == {"n": 1}

    async def test_the_answers_of_a_measure_are_exempt(self, tmp_path: Path) -> None:
        """They are read whatever `when` they were written with; the `when` is checked all the same."""
        async with self.open(tmp_path) as persist:
            measure = await persist.measure("news")
            for when in (2**62, EARLY, datetime(2999, 1, 1, tzinfo=UTC)):
                await measure.write_measure_data({"when": str(when)}, "k", when)
                assert await measure.read_measure_data("k") == {"when": str(when)}
                assert [key async for key in measure.list_measure_data()] == ["k"]
            bad: Any
            for bad in (None, *_BAD):
                with pytest.raises(InvalidWhenError):
                    await measure.write_measure_data({"n": 2}, "k", bad)
            assert await measure.read_measure_data("k") == {"when": "2999-01-01 00:00:00+00:00"}
