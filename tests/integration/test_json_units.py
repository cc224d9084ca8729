"""Units of work on JSON files: all of their changes are stored or none, whatever ends the process, and in order."""

import asyncio
import errno
import fcntl
import json
import os
import resource
import shutil
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path
from typing import Any

import pytest

from backtest_persist import (
    JsonBackend,
    SettingsError,
    StoreUnavailableError,
    WriteOutcomeUnknownError,
    WriteRejectedError,
)
from backtest_persist.backends.json import folder, journal, locks
from backtest_persist.backends.json.layout import LAYOUTS
from backtest_persist.domains.interval import PersistIntervalInstance
from backtest_persist.domains.state import PersistStateInstance
from backtest_persist.domains.storage import PersistStorageInstance
from backtest_persist.operations.transfer.importing import scan_dump
from tests.support.dumps import files_of
from tests.support.json_backend import CANDLE, LATE, candles_from_start, open_dump, temporary_files
from tests.support.json_units import (
    STEPS,
    commit,
    commit_all,
    prepare,
    read_bars,
    run_bars,
    snapshot,
    unit_of,
    write_all,
)
from tests.support.processes import start_program, start_python


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spare the tests the waiting for the disk, which matters only to a crash of the machine."""

    def fsync(descriptor: int) -> None:
        pass

    monkeypatch.setattr(os, "fsync", fsync)


def journal_of(directory: Path) -> Path:
    """Return the file of the journal of a dump."""
    return directory / ".backtest-persist/journal/unit.json"


def write_journal(directory: Path, content: bytes) -> None:
    """Leave a journal in a dump, as a process that was killed would."""
    journal_of(directory).parent.mkdir(exist_ok=True)
    journal_of(directory).write_bytes(content)


async def leave_recorded(directory: Path, applied: int = 2) -> None:
    """Leave a dump as a process does that is killed when it has replaced so many files of a unit, of `write_all`."""
    await prepare(directory)
    real, left = os.rename, applied

    def rename(source: Any, target: Any) -> None:
        nonlocal left
        if Path(target) != journal_of(directory) and not left:
            raise OSError(errno.EIO, "Input/output error")
        left -= Path(target) != journal_of(directory)
        real(source, target)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "rename", rename)
        with pytest.raises(WriteOutcomeUnknownError):
            await commit_all(directory)
    assert journal_of(directory).exists()


async def both_ends(directory: Path) -> tuple[Any, Any]:
    """Return what is read before and after the commit of that unit."""
    await prepare(directory)
    old = await snapshot(directory)
    await commit_all(directory)
    return old, await snapshot(directory)


async def kill(template: Path, root: Path, what: str, *, step: int = 1) -> None:
    """Let processes end at each system call, or each `step` calls, of what they do with a copy of a dump."""
    process = await start_python("-m", "tests.support.json_units", str(template), str(root), what, str(step))
    async with asyncio.timeout(120):
        assert await process.wait() == 0


async def test_a_commit_that_is_killed_at_any_system_call_stores_all_or_nothing(tmp_path: Path) -> None:
    """The next process sees seven domains as they were, or all as the unit has them; then it writes as usual."""
    template, killed = tmp_path / "template", tmp_path / "killed"
    await prepare(template)
    killed.mkdir()
    await kill(template, killed, "commit", step=2)
    found: list[Any] = []
    for directory in sorted(killed.iterdir(), key=lambda path: int(path.name)):
        found.append(await snapshot(directory))
        assert not journal_of(directory).exists()
        for part in ("data", "state", ".backtest-persist/records"):
            assert temporary_files(directory / part) == []
        await (await open_dump(directory).state("s", "b")).write_state_data({"n": 3}, LATE)
        assert await (await open_dump(directory).state("s", "b")).read_state_data() == {"n": 3}
    old, new = found[0], found[-1]
    assert old["storage"] == [{"id": "old", "n": 1}, {"id": "kept", "n": 1}]
    assert new == {
        "state": {"n": 2},
        "state before": None,
        "signal": {"n": 2},
        "storage": [{"id": "old", "n": 2}, {"id": "kept", "n": 1}, {"id": "new", "n": 2}, {"id": "newer", "n": 2}],
        "log": [{"id": "a"}],
        "measure": None,
        "interval": ["free"],
        "candles": candles_from_start(2),
    }
    first_new = found.index(new)
    assert found == [old] * first_new + [new] * (len(found) - first_new)
    assert first_new > 10
    assert len(found) - first_new > 10


async def test_a_process_that_is_killed_while_it_completes_a_unit_leaves_that_to_the_next(tmp_path: Path) -> None:
    """A reader that ends at any system call after the writer was killed amid its files does no harm."""
    template, killed = tmp_path / "template", tmp_path / "killed"
    await leave_recorded(template)
    _, new = await both_ends(tmp_path / "new")
    killed.mkdir()
    await kill(template, killed, "read", step=4)
    directories = list(killed.iterdir())
    assert len(directories) > 10
    for directory in directories:
        assert await snapshot(directory) == new


async def test_a_run_that_is_killed_amid_a_bar_goes_on_to_the_same_end(tmp_path: Path) -> None:
    """A process that ends at any system call of a bar leaves the bar before it or this one, as a whole."""
    whole, killed_runs = tmp_path / "whole", tmp_path / "killed"
    killed_runs.mkdir()
    states: list[Any] = []
    for count in (2, 3, 5):
        await run_bars(whole, count)
        states.append(await read_bars(whole))
        if count == 2:
            await kill(whole, killed_runs, "run", step=4)
    outcomes: list[int] = []
    for directory in sorted(killed_runs.iterdir(), key=lambda path: int(path.name)):
        outcomes.append(states.index(await read_bars(directory)))
        await run_bars(directory, 5)
        assert await read_bars(directory) == states[2]
    assert outcomes == sorted(outcomes)
    assert set(outcomes) == {0, 1}


async def test_an_import_completes_the_unit_of_a_process_that_was_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It finds the files that the whole unit has; it is refused while another process is at work on one."""
    directory, whole = tmp_path / "dump", tmp_path / "whole"
    await leave_recorded(directory)
    await both_ends(whole)
    found, expected = scan_dump(directory, LAYOUTS), scan_dump(whole, LAYOUTS)
    assert {name: len(files) for name, files in found.found.items()} == {
        name: len(files) for name, files in expected.found.items()
    }
    assert not any(found.skipped.values())
    assert found.ignored == {}
    write_journal(directory, b"{}")
    monkeypatch.setattr(journal, "_WAIT_SECONDS", 0.05)
    descriptor = os.open(journal_of(directory).parent, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        with pytest.raises(SettingsError, match=r"cannot be read: .*locked"):
            scan_dump(directory, LAYOUTS)
    finally:
        os.close(descriptor)


async def test_a_process_that_runs_already_completes_the_unit_of_one_that_was_killed(tmp_path: Path) -> None:
    """A reader sees the whole unit at its next read, and a write after the kill is not undone by what was left."""
    for number, does_write in enumerate((False, True)):
        directory = tmp_path / str(number)
        await prepare(directory)
        persist = open_dump(directory)
        state, log = await persist.state("s", "b"), await persist.log()
        assert await state.read_state_data() == {"n": 1}
        await leave_recorded(directory, applied=0)
        if does_write:
            await state.write_state_data({"n": 3}, LATE)
        assert await state.read_state_data() == {"n": 3 if does_write else 2}
        assert await log.read_log_data() == [{"id": "a"}]
        assert (await snapshot(directory))["state"] == {"n": 3 if does_write else 2}


async def test_what_was_left_is_never_read_in_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it cannot be applied, as on a full or read-only disk, the directories of the unit cannot be read."""
    await leave_recorded(tmp_path)
    persist = open_dump(tmp_path)
    state, schedule = await persist.state("s", "b"), await persist.schedule("A", "trend", "x")

    def refuse(*args: Any, **options: Any) -> Any:
        raise OSError(errno.EROFS, "Read-only file system")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", refuse)
        for call in (state.read_state_data(), state.read_state_data(), state.write_state_data({"n": 3}, LATE)):
            with pytest.raises(
                (StoreUnavailableError, WriteRejectedError), match=r"Read-only .* another process has left"
            ):
                await call
        assert await schedule.read_schedule_data() is None
    assert await state.read_state_data() == {"n": 2}


async def test_a_journal_that_a_power_failure_brings_back_undoes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever it was when it was removed: others have written since, and their writes are on the disk."""
    removed: list[bytes] = []
    unlink = Path.unlink

    def remember(path: Path, missing_ok: bool = False) -> None:
        if path == journal_of(tmp_path):
            removed.append(path.read_bytes())
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", remember)
    await prepare(tmp_path)
    await commit_all(tmp_path)
    await (await open_dump(tmp_path).state("s", "b")).write_state_data({"n": 3}, LATE + 2)
    write_journal(tmp_path, removed[-1])
    assert await (await open_dump(tmp_path).state("s", "b")).read_state_data() == {"n": 3}
    assert not journal_of(tmp_path).exists()


async def test_a_journal_that_is_not_whole_is_discarded(tmp_path: Path) -> None:
    """A torn journal, one that names files outside of the dump, and one that was only announced store nothing."""
    await leave_recorded(tmp_path / "left")
    whole = journal_of(tmp_path / "left").read_bytes()
    dump = tmp_path / "dump"
    await prepare(dump)
    old, before = await snapshot(dump), files_of(dump)
    line, body = whole.split(b"\n")
    header: dict[str, Any] = json.loads(line)
    directories = json.dumps(header["directories"]).encode()
    damaged = [whole[:length] for length in range(0, len(whole), 97)]
    damaged += [line, b"\0" * len(whole), b"{}\n[]", b"[]\n", b'{"format":1,"directories":%s}\n' % directories]
    damaged += [whole.replace(b'"state/s/b/b.json"', b'"state/s/b/c.json"'), line + b"\n" + body.replace(b"1", b"2")]
    for path in ("../outside.json", f"{tmp_path}/outside.json", "state/../../outside.json"):
        entries = json.dumps([[path, "{}", None]]).encode()
        header["digest"] = blake2b(entries, digest_size=16).hexdigest()
        damaged.append(json.dumps(header).encode() + b"\n" + entries)
    for content in damaged:
        assert content != whole
        write_journal(dump, content)
        assert await snapshot(dump) == old
        assert files_of(dump) == before
        assert not (tmp_path / "outside.json").exists()


async def test_a_journal_of_a_newer_release_is_left_to_it(tmp_path: Path) -> None:
    """Reads, writes and commits say so, and change nothing; other dumps are not concerned."""
    await prepare(tmp_path)
    write_journal(tmp_path, b'{"format":2}\nanything')
    state = await open_dump(tmp_path).state("s", "b")
    for call in (state.read_state_data(), state.write_state_data({"n": 3}, LATE), commit_all(tmp_path)):
        with pytest.raises(StoreUnavailableError, match="Another release of this package has left a unit") as caught:
            await call
        assert not caught.value.retryable
    assert journal_of(tmp_path).read_text() == '{"format":2}\nanything'


@contextmanager
def failing(number: int, *, once: bool) -> Generator[list[str]]:
    """Let the system refuse the `number`-th call of a writer, and all later ones unless `once`; yields the calls."""
    calls: list[str] = []

    def refusing(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            calls.append(name)
            if len(calls) == number or (len(calls) > number and not once):
                raise OSError(errno.ENOSPC, "No space left on device")
            return real(*args, **options)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name in STEPS:
            patch.setattr(os, name, refusing(name, getattr(os, name)))
        yield calls


async def test_a_commit_that_the_system_refuses_says_whether_it_is_stored(tmp_path: Path) -> None:
    """Up to the record of the unit nothing is stored, and nothing left; after it the next use of the dump stores it."""
    template = tmp_path / "template"
    await prepare(template)
    old, new = await both_ends(tmp_path / "new")
    unknown = 0
    for number in range(1, 1000, 3):
        directory = shutil.copytree(template, tmp_path / str(number))
        backend = JsonBackend(directory)
        unit = unit_of(backend)
        await write_all(backend, unit)
        error: Exception | None = None
        with failing(number, once=number % 2 == 0) as calls:
            try:
                await commit(backend, unit)
            except (StoreUnavailableError, WriteRejectedError, WriteOutcomeUnknownError) as caught:
                error = caught
        if len(calls) < number:
            assert error is None
            break
        if isinstance(error, WriteOutcomeUnknownError):
            unknown += 1
            assert "The next use of the dump applies it" in str(error)
        elif error is not None:
            assert "No space left on device" in str(error)
            assert "Nothing was stored" in str(error)
        assert await snapshot(directory) == (old if isinstance(error, WriteRejectedError) else new)
        assert not journal_of(directory).exists()
        shutil.rmtree(directory)
    assert unknown > 5


async def test_of_two_units_that_claim_an_entry_one_is_stored(tmp_path: Path) -> None:
    """The other one is a `WriteRejectedError` that names the entry, and stores nothing of its domains."""
    backends = [JsonBackend(tmp_path), JsonBackend(tmp_path)]
    units = [unit_of(backend) for backend in backends]
    for who, unit in enumerate(units):
        assert await PersistIntervalInstance("i", ioc=unit).claim_interval_data({"n": who}, "k", LATE)
        await PersistStateInstance("s", str(who), ioc=unit).write_state_data({"n": who}, LATE)
    errors = await asyncio.gather(*map(commit, backends, units), return_exceptions=True)
    (error,) = (error for error in errors if error is not None)
    assert isinstance(error, WriteRejectedError)
    assert "'k'" in str(error)
    assert "somebody else has claimed this entry" in str(error)
    assert error.context == {"bucket": "i", "entry_key": "k"}
    assert error.collection == "interval-items"
    stored = errors.index(None)
    persist = open_dump(tmp_path)
    assert await (await persist.interval("i")).read_interval_data("k") == {"n": stored}
    assert await (await persist.state("s", str(stored))).read_state_data() == {"n": stored}
    assert await (await persist.state("s", str(1 - stored))).read_state_data() is None
    assert not journal_of(tmp_path).exists()


async def test_entries_of_units_keep_their_order_and_their_places(tmp_path: Path) -> None:
    """Those of a unit are listed in the order of their first writes; one that was stored before keeps its place."""
    backend = JsonBackend(tmp_path)
    for ids in ("cab", "dc", "ba0"):
        unit = unit_of(backend)
        storage = PersistStorageInstance(True, ioc=unit)
        for name in ids:
            await storage.write_storage_data([{"id": name, "of": ids}])
        await storage.write_storage_data([{"id": ids[0], "of": ids}])
        await commit(backend, unit)
    entries = await (await open_dump(tmp_path).storage(True)).read_storage_data()
    assert [(entry["id"], entry["of"]) for entry in entries] == [
        ("c", "dc"),
        ("a", "ba0"),
        ("b", "ba0"),
        ("d", "dc"),
        ("0", "ba0"),
    ]


async def test_candles_of_a_unit_have_the_files_that_any_write_gives_them(tmp_path: Path) -> None:
    """The bytes are the same, and a stored candle stays."""
    first, second = tmp_path / "first", tmp_path / "second"
    backend = JsonBackend(second)
    unit = unit_of(backend)
    other = {**CANDLE, "close": 11.5}
    for directory in (first, second):
        await (await open_dump(directory).candle("BTC/USDT", "1m", "x")).write_candles_data([other])
    await (await open_dump(first).candle("BTC/USDT", "1m", "x")).write_candles_data(candles_from_start(4)[1:])
    await backend["candle"].func("BTC/USDT", "1m", "x", ioc=unit).write_candles_data(candles_from_start(4))  # type: ignore[attr-defined]
    await commit(backend, unit)
    assert files_of(second) == files_of(first)


async def test_a_cancelled_commit_goes_on(tmp_path: Path) -> None:
    """Its caller ends at once, its changes are stored as one, and `close` waits for that."""
    backend = JsonBackend(tmp_path)
    unit = unit_of(backend)
    await write_all_new(backend, unit)
    committer = backend.committer()
    committing = asyncio.create_task(committer.commit(unit.layers[-1].parts()))
    await asyncio.sleep(0)
    committing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await committing
    await committer.close()
    assert await (await open_dump(tmp_path).state("s", "b")).read_state_data() == {"n": 2}
    assert await (await open_dump(tmp_path).log()).read_log_data() == [{"id": "a"}]


async def write_all_new(backend: JsonBackend, unit: Any) -> None:
    """Write to two domains that hold nothing yet."""
    adapters: Any = backend
    await adapters["state"].func("s", "b", ioc=unit).write_state_data({"n": 2}, LATE)
    await adapters["log"].func(ioc=unit).write_log_data([{"id": "a"}])


async def test_a_commit_has_its_place_among_the_writes_of_its_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes after a bulk that was called before it, in all of its directories, and before what was called later."""
    monkeypatch.setattr(folder, "_BATCH_SIZE", 2)
    backend = JsonBackend(tmp_path)
    unit = unit_of(backend)
    buffered = PersistStorageInstance(True, ioc=unit)
    await buffered.write_storage_data([{"id": "8", "by": "unit"}])
    await PersistStateInstance("s", "b", ioc=unit).write_state_data({"by": "unit"}, LATE)
    storage = PersistStorageInstance(True, ioc=backend.services)
    state = PersistStateInstance("s", "b", ioc=backend.services)
    bulk = asyncio.create_task(storage.write_storage_data([{"id": str(n), "by": "bulk"} for n in range(9)]))
    while not any(tmp_path.rglob("0.json")):  # noqa: ASYNC240
        await asyncio.sleep(0)
    committing = asyncio.create_task(commit(backend, unit))
    await asyncio.sleep(0)  # it is called now
    await state.write_state_data({"by": "later"}, LATE)
    assert (await storage.read_storage_data())[8] == {"id": "8", "by": "unit"}
    await asyncio.gather(bulk, committing)
    assert (await storage.read_storage_data())[8] == {"id": "8", "by": "unit"}
    assert await state.read_state_data() == {"by": "later"}


async def test_three_processes_commit_to_one_dump(tmp_path: Path) -> None:
    """Each unit is stored as a whole, between those of others and single writes to the same directories."""
    code = """
import asyncio, sys
from pathlib import Path
from backtest_persist import JsonBackend
from backtest_persist.domains.log import PersistLogInstance
from backtest_persist.domains.state import PersistStateInstance
from tests.support.json_units import commit, unit_of
async def main(who):
    backend = JsonBackend(sys.argv[1])
    for n in range(25):
        unit = unit_of(backend)
        for name in "ab":
            await PersistStateInstance("s", name, ioc=unit).write_state_data({"by": [who, n]}, 0)
        await PersistLogInstance(ioc=unit).write_log_data([{"id": f"{who}-{n}"}, {"id": f"{who}+{n}"}])
        await commit(backend, unit)
        await PersistLogInstance(ioc=backend.services).write_log_data([{"id": f"{who}={n}"}])
asyncio.run(main(sys.argv[2]))
"""
    writers = [await start_program(code, tmp_path, who) for who in "ABC"]
    persist = open_dump(tmp_path)
    log = await persist.log()
    while any(writer.returncode is None for writer in writers):
        seen = [entry["id"] for entry in await log.read_log_data()]
        assert len(seen) == len(set(seen))
        await asyncio.sleep(0.01)
    assert [writer.returncode for writer in writers] == [0, 0, 0]
    a, b = [await (await persist.state("s", name)).read_state_data() for name in "ab"]
    assert a == b
    entries = [entry["id"] for entry in await log.read_log_data()]
    for who in "ABC":
        own = [f"{who}{sign}{n}" for n in range(25) for sign in "-+="]
        assert [entry for entry in entries if entry.startswith(who)] == own
    assert all(entries.index(f"{who}-{n}") + 1 == entries.index(f"{who}+{n}") for who in "ABC" for n in range(25))


async def test_a_commit_that_waits_for_another_process_is_a_typed_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is stored while a directory or the journal stays locked, and the directories are free afterwards."""
    monkeypatch.setattr(locks, "_TIMEOUT_SECONDS", 0.1)
    monkeypatch.setattr(journal, "_WAIT_SECONDS", 0.1)
    monkeypatch.setattr(locks, "_NO_WAIT_SECONDS", 0.0)
    await prepare(tmp_path)
    old = await snapshot(tmp_path)
    journal_of(tmp_path).parent.mkdir()
    for locked in (tmp_path / "data/storage/backtest", journal_of(tmp_path).parent):
        descriptor = os.open(locked, os.O_RDONLY)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        try:
            with pytest.raises(StoreUnavailableError, match=r"locked.* Nothing was stored") as error:
                await commit_all(tmp_path)
            assert error.value.retryable
            assert await snapshot(tmp_path) == old
        finally:
            os.close(descriptor)
        assert not journal_of(tmp_path).exists()
    await commit_all(tmp_path)
    assert (await snapshot(tmp_path))["state"] == {"n": 2}


async def test_reads_go_on_during_a_commit_and_writes_wait_where_it_concerns_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another writer of the dump reads at once, writes at once elsewhere, and writes after the unit in its place."""
    await prepare(tmp_path)
    other = open_dump(tmp_path)
    state, log = await other.state("s", "b"), await other.notification(True)
    assert await state.read_state_data() == {"n": 1}
    amid, go_on, real = threading.Event(), threading.Event(), os.rename

    def rename(source: Any, target: Any) -> None:
        if str(target).endswith("/state/s/b/b.json") and not amid.is_set():
            amid.set()
            assert go_on.wait(10)
        real(source, target)

    monkeypatch.setattr(os, "rename", rename)
    committing = asyncio.create_task(commit_all(tmp_path))
    await asyncio.to_thread(amid.wait, 10)
    assert journal_of(tmp_path).exists()
    assert await state.read_state_data() == {"n": 1}
    await log.write_notification_data([{"id": "free"}])
    writing = asyncio.create_task(state.write_state_data({"n": 3}, LATE))
    await asyncio.wait([writing], timeout=0.05)
    assert not writing.done()
    go_on.set()
    await asyncio.gather(committing, writing)
    assert await state.read_state_data() == {"n": 3}


async def test_a_unit_may_be_larger_than_the_number_of_open_files(tmp_path: Path) -> None:
    """It has no file open for each of its directories."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    backend = JsonBackend(tmp_path)
    unit = unit_of(backend)
    for n in range(150):
        await PersistStateInstance(f"s{n}", "b", ioc=unit).write_state_data({"n": n}, LATE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 40, hard))
    try:
        await commit(backend, unit)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert await PersistStateInstance("s149", "b", ioc=backend.services).read_state_data() == {"n": 149}


async def test_a_unit_of_another_dump_is_refused(tmp_path: Path) -> None:
    """A committer stores what belongs to its own directory."""
    backend = JsonBackend(tmp_path / "a")
    unit = unit_of(backend)
    await write_all_new(backend, unit)
    with pytest.raises(SettingsError, match="adapters of that dump only"):
        await commit(JsonBackend(tmp_path / "b"), unit)
    assert files_of(tmp_path) == {}
