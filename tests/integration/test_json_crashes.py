"""Crashes of a writer of JSON files: whole values whatever the step, and no leftovers."""

import errno
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.dumps import write_dump
from tests.support.json_backend import EARLY, LATE, open_dump, temporary_files

STEPS = ("open", "write", "fsync", "rename", "link", "unlink", "mkdir", "utime")


class Killed(BaseException):
    """The end of the process."""


@pytest.mark.parametrize("second", [{"n": 2, "long": "x" * 100}, {"n": 1}, None], ids=["other", "same", "none"])
async def test_a_write_that_dies_at_any_step_leaves_the_old_value_or_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, second: dict[str, Any] | None
) -> None:
    """A process that ends at any system call leaves a value and its `when` that are both old or both new."""
    first = {"n": 1}
    outcomes: list[str] = []
    for cut in range(1, 100):
        directory = tmp_path / str(cut)
        await (await open_dump(directory).state("sig", "b")).write_state_data(first, LATE)
        with monkeypatch.context() as patch:
            calls = cut_at(patch, cut)
            finished = True
            try:
                await (await open_dump(directory).state("sig", "b")).write_state_data(second, EARLY)
            except Killed:
                finished = False
        state = await open_dump(directory).state("sig", "b")
        found = await state.read_state_data(), await state.read_state_data(when=EARLY)
        if finished:
            assert found == (second, second)
            assert len(calls) < cut
            break
        assert found in ((first, None), (second, second))
        outcomes.append("old" if found == (first, None) else "new")
        assert temporary_files(directory) == []  # the first read has removed them
        await state.write_state_data({"n": 3}, LATE)
        assert await state.read_state_data(when=LATE) == {"n": 3}
        assert await state.read_state_data(when=LATE - 1) is None
    else:
        pytest.fail("the write never finished")
    assert outcomes == sorted(outcomes, reverse=True)  # once new, never old again
    assert "old" in outcomes


def cut_at(patch: pytest.MonkeyPatch, cut: int) -> list[str]:
    """Let the process end at the `cut`-th system call; returns the names of the calls that were made."""
    calls: list[str] = []

    def cutting(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            calls.append(name)
            if len(calls) >= cut:  # a dead process makes no further calls
                raise Killed
            return real(*args, **options)

        return call

    for name in STEPS:
        patch.setattr(os, name, cutting(name, getattr(os, name)))
    return calls


async def test_every_directory_that_a_write_makes_survives_a_crash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The root, the directories of values and those of the hidden tree are each flushed in their parent."""
    flushed: set[tuple[int, int]] = set()
    real = os.fsync

    def identity(status: os.stat_result) -> tuple[int, int]:
        return status.st_dev, status.st_ino

    def fsync(descriptor: int) -> None:
        real(descriptor)
        flushed.add(identity(os.fstat(descriptor)))

    monkeypatch.setattr(os, "fsync", fsync)
    root = tmp_path / "dump"
    await (await open_dump(root).partial("A", "my_trend", "x")).write_partial_data({"n": 1}, "s", LATE)
    made = [root, *(path for path in root.rglob("*") if path.is_dir())]
    assert len(made) == 12
    assert [path for path in made if identity(path.parent.stat()) not in flushed] == []


async def test_temporary_files_of_a_crash_are_removed_when_their_directory_is_used(tmp_path: Path) -> None:
    """Those of this package are removed at once, those of others when they are old; everything else stays."""
    directory = tmp_path / "data/storage/live"
    write_dump(
        directory, {".tmp-123-0": "{", ".tmp-0a1b2c-x.json": "{", ".tmp-old-x.json": "{", "a.json": '{"id":"a"}'}
    )
    old = time.time() - 600
    os.utime(directory / ".tmp-old-x.json", (old, old))
    storage = await open_dump(tmp_path).storage(False)
    assert await storage.read_storage_data() == [{"id": "a"}]
    assert sorted(path.name for path in directory.iterdir()) == [".tmp-0a1b2c-x.json", "a.json"]


async def test_a_reader_that_may_not_remove_temporary_files_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A dump on a read-only medium is read in spite of the temporary files of a crash."""
    state = await open_dump(tmp_path).state("s", "b")
    await state.write_state_data({"n": 1}, 0)
    (tmp_path / "state/s/b/.tmp-1-1").touch()

    def refused(path: Path, *, missing_ok: bool = False) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    monkeypatch.setattr(Path, "unlink", refused)
    assert await (await open_dump(tmp_path).state("s", "b")).read_state_data() == {"n": 1}


async def test_a_temporary_file_among_labels_is_removed_when_it_is_old(tmp_path: Path) -> None:
    """Labels are written without a lock, so a young temporary file may belong to a running writer."""
    await (await open_dump(tmp_path).signal("A", "B_C", "x")).write_signal_data({"n": 1})
    labels = tmp_path / ".backtest-persist/labels/data/signal"
    young, old = labels / ".tmp-1-1", labels / ".tmp-1-2"
    young.touch()
    old.touch()
    os.utime(old, (1, 1))
    await (await open_dump(tmp_path).signal("A", "B_C", "x")).read_signal_data()
    assert young.exists()
    assert not old.exists()


async def test_a_temporary_file_may_disappear_during_the_search_for_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A temporary file that another process renames before its age is looked at does no harm."""
    await (await open_dump(tmp_path).signal("A", "B_C", "x")).write_signal_data({"n": 1})
    labels = tmp_path / ".backtest-persist/labels/data/signal"
    real = Path.stat

    def gone(path: Path, **options: Any) -> os.stat_result:
        if path.name == ".tmp-1-1":
            path.unlink(missing_ok=True)
        return real(path, **options)

    (labels / ".tmp-1-1").touch()
    monkeypatch.setattr(Path, "stat", gone)
    assert await (await open_dump(tmp_path).signal("A", "B_C", "x")).read_signal_data() == {"n": 1}
    assert not (labels / ".tmp-1-1").exists()
