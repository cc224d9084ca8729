"""The order of writes to JSON files: through one thread, whole bulks, cancelled or not."""

import asyncio
import gc
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from backtest_persist.backends.json import folder, value_file
from backtest_persist.backends.json.sidecar import Records
from tests.support.json_backend import (
    EARLY,
    LATE,
    open_dump,
)
from tests.support.stopwatch import HANG


async def test_a_cancelled_write_is_never_applied_after_a_later_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A write that is cancelled while its thread is busy is applied before the next one, or not at all."""
    persist = open_dump(tmp_path)
    state: Any = await persist.state("sig", "b")
    await state.write_state_data({"n": 0}, 0)
    blocked, released, real = asyncio.Event(), threading.Event(), os.fsync
    loop = asyncio.get_running_loop()

    def fsync(descriptor: int) -> None:
        if not blocked.is_set():
            loop.call_soon_threadsafe(blocked.set)
            released.wait(10)
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    cancelled = asyncio.create_task(state.write_state_data({"n": 1}, 0))
    await blocked.wait()
    cancelled.cancel()
    later = asyncio.create_task(state.write_state_data({"n": 2}, -2))
    await asyncio.wait([later], timeout=0.05)
    released.set()
    await later
    await asyncio.to_thread(state.db.store.dump.writer._executor.shutdown)  # waits for the cancelled write
    assert await state.read_state_data() == {"n": 2}
    with pytest.raises(asyncio.CancelledError):
        await cancelled


async def test_writes_of_one_adapter_keep_their_order_around_a_bulk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A value written during a bulk replaces one of the bulk, and is listed after it."""
    monkeypatch.setattr(folder, "_BATCH_SIZE", 2)
    storage = await open_dump(tmp_path).storage(True)
    await asyncio.gather(
        storage.write_storage_data([{"id": str(n), "n": 1} for n in range(9)]),
        storage.write_storage_data([{"id": "8", "n": 2}, {"id": "9", "n": 2}]),
        storage.write_storage_data([{"id": "9", "n": 3}]),
    )
    found = [(entry["id"], entry["n"]) for entry in await storage.read_storage_data()]
    assert found == [*((str(n), 1) for n in range(8)), ("8", 2), ("9", 3)]


async def test_a_cancelled_bulk_ends_with_its_current_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first entries are stored, the others never; a later write is not undone."""
    monkeypatch.setattr(folder, "_BATCH_SIZE", 2)
    log, storage = await open_dump(tmp_path).log(), await open_dump(tmp_path).storage(True)
    for write, read in (
        (log.write_log_data, log.read_log_data),
        (storage.write_storage_data, storage.read_storage_data),
    ):
        bulk = asyncio.create_task(write([{"id": str(n)} for n in range(1000)]))
        async with asyncio.timeout(HANG):
            while len(await read()) < 3:
                await asyncio.sleep(0)
        bulk.cancel()
        await asyncio.wait([bulk])
        assert bulk.cancelled()
        await write([{"id": "later"}])
        ids = [entry["id"] for entry in await read()]
        assert ids == [*map(str, range(len(ids) - 1)), "later"]
        assert 3 < len(ids) < 1000
        assert len(ids) % 2


async def test_a_read_during_two_writes_sees_a_value_with_its_own_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A value that is replaced twice between the read of its file and that of its record is read again."""
    state = await open_dump(tmp_path).state("s", "b")
    await state.write_state_data({"n": 1}, LATE)
    other = folder.DumpFiles(tmp_path).folder("state", signal_id="s", bucket_name="b")
    real, raced = value_file.load_records, False

    def racing(file: Path, advice: str) -> Records:
        nonlocal raced
        if not raced:
            raced = True
            for n in (2, 3):
                other._write([value_file.Write("b", b'{"n":%d}' % n, LATE)], True, True)
        return real(file, advice)

    monkeypatch.setattr(value_file, "load_records", racing)
    assert await state.read_state_data(when=EARLY) is None
    assert raced
    assert await state.read_state_data(when=LATE) == {"n": 3}


async def test_the_writing_thread_ends_with_its_backend(tmp_path: Path) -> None:
    """No thread is left when another backend replaces this one."""
    others = threading.enumerate()  # including those of backends that are not collected yet
    persist = open_dump(tmp_path)
    await (await persist.log()).write_log_data([{"id": "a"}])
    started = [thread for thread in threading.enumerate() if thread not in others]
    writers = [thread for thread in started if thread.name.startswith("backtest-persist-dump")]
    assert writers
    persist.use_dummy()
    gc.collect()
    for thread in writers:
        await asyncio.to_thread(thread.join, 10)
        assert not thread.is_alive()
