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
from backtest_persist.backends.json import folder, locks
from backtest_persist.domains.interval import PersistIntervalInstance
from backtest_persist.domains.state import PersistStateInstance
from backtest_persist.domains.storage import PersistStorageInstance
from tests.support.dumps import files_of
from tests.support.json_backend import CANDLE, LATE, candles_from_start, open_dump, temporary_files
from tests.support.json_units import STEPS, commit, commit_all, prepare, snapshot, unit_of, write_all
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


@pytest.fixture(scope="module")
async def killed(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Dumps whose writer was killed at each system call of a commit, and one whose writer was not."""
    template, root = tmp_path_factory.mktemp("template"), tmp_path_factory.mktemp("killed")
    await prepare(template)
    await kill(template, root, "commit")
    return sorted(root.iterdir(), key=lambda directory: int(directory.name))


async def kill(template: Path, root: Path, what: str, *, step: int = 1) -> None:
    """Let processes end at each system call, or each `step` calls, of what they do with a copy of a dump."""
    process = await start_python("-m", "tests.support.json_units", str(template), str(root), what, str(step))
    async with asyncio.timeout(120):
        assert await process.wait() == 0


async def test_a_commit_that_is_killed_at_any_system_call_stores_all_or_nothing(
    tmp_path: Path, killed: list[Path]
) -> None:
    """The next process sees seven domains as they were, or all as the unit has them; then it writes as usual."""
    found: list[Any] = []
    for before in killed:
        directory = shutil.copytree(before, tmp_path / before.name)
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
    assert first_new > 20
    assert len(found) - first_new > 20


async def test_a_process_that_is_killed_while_it_completes_a_unit_leaves_that_to_the_next(
    tmp_path: Path, killed: list[Path]
) -> None:
    """A reader that ends at any system call after the writer was killed amid its files does no harm."""
    recorded = [directory for directory in killed if _is_recorded(journal_of(directory))]
    new = await snapshot(shutil.copytree(killed[-1], tmp_path / "new"))
    (tmp_path / "read").mkdir()
    await kill(recorded[len(recorded) // 2], tmp_path / "read", "read", step=4)
    directories = list((tmp_path / "read").iterdir())
    assert len(directories) > 10
    for directory in directories:
        assert await snapshot(directory) == new


def _is_recorded(journal: Path) -> bool:
    return journal.exists() and journal.read_bytes().count(b"\n") == 1 and not journal.read_bytes().endswith(b"\n")


async def test_a_process_that_runs_already_completes_the_unit_of_one_that_was_killed(
    tmp_path: Path, killed: list[Path]
) -> None:
    """A reader sees the whole unit at its next read, and a write after the kill is not undone by what was left."""
    recorded = [directory for directory in killed if _is_recorded(journal_of(directory))]
    for number, does_write in enumerate((False, True)):
        directory = tmp_path / str(number)
        await prepare(directory)
        persist = open_dump(directory)
        state, log = await persist.state("s", "b"), await persist.log()
        assert await state.read_state_data() == {"n": 1}
        shutil.rmtree(directory)
        shutil.copytree(recorded[3], directory)  # as if another process had been killed meanwhile
        if does_write:
            await state.write_state_data({"n": 3}, LATE)
        assert await state.read_state_data() == {"n": 3 if does_write else 2}
        assert await log.read_log_data() == [{"id": "a"}]
        assert (await snapshot(directory))["state"] == {"n": 3 if does_write else 2}


async def test_a_journal_that_is_not_whole_is_discarded(tmp_path: Path, killed: list[Path]) -> None:
    """A torn journal, one that names files outside of the dump, and one that was only announced store nothing."""
    await prepare(tmp_path)
    old, before = await snapshot(tmp_path), files_of(tmp_path)
    whole = next(text for directory in killed if (text := _text(directory)) is not None)
    line, body = whole.split(b"\n")
    header: dict[str, Any] = json.loads(line)
    directories = json.dumps(header["directories"]).encode()
    damaged = [whole[:length] for length in range(0, len(whole), 97)]
    damaged += [
        line,
        b"\0" * len(whole),
        b"{}\n[]",
        b"[]\n",
        b'{"format":1,"directories":%s,"digest":""}\n' % directories,
    ]
    damaged += [whole.replace(b"state/s/b", b"state/s/c"), line + b"\n" + body.replace(b"1", b"2")]
    for content in damaged:
        write_journal(tmp_path, content)
        assert await snapshot(tmp_path) == old
        assert files_of(tmp_path) == before
    for path in ("../outside.json", "/tmp/outside.json", "state/../../outside.json"):
        body = json.dumps([[path, "{}", None]]).encode()
        header["digest"] = _digest(body)
        write_journal(tmp_path, json.dumps(header).encode() + b"\n" + body)
        assert await snapshot(tmp_path) == old
        assert files_of(tmp_path) == before
        assert not (tmp_path.parent / "outside.json").exists()


def _text(directory: Path) -> bytes | None:
    return journal_of(directory).read_bytes() if _is_recorded(journal_of(directory)) else None


def _digest(body: bytes) -> str:
    return blake2b(body, digest_size=16).hexdigest()


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


async def test_a_commit_that_the_system_refuses_says_whether_it_is_stored(tmp_path: Path, killed: list[Path]) -> None:
    """Up to the record of the unit nothing is stored, and nothing left; after it the next use of the dump stores it."""
    template = tmp_path / "template"
    await prepare(template)
    old, new = await snapshot(template), await snapshot(shutil.copytree(killed[-1], tmp_path / "new"))
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
