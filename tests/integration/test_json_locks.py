"""Locks of JSON directories: between processes, over forks, and how long a writer waits."""

import asyncio
import fcntl
import os
import signal
import subprocess
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

from backtest_persist import (
    StoreUnavailableError,
    WriteOutcomeUnknownError,
)
from backtest_persist.backends.json import folder, locks
from tests.support.json_backend import (
    CANDLE,
    candles_from_start,
    open_dump,
)
from tests.support.processes import run_program, start_program
from tests.support.stopwatch import Stopwatch


async def test_three_processes_write_to_one_directory(tmp_path: Path) -> None:
    """Entries, values and times of several processes are all stored, and none is mixed up with another."""
    code = """
import asyncio, sys
from backtest_persist import Registry
async def main(who):
    persist = Registry(); persist.use_json(sys.argv[1])
    log, state, risk = await persist.log(), await persist.state("s", "b"), await persist.risk("r_1", "e_1")
    for n in range(100):
        await log.write_log_data([{"id": f"{who}-{n}"}])
        await state.write_state_data({"who": who, "n": n}, n - 99)
        await risk.write_position_data([who, n], n - 99)
asyncio.run(main(sys.argv[2]))
"""
    writers = [await start_program(code, tmp_path, who) for who in "ABC"]
    persist = open_dump(tmp_path)
    state = await persist.state("s", "b")
    while any(writer.returncode is None for writer in writers):
        value = await state.read_state_data()
        if value is not None:
            assert await state.read_state_data(when=-100) is None
        await asyncio.sleep(0)
    assert [writer.returncode for writer in writers] == [0, 0, 0]
    entries = [entry["id"] for entry in await (await persist.log()).read_log_data()]
    for who in "ABC":
        assert [entry for entry in entries if entry.startswith(who)] == [f"{who}-{n}" for n in range(100)]
    assert (await state.read_state_data(when=0) or {})["n"] == 99
    assert await state.read_state_data(when=-1) is None
    assert (await (await persist.risk("r_1", "e_1")).read_position_data(0))[1] == 99


async def test_a_directory_that_stays_locked_is_a_typed_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Writing where another process keeps the lock fails after a bounded wait; reading goes on."""
    monkeypatch.setattr(locks, "_TIMEOUT_SECONDS", 0.1)
    state = await open_dump(tmp_path).state("s", "b")
    await state.write_state_data({"n": 1}, 0)
    code = "import fcntl,os,sys; fcntl.flock(os.open(sys.argv[1],0),2); print('locked',flush=True); sys.stdin.read()"
    owner = await start_program(code, tmp_path / "state/s/b", stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert owner.stdout is not None
    assert await owner.stdout.readline() == b"locked\n"
    with pytest.raises(StoreUnavailableError, match="locked") as error:
        await state.write_state_data({"n": 2}, 0)
    assert error.value.context == {"signal_id": "s", "bucket_name": "b"}
    assert error.value.retryable
    assert await state.read_state_data() == {"n": 1}
    await owner.communicate(b"")  # ends its input
    await state.write_state_data({"n": 3}, 0)
    assert await state.read_state_data() == {"n": 3}


async def test_calls_that_wait_for_one_lock_wait_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Queued calls fail after one timeout, not one each; reads, and writes to a free directory, succeed."""
    monkeypatch.setattr(locks, "_TIMEOUT_SECONDS", 1.0)
    persist = open_dump(tmp_path)
    locked_bucket, free_bucket = await persist.measure("locked"), await persist.measure("free")
    await locked_bucket.write_measure_data({"n": 0}, "k", 0)
    descriptor = os.open(tmp_path / "data/measure/locked", os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        (tmp_path / "data/measure/locked/.tmp-1-1").touch()
        with Stopwatch() as watch:
            reader = await open_dump(tmp_path).measure("locked")
            assert await reader.read_measure_data("k") == {"n": 0}
            writes = [locked_bucket.write_measure_data({"n": n}, f"k{n}", 0) for n in range(4)]
            ends = await asyncio.gather(
                *writes, free_bucket.write_measure_data({"n": 1}, "k", 0), return_exceptions=True
            )
        assert [type(end) for end in ends] == [StoreUnavailableError] * 4 + [type(None)]
        assert watch.seconds < 2
    finally:
        os.close(descriptor)


async def test_time_in_the_queue_of_the_process_does_not_count_as_waiting_for_a_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A call waits for a lock that another process has for a moment, however long the calls before it took."""
    monkeypatch.setattr(locks, "_TIMEOUT_SECONDS", 0.5)
    persist = open_dump(tmp_path)
    first, second = await persist.measure("first"), await persist.measure("second")
    await second.write_measure_data({"n": 0}, "k", 0)
    descriptor = os.open(tmp_path / "data/measure/second", os.O_RDONLY)
    real = os.fsync

    def slow(given: int) -> None:
        time.sleep(0.3)
        real(given)

    monkeypatch.setattr(os, "fsync", slow)
    writing = asyncio.gather(first.write_measure_data({"n": 1}, "k", 0), second.write_measure_data({"n": 1}, "k", 0))
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    while not (tmp_path / "data/measure/first/k.json").exists():
        await asyncio.sleep(0.001)
    asyncio.get_running_loop().call_later(0.2, os.close, descriptor)
    await writing
    assert await second.read_measure_data("k") == {"n": 1}


async def test_others_write_while_a_call_writes_many_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither another process nor another adapter of this one waits for the end of a bulk."""
    real = os.fsync

    def slow(descriptor: int) -> None:
        time.sleep(0.002)
        real(descriptor)

    monkeypatch.setattr(os, "fsync", slow)
    persist, other = open_dump(tmp_path), open_dump(tmp_path)  # the other one waits for the lock like another process
    own, foreign = await persist.candle("A", "1m", "x"), await other.candle("A", "1m", "x")
    signal = await persist.signal("A", "t", "x")
    bulk = asyncio.create_task(own.write_candles_data(candles_from_start(1000)))  # 2 s at least
    while not any(tmp_path.rglob("*.json")):  # noqa: ASYNC240
        await asyncio.sleep(0.001)
    await foreign.write_candles_data([{**CANDLE, "timestamp": 0}])
    assert not bulk.done()
    await signal.write_signal_data({"n": 1})
    assert not bulk.done()
    await bulk
    assert len(await own.read_candles_data(1000, 1_600_000_020_000) or []) == 1000
    assert await own.read_candles_data(1, 0) is not None


async def test_a_bulk_that_loses_the_lock_between_two_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its outcome is unknown: another process takes the lock and keeps it, and a read tells what was stored."""
    log = await open_dump(tmp_path).log()
    await log.write_log_data([{"id": "first"}])
    descriptor, real = os.open(tmp_path / "data/log/log", os.O_RDONLY), os.fsync
    begun = threading.Event()

    def fsync(given: int) -> None:
        begun.set()
        real(given)

    async def take() -> None:
        while True:
            with suppress(BlockingIOError):
                if begun.is_set():
                    return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            await asyncio.sleep(0)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(locks, "_TIMEOUT_SECONDS", 0.1)
    monkeypatch.setattr(folder, "_BATCH_SIZE", 2)
    taking = asyncio.create_task(take())
    with pytest.raises(WriteOutcomeUnknownError, match=r"locked.*read to see"):
        await log.write_log_data([{"id": str(n)} for n in range(5)])
    await taking
    os.close(descriptor)
    assert [entry["id"] for entry in await log.read_log_data()] == ["first", "0", "1"]


async def test_a_forked_child_writes(tmp_path: Path) -> None:
    """A child that is forked after the first write starts a writing thread, as that of its parent is not there."""
    code = """
import asyncio, os, sys
from backtest_persist import Registry
persist = Registry(); persist.use_json(sys.argv[1])
async def write(name):
    await (await persist.log()).write_log_data([{"id": name}])
asyncio.run(write("parent"))
child = os.fork()
asyncio.run(write("child" if child == 0 else "again"))
if child:
    os.waitpid(child, 0)
"""
    await run_program(code, tmp_path)
    entries = await (await open_dump(tmp_path).log()).read_log_data()
    assert {entry["id"] for entry in entries} == {"parent", "child", "again"}


async def test_a_child_forked_during_a_write_keeps_nothing_locked(tmp_path: Path) -> None:
    """The lock that the parent had at the fork is released by the parent, however long the child lives."""
    code = """
import asyncio, os, signal, sys
from backtest_persist import Registry
from backtest_persist.backends.json import locks
children, fsync = [], os.fsync
def forking(descriptor):
    if not children:
        children.append(os.fork())
        if children == [0]:
            signal.pause()
    fsync(descriptor)
async def main():
    persist = Registry(); persist.use_json(sys.argv[1])
    state = await persist.state("s", "b")
    await state.write_state_data({"n": 0}, 0)
    os.fsync, locks._TIMEOUT_SECONDS = forking, 0.5
    try:
        await state.write_state_data({"n": 1}, 0)
        await state.write_state_data({"n": 2}, 0)
    finally:
        os.kill(children[0], signal.SIGKILL)
asyncio.run(main())
"""
    await run_program(code, tmp_path)
    assert await (await open_dump(tmp_path).state("s", "b")).read_state_data() == {"n": 2}


async def test_a_forked_child_keeps_no_lock_of_a_killed_parent(tmp_path: Path) -> None:
    """The directory is free while the child lives on."""
    code = """
import asyncio, os, sys, threading, time
from backtest_persist import Registry
persist = Registry(); persist.use_json(sys.argv[1])
inside = threading.Event()
def slow(descriptor):
    inside.set(); time.sleep(60)
async def main():
    state = await persist.state("s", "b")
    os.fsync = slow
    writing = asyncio.create_task(state.write_state_data({"n": 1}, 0))
    while not inside.is_set():
        await asyncio.sleep(0.01)
    child = os.fork()
    if not child:
        os.close(1); time.sleep(60); os._exit(0)
    print(child, flush=True)
    os.kill(os.getpid(), 9)
asyncio.run(main())
"""
    state = await open_dump(tmp_path).state("s", "b")
    await state.write_state_data({"n": 0}, 0)
    process = await start_program(code, tmp_path, stdout=subprocess.PIPE)
    assert process.stdout is not None
    child = int(await process.stdout.readline())
    try:
        assert await process.wait() == -signal.SIGKILL
        await state.write_state_data({"n": 2}, 0)
        assert await state.read_state_data() == {"n": 2}
    finally:
        os.kill(child, signal.SIGKILL)
