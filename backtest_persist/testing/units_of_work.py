"""Units of work: the writes of a checkpoint or a bar are stored as a whole or not at all; optional for a backend."""

from pathlib import Path

import pytest

from backtest_persist.errors import LeaseHeldError
from backtest_persist.mode import Mode
from backtest_persist.registry import Registry
from backtest_persist.testing.subjects import MINUTE, START, Subject, candle, is_append_only, is_overwritten
from backtest_persist.testing.suite import Suite, one_of_each_kind
from backtest_persist.testing.writer import open_run, repeated, running

__all__ = ("UnitsOfWork",)


class UnitsOfWork(Suite):
    """The writes of a checkpoint or a bar are stored as a whole or not at all.

    This is optional: where the backend stores no units of work (`Registry.takes_units_of_work`), pytest reports these
    tests as skipped.
    """

    async def test_a_checkpoint_is_stored_as_a_whole(self, tmp_path: Path) -> None:
        """Within it its writes are read, by others nothing of them is until its end."""
        async with self.open(tmp_path) as persist, self.open(tmp_path) as other:
            _skip_unless_taken(persist)
            for subject in filter(is_overwritten, self.subjects):
                await subject.write(persist, subject.sample, {"n": 1})
            async with persist.checkpoint():
                for subject in self.subjects:
                    await subject.write(persist, subject.sample, {"n": 2})
                for subject in self.subjects:
                    assert await subject.read(persist, subject.sample) == {"n": 2}
                    before = {"n": 1} if is_overwritten(subject) else None
                    assert await subject.read(other, subject.sample) == before
            for subject in self.subjects:
                assert await subject.read(other, subject.sample) == {"n": 2}
        async with self.open(tmp_path) as persist:
            for subject in self.subjects:
                assert await subject.read(persist, subject.sample) == {"n": 2}

    async def test_an_exception_in_a_checkpoint_leaves_what_was_stored(self, tmp_path: Path) -> None:
        """Nothing that was written in it is read after it, and the next one can be stored."""
        async with self.open(tmp_path) as persist:
            _skip_unless_taken(persist)
            for subject in filter(is_overwritten, self.subjects):
                await subject.write(persist, subject.sample, {"n": 1})

            async def fail() -> None:
                async with persist.checkpoint():
                    for subject in self.subjects:
                        await subject.write(persist, subject.sample, {"n": 2})
                    raise ZeroDivisionError

            with pytest.raises(ZeroDivisionError):
                await fail()
            for subject in self.subjects:
                assert await subject.read(persist, subject.sample) == ({"n": 1} if is_overwritten(subject) else None)
            async with persist.checkpoint():
                for subject in self.subjects:
                    await subject.write(persist, subject.sample, {"n": 3})
            for subject in self.subjects:
                assert await subject.read(persist, subject.sample) == {"n": 3}

    @pytest.mark.parametrize("mode", [Mode.BACKTEST, Mode.LIVE])
    async def test_a_bar_is_stored_with_its_session(self, tmp_path: Path, mode: Mode) -> None:
        """One that an exception ends is as if it had not begun; the next run begins after the last stored one."""
        async with self.open(tmp_path) as persist:
            _skip_unless_taken(persist)
            async with open_run(persist, mode) as run:
                assert (run.bars, run.session) == (0, {})
                for number in (1, 2):
                    async with run.bar(START + number * MINUTE) as bar:
                        bar.session["n"] = number
                        for subject in self.subjects:
                            await subject.write(persist, subject.sample, {"n": 2})

                async def fail() -> None:
                    async with run.bar(START + 3 * MINUTE) as bar:
                        bar.session["n"] = 3
                        for subject in filter(is_overwritten, self.subjects):
                            await subject.write(persist, subject.sample, {"n": 3})
                        raise ZeroDivisionError

                with pytest.raises(ZeroDivisionError):
                    await fail()
                assert (run.bars, run.session) == (2, {"n": 2})
        async with self.open(tmp_path) as persist, open_run(persist, mode) as run:
            assert (run.bars, run.session, run.last_when) == (2, {"n": 2}, START + 2 * MINUTE)
            assert run.seen(START + 2 * MINUTE)
            assert not run.seen(START + 3 * MINUTE)
            for subject in self.subjects:
                assert await subject.read(persist, subject.sample) == {"n": 2}

    async def test_a_run_has_one_writer(self, tmp_path: Path) -> None:
        """Another run of the same is refused as long as the first one lasts, one of another mode is not."""
        async with self.open(tmp_path) as persist, self.open(tmp_path) as other:
            _skip_unless_taken(persist)
            async with open_run(persist, Mode.BACKTEST):
                with pytest.raises(LeaseHeldError):
                    await open_run(other, Mode.BACKTEST).__aenter__()
                async with open_run(other, Mode.LIVE):
                    pass
            async with open_run(other, Mode.BACKTEST):
                pass

    @pytest.mark.parametrize("moment", [1, 8])
    async def test_a_kill_at_any_moment_leaves_whole_bars(self, tmp_path: Path, moment: int) -> None:
        """Every domain is as the last bar has left it that the session knows; the next run goes on at once."""
        subjects = one_of_each_kind(self.subjects)
        async with self.open(tmp_path) as persist:
            _skip_unless_taken(persist)
            async with running(self, tmp_path, "run bars", subjects) as writer:
                await writer.wait_for_acknowledgements(moment)
                await writer.kill()
        async with self.open(tmp_path) as persist, open_run(persist, Mode.LIVE) as run:
            assert run.bars - len(writer.acknowledged) in (0, 1)
            assert run.session == {"n": run.bars}
            for subject in subjects:
                await _check_is_of_bar(persist, subject, run.bars)
            async with run.bar(START + (run.bars + 1) * MINUTE):
                for subject in filter(is_overwritten, subjects):
                    await subject.write(persist, subject.sample, {"n": "after"})


async def _check_is_of_bar(persist: Registry, subject: Subject, number: int) -> None:
    parts = subject.sample
    match subject.kind:
        case "list" if is_append_only(subject):
            entries = await subject.read_result(persist, parts)
            assert entries == [{"id": str(n), **repeated(n)} for n in range(1, number + 1)]
        case "list":
            entries = await subject.read_result(persist, parts)
            assert entries == [{"id": name, **repeated(number)} for name in "abc"]
        case "candles":
            assert await subject.read_window(persist, parts, 2 * number, START) == [
                candle(n) for n in range(2 * number)
            ]
            assert await subject.read_window(persist, parts, 1, START + 2 * number * MINUTE) is None
        case "removable":
            assert await subject.read(persist, parts) == (repeated(number) if number % 2 else None)
        case _:
            assert await subject.read(persist, parts) == repeated(number)


def _skip_unless_taken(persist: Registry) -> None:
    if not persist.takes_units_of_work:
        pytest.skip("this backend stores no units of work, which is optional")
