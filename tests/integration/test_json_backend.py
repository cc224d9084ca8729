"""JSON files: the layout of the TypeScript framework, whole values after a crash at any step, no way out."""

import asyncio
import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from backtest_persist import (
    InvalidKeyError,
    InvalidPayloadError,
    Registry,
    SettingsError,
    StoreUnavailableError,
    WriteOutcomeUnknownError,
    WriteRejectedError,
)
from backtest_persist.backends.json import folder as files
from backtest_persist.contracts import CandleColumns
from tests.support.dumps import ORIGINAL, ORIGINAL_WHEN, files_of, write_dump
from tests.support.stopwatch import Stopwatch

EARLY, LATE = 1_600_000_000_000, 1_700_000_000_000
CANDLE = {"timestamp": 1_600_000_020_000, "open": 10.0, "high": 12.5, "low": 9.0, "close": 11.0, "volume": 100.0}


def on(directory: Path) -> Registry:
    registry = Registry()
    registry.use_json(directory)
    return registry


async def collect(items: AsyncIterator[Any]) -> list[Any]:
    return [item async for item in items]


async def test_files_lie_where_the_original_keeps_its_own(tmp_path: Path) -> None:
    """One write in each domain gives exactly these files with exactly this text."""
    persist = on(tmp_path)
    await (await persist.signal("BTCUSDT", "trend", "binance")).write_signal_data({"id": "s-1"})
    await (await persist.schedule("BTCUSDT", "trend", "binance")).write_schedule_data(None)
    await (await persist.risk("max", "binance")).write_position_data([["BTCUSDT", {"n": 1}]], LATE)
    await (await persist.partial("BTCUSDT", "trend", "binance")).write_partial_data({"levels": [10]}, "s-1", LATE)
    await (await persist.breakeven("BTCUSDT", "trend", "binance")).write_breakeven_data({"reached": True}, "s-1", LATE)
    await (await persist.candle("BTCUSDT", "1m", "binance")).write_candles_data([CANDLE])
    await (await persist.storage(True)).write_storage_data([{"id": "s-1"}])
    await (await persist.notification(False)).write_notification_data([{"id": "n-1"}])
    await (await persist.log()).write_log_data([{"id": "l-1"}])
    await (await persist.measure("news")).write_measure_data({"score": 0.5}, "k", LATE)
    await (await persist.interval("monthly")).write_interval_data({"done": True}, "2024-01", LATE)
    await (await persist.memory("s-1", "notes")).write_memory_data({"text": "a"}, "m-1", LATE)
    await (await persist.recent("BTCUSDT", "trend", "binance", "2024", True)).write_recent_data({"id": "s-1"}, LATE)
    await (await persist.state("s-1", "stop")).write_state_data({"stop": 1.5}, LATE)
    await (await persist.session("trend", "binance", "2024", "BTCUSDT", False)).write_session_data({"n": 1}, LATE)
    assert files_of(tmp_path) == {
        "data/signal/BTCUSDT_trend_binance/BTCUSDT.json": '{"id":"s-1"}',
        "data/schedule/BTCUSDT_trend_binance/BTCUSDT.json": "null",
        "data/risk/max_binance/positions.json": '[["BTCUSDT",{"n":1}]]',
        "data/partial/BTCUSDT_trend_binance/s-1.json": '{"levels":[10]}',
        "data/breakeven/BTCUSDT_trend_binance/s-1.json": '{"reached":true}',
        "data/candle/binance/BTCUSDT/1m/1600000020000.json": (
            '{"timestamp":1600000020000,"open":10.0,"high":12.5,"low":9.0,"close":11.0,"volume":100.0}'
        ),
        "data/storage/backtest/s-1.json": '{"id":"s-1"}',
        "data/notification/live/n-1.json": '{"id":"n-1"}',
        "data/log/log/l-1.json": '{"id":"l-1"}',
        "data/measure/news/k.json": '{"score":0.5}',
        "data/interval/monthly/2024-01.json": '{"done":true}',
        "memory/s-1/notes/m-1.json": '{"text":"a"}',
        "data/recent/BTCUSDT_trend_binance_2024_backtest/BTCUSDT.json": '{"id":"s-1"}',
        "state/s-1/stop/stop.json": '{"stop":1.5}',
        "session/trend/binance/2024/BTCUSDT_live.json": '{"n":1}',
    }


async def test_a_dump_of_the_original_is_read_in_every_domain(tmp_path: Path) -> None:
    """What backtest-kit wrote is there, infinity and tombstones included; its own times hide what is later."""
    write_dump(tmp_path, ORIGINAL)
    persist, before = on(tmp_path), ORIGINAL_WHEN - 1
    sse = ("BTCUSDT", "my_strategy", "binance")
    signal = await (await persist.signal(*sse)).read_signal_data()
    assert signal is not None
    assert (signal["note"], signal["minuteEstimatedTime"]) == ("ü:/%", float("inf"))
    assert await (await persist.schedule(*sse)).read_schedule_data() is None
    risk = await (await persist.risk("max_2", "binance")).read_position_data(0)
    assert risk == [["BTCUSDT", {"openTimestamp": 1, "minuteEstimatedTime": float("inf")}]]
    assert (await (await persist.partial(*sse)).read_partial_data("s-1", 0))["BTC"]["profitLevels"] == [10, 20]
    assert await (await persist.breakeven(*sse)).read_breakeven_data("s-1", 0) == {"BTC": {"reached": True}}
    window = await (await persist.candle("BTCUSDT", "1m", "binance")).read_candles_data(3, 1_600_000_020_000)
    assert window is not None
    assert [candle["volume"] for candle in window] == [100.0, 101.0, 102.0]
    for backtest in (True, False):
        assert [row["id"] for row in await (await persist.storage(backtest)).read_storage_data()] == ["a", "b"]
        assert len(await (await persist.notification(backtest)).read_notification_data()) == 1
    assert {row["id"] for row in await (await persist.log()).read_log_data()} == {"l-2", "l-10"}
    measure = await persist.measure("llm:news")
    assert await collect(measure.list_measure_data()) == ["k1"]
    assert await measure.read_measure_data("k2") is None
    interval = await persist.interval("monthly")
    assert await interval.read_interval_data("2024-01", when=before) is None
    assert await interval.read_interval_data("2024-01", when=ORIGINAL_WHEN) is not None
    memory = await persist.memory("s-1", "notes")
    assert [name for name, _ in await collect(memory.list_memory_data())] == ["m1"]
    assert await collect(memory.list_memory_data(when=before)) == []
    assert await memory.has_memory_data("m2") is True
    recent = await persist.recent(*sse, "2024_q1", True)
    assert await recent.read_recent_data(when=before) is None
    assert await recent.read_recent_data(when=ORIGINAL_WHEN) is not None
    state = await persist.state("s-1", "stop")
    assert await state.read_state_data(when=before) is None
    assert await state.read_state_data(when=ORIGINAL_WHEN) is not None
    session = await persist.session("my_strategy", "binance", "2024_q1", "BTCUSDT", True)
    assert await session.read_session_data(when=before) is None
    assert await session.read_session_data() is not None
    assert files_of(tmp_path, hidden=True) == dict(sorted(ORIGINAL.items()))  # reading changes nothing


async def test_names_that_join_to_the_same_directory_keep_apart(tmp_path: Path) -> None:
    """The first writer gets the original's directory, the others a stricter one, also after a restart."""
    contexts = [("A_B", "C", "x"), ("A", "B_C", "x"), ("A", "B", "C_x"), ("A", "B%5FC", "x")]
    for number, context in enumerate(contexts):
        partial = await on(tmp_path).partial(*context)
        assert await partial.read_partial_data("s", LATE) == {}
        await partial.write_partial_data({"n": number}, "s", LATE)
    for number, context in enumerate(contexts):
        assert await (await on(tmp_path).partial(*context)).read_partial_data("s", LATE) == {"n": number}
    assert json.loads((tmp_path / "data/partial/A_B_C_x/s.json").read_text()) == {"n": 0}


async def test_a_directory_of_the_original_belongs_to_its_first_writer(tmp_path: Path) -> None:
    """All contexts it can be read as see what the original shares among them, until one of them writes."""
    write_dump(tmp_path, {"data/signal/A_B_C_x/A.json": '{"n":0}'})
    assert await (await on(tmp_path).signal("A", "B_C", "x")).read_signal_data() == {"n": 0}
    mine, other = await on(tmp_path).signal("A", "B", "C_x"), await on(tmp_path).signal("A", "B_C", "x")
    assert await mine.read_signal_data() == {"n": 0}
    await mine.write_signal_data({"n": 1})
    assert await mine.read_signal_data() == {"n": 1}
    assert await other.read_signal_data() is None


async def test_no_name_leaves_the_dump(tmp_path: Path) -> None:
    """Path tricks in every place a name can stand create files below the dump alone, and are read back."""
    dump = tmp_path / "a" / "dump"
    persist = on(dump)
    for name in ("..", "../..", "../../outside", "/etc/passwd", "a/../../b", ".", "...", "~", ".backtest-persist"):
        await (await persist.signal(name, name, name)).write_signal_data({"id": name})
        await (await persist.memory(name, name)).write_memory_data({"id": name}, name, LATE)
        await (await persist.storage(True)).write_storage_data([{"id": name}])
        assert await (await persist.signal(name, name, name)).read_signal_data() == {"id": name}
        assert await (await persist.memory(name, name)).read_memory_data(name) == {"id": name}
    assert len(await (await persist.storage(True)).read_storage_data()) == 9
    assert os.listdir(tmp_path) == ["a"]
    assert os.listdir(tmp_path / "a") == ["dump"]
    for name in ("", "a\0b", "\ud800"):
        with pytest.raises(InvalidKeyError):
            await (await persist.signal(name, "s", "e")).read_signal_data()


STEPS = ("open", "write", "fsync", "rename", "link", "unlink", "mkdir", "utime")


class Killed(BaseException):
    """Stands for the end of the process."""


@pytest.mark.parametrize("second", [{"n": 2, "long": "x" * 100}, {"n": 1}, None], ids=["other", "same", "none"])
async def test_a_write_that_dies_at_any_step_leaves_the_old_value_or_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, second: dict[str, Any] | None
) -> None:
    """Cut at the first, second, … call of the system: the value and its `when` are both old or both new, then go on."""
    first = {"n": 1}
    outcomes: list[str] = []
    for cut in range(1, 100):
        directory = tmp_path / str(cut)
        await (await on(directory).state("sig", "b")).write_state_data(first, LATE)
        with monkeypatch.context() as patch:
            calls = cut_at(patch, cut)
            finished = True
            try:
                await (await on(directory).state("sig", "b")).write_state_data(second, EARLY)
            except Killed:
                finished = False
        state = await on(directory).state("sig", "b")
        found = await state.read_state_data(), await state.read_state_data(when=EARLY)
        if finished:
            assert found == (second, second)
            assert len(calls) < cut
            break
        assert found in ((first, None), (second, second))
        outcomes.append("old" if found == (first, None) else "new")
        assert leftovers(directory) == []  # swept
        await state.write_state_data({"n": 3}, LATE)
        assert await state.read_state_data(when=LATE) == {"n": 3}
        assert await state.read_state_data(when=LATE - 1) is None
    else:
        pytest.fail("the write never finished")
    assert outcomes == sorted(outcomes, reverse=True)  # once new, never old again
    assert "old" in outcomes


def leftovers(directory: Path) -> list[Path]:
    return list(directory.rglob(".tmp-*"))


def cut_at(patch: pytest.MonkeyPatch, cut: int) -> list[str]:
    """Let the `cut`-th call of the system end everything; returns the names of the calls that were made."""
    calls: list[str] = []

    def cutting(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            calls.append(name)
            if len(calls) >= cut:  # a dead process makes no further calls
                raise Killed
            return real(*args, **options)

        return call

    for name in STEPS:
        patch.setattr(files.os, name, cutting(name, getattr(os, name)))
    return calls


async def test_leftovers_of_a_crash_are_swept_at_the_start(tmp_path: Path) -> None:
    """Temporary files of ours go at once, of others when they are old; everything else stays."""
    folder = tmp_path / "data/storage/live"
    write_dump(folder, {".tmp-123-0": "{", ".tmp-0a1b2c-x.json": "{", ".tmp-old-x.json": "{", "a.json": '{"id":"a"}'})
    old = time.time() - 600
    os.utime(folder / ".tmp-old-x.json", (old, old))
    storage = await on(tmp_path).storage(False)
    assert sorted(path.name for path in folder.iterdir()) == [".tmp-0a1b2c-x.json", "a.json"]
    assert await storage.read_storage_data() == [{"id": "a"}]


async def test_a_cancelled_write_never_lands_after_a_later_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A write that was cancelled while its thread was busy is done or not done before the next one."""
    persist = on(tmp_path)
    state: Any = await persist.state("sig", "b")
    await state.write_state_data({"n": 0}, 0)
    held, released, real = asyncio.Event(), threading.Event(), os.fsync
    loop = asyncio.get_running_loop()

    def fsync(descriptor: int) -> None:
        if not held.is_set():
            loop.call_soon_threadsafe(held.set)
            released.wait(10)
        real(descriptor)

    monkeypatch.setattr(files.os, "fsync", fsync)
    cancelled = asyncio.create_task(state.write_state_data({"n": 1}, 1))
    await held.wait()
    cancelled.cancel()
    later = asyncio.create_task(state.write_state_data({"n": 2}, 2))
    await asyncio.wait([later], timeout=0.05)
    released.set()
    await later
    await asyncio.to_thread(state._folder._dump._thread.shutdown)  # when the cancelled write has ended, too
    assert await state.read_state_data() == {"n": 2}
    with pytest.raises(asyncio.CancelledError):
        await cancelled


async def test_two_processes_write_to_one_directory(tmp_path: Path) -> None:
    """Entries, values and times of several writers are all there; none is mixed up with another's."""
    code = """
import asyncio, sys
from backtest_persist import Registry
async def main(who):
    persist = Registry(); persist.use_json(sys.argv[1])
    log, state, risk = await persist.log(), await persist.state("s", "b"), await persist.risk("r_1", "e_1")
    for n in range(100):
        await log.write_log_data([{"id": f"{who}-{n}"}])
        await state.write_state_data({"who": who, "n": n}, n)
        await risk.write_position_data([who, n], n)
asyncio.run(main(sys.argv[2]))
"""
    writers = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path), who], cwd=Path(__file__).parents[2])  # noqa: ASYNC220
        for who in "ABC"
    ]
    persist = on(tmp_path)
    state = await persist.state("s", "b")
    while any(writer.poll() is None for writer in writers):
        value = await state.read_state_data()
        if value is not None:
            assert await state.read_state_data(when=-1) is None
        await asyncio.sleep(0)
    assert [writer.returncode for writer in writers] == [0, 0, 0]
    entries = [entry["id"] for entry in await (await persist.log()).read_log_data()]
    for who in "ABC":
        assert [entry for entry in entries if entry.startswith(who)] == [f"{who}-{n}" for n in range(100)]
    assert (await state.read_state_data(when=99) or {})["n"] == 99
    assert await state.read_state_data(when=98) is None
    assert (await (await persist.risk("r_1", "e_1")).read_position_data(99))[1] == 99


async def test_a_read_between_two_writes_sees_a_value_with_its_own_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When two writes land between the read of a value and the read of its record, the value is read again."""
    state = await on(tmp_path).state("s", "b")
    await state.write_state_data({"n": 1}, LATE)
    other = files.DumpFiles(tmp_path).folder("state", signal_id="s", bucket_name="b")
    real, raced = files._load_records, False

    def racing(file: Path) -> dict[str, dict[str, int]]:
        nonlocal raced
        if not raced:
            raced = True
            for n in (2, 3):
                other._write([files.Write("b", b'{"n":%d}' % n, LATE)], True, True)
        return real(file)

    monkeypatch.setattr(files, "_load_records", racing)
    assert await state.read_state_data(when=EARLY) is None
    assert raced
    assert await state.read_state_data(when=LATE) == {"n": 3}


async def test_a_directory_that_stays_locked_is_a_typed_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process that does not let go costs a bounded wait, then a StoreUnavailableError; reads go on."""
    monkeypatch.setattr(files, "_LOCK_SECONDS", 0.1)
    state = await on(tmp_path).state("s", "b")
    await state.write_state_data({"n": 1}, 1)
    folder = tmp_path / "state/s/b"
    code = "import fcntl,os,sys; fcntl.flock(os.open(sys.argv[1],0),2); print('held',flush=True); sys.stdin.read()"
    holder = subprocess.Popen(  # noqa: ASYNC220
        [sys.executable, "-c", code, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"
    with pytest.raises(StoreUnavailableError, match="locked"):
        await state.write_state_data({"n": 2}, 2)
    assert await state.read_state_data() == {"n": 1}
    holder.communicate()
    await state.write_state_data({"n": 3}, 3)
    assert await state.read_state_data() == {"n": 3}


async def test_a_full_disk_is_a_typed_error_and_the_old_value_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error before the rename says that nothing was stored, one after it that the next read tells."""
    state = await on(tmp_path).state("s", "b")
    await state.write_state_data({"n": 1}, 1)

    def refuse(*args: Any, **options: Any) -> Any:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "write", refuse)
        with pytest.raises(WriteRejectedError, match="No space left"):
            await state.write_state_data({"n": 2}, 2)
        assert await state.read_state_data() == {"n": 1}
    assert leftovers(tmp_path) == []
    storage, real, written = await on(tmp_path).storage(True), os.rename, 0

    def refuse_later(*args: Any) -> None:
        nonlocal written
        written += 1
        if written > 2:
            refuse()
        real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "rename", refuse_later)
        with pytest.raises(WriteOutcomeUnknownError, match="read to see"):
            await storage.write_storage_data([{"id": str(n)} for n in range(5)])
    assert [entry["id"] for entry in await storage.read_storage_data()] == ["0", "1"]


async def test_a_file_in_the_place_of_a_directory_is_a_typed_error(tmp_path: Path) -> None:
    """Neither reads nor writes raise what the operating system raised."""
    (tmp_path / "state").write_text("")
    state = await on(tmp_path).state("s", "b")
    with pytest.raises(StoreUnavailableError):
        await state.read_state_data()
    with pytest.raises(WriteRejectedError):
        await state.write_state_data({}, 1)


@pytest.mark.parametrize("text", ["", "{", '{"id": "bro', '{"$date": "x"}'])
async def test_a_damaged_file_is_a_typed_error_that_names_it(tmp_path: Path, text: str) -> None:
    """Nothing is guessed and nothing removed; a later write repairs it."""
    write_dump(tmp_path, {"data/signal/A_B_C/A.json": text, "data/storage/live/x.json": text})
    signal, storage = await on(tmp_path).signal("A", "B", "C"), await on(tmp_path).storage(False)
    with pytest.raises(InvalidPayloadError, match=r"A\.json"):
        await signal.read_signal_data()
    with pytest.raises(InvalidPayloadError, match=r"x\.json"):
        await storage.read_storage_data()
    await signal.write_signal_data({"n": 1})
    assert await signal.read_signal_data() == {"n": 1}


async def test_a_window_comes_as_columns(tmp_path: Path) -> None:
    """Arrays of int64 and float64, as from MongoDB; None with a hole."""
    candles = await on(tmp_path).candle("BTC", "1m", "b")
    assert isinstance(candles, CandleColumns)
    await candles.write_candles_data([{**CANDLE, "timestamp": CANDLE["timestamp"] + n * 60_000} for n in range(3)])
    columns = await candles.read_candle_columns(3, 1_600_000_020_000)
    assert columns is not None
    assert {name: str(column.dtype) for name, column in columns.items()} == {
        "timestamp": "int64",
        **dict.fromkeys(("open", "high", "low", "close", "volume"), "float64"),
    }
    assert columns["timestamp"].tolist() == [1_600_000_020_000, 1_600_000_080_000, 1_600_000_140_000]
    assert columns["high"].tolist() == [12.5] * 3
    assert await candles.read_candle_columns(4, 1_600_000_020_000) is None


async def test_a_damaged_candle_is_a_typed_error(tmp_path: Path) -> None:
    """A file that holds no candle, or one of another time, is not passed on as prices."""
    path = "data/candle/b/BTC/1m/1600000020000.json"
    for text in ("null", "[]", '{"timestamp":1600000020000}', json.dumps({**CANDLE, "timestamp": 1_600_000_080_000})):
        write_dump(tmp_path, {path: text})
        with pytest.raises(InvalidPayloadError, match=r"damaged|another candle"):
            await (await on(tmp_path).candle("BTC", "1m", "b")).read_candles_data(1, 1_600_000_020_000)


async def test_an_entry_keeps_its_place_when_it_is_written_again(tmp_path: Path) -> None:
    """The order is that of the first writes, over restarts, rewrites, removals and revivals."""
    storage, memory = await on(tmp_path).storage(True), await on(tmp_path).memory("s", "b")
    await storage.write_storage_data([{"id": name} for name in ("c", "a", "b")])
    for name in ("c", "a", "b"):
        await memory.write_memory_data({"n": 1}, name, LATE)
    storage, memory = await on(tmp_path).storage(True), await on(tmp_path).memory("s", "b")
    await storage.write_storage_data([{"id": "c", "n": 2}, {"id": "0"}])
    await storage.write_storage_data([{"id": "c", "n": 3}])
    await memory.remove_memory_data("c")
    await memory.write_memory_data({"n": 2}, "c", EARLY)
    storage, memory = await on(tmp_path).storage(True), await on(tmp_path).memory("s", "b")
    assert [entry["id"] for entry in await storage.read_storage_data()] == ["c", "a", "b", "0"]
    assert [name for name, _ in await collect(memory.list_memory_data())] == ["c", "a", "b"]


async def test_the_thread_that_writes_ends_with_its_backend(tmp_path: Path) -> None:
    """Swapping the backend leaves no thread behind."""
    import gc
    import threading

    others = threading.enumerate()  # those of backends that nobody has collected yet among them
    persist = on(tmp_path)
    await (await persist.log()).write_log_data([{"id": "a"}])
    started = [thread for thread in threading.enumerate() if thread not in others]
    writers = [thread for thread in started if thread.name.startswith("backtest-persist-dump")]
    assert writers
    persist.use_dummy()
    gc.collect()
    for thread in writers:
        await asyncio.to_thread(thread.join, 10)
        assert not thread.is_alive()


async def test_a_fork_writes_on(tmp_path: Path) -> None:
    """A child that was forked after the first write has no thread of its parent's, and starts its own."""
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
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, str(tmp_path), cwd=Path(__file__).parents[2]
    )
    async with asyncio.timeout(60):
        assert await process.wait() == 0
    entries = await (await on(tmp_path).log()).read_log_data()
    assert {entry["id"] for entry in entries} == {"parent", "child", "again"}


async def test_a_fork_amid_a_write_keeps_nothing_locked(tmp_path: Path) -> None:
    """A child that was forked while its parent held a directory does not hold it for as long as it lives."""
    code = """
import asyncio, os, signal, sys
from backtest_persist import Registry
from backtest_persist.backends.json import folder as files
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
    files.os.fsync, files._LOCK_SECONDS = forking, 0.5
    try:
        await state.write_state_data({"n": 1}, 1)
        await state.write_state_data({"n": 2}, 2)
    finally:
        os.kill(children[0], signal.SIGKILL)
asyncio.run(main())
"""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, str(tmp_path), cwd=Path(__file__).parents[2]
    )
    async with asyncio.timeout(60):
        assert await process.wait() == 0
    assert await (await on(tmp_path).state("s", "b")).read_state_data() == {"n": 2}


@pytest.mark.parametrize("text", ["", "{", "\x00", "null", "[]", "5", '{"x":1}', '["A",1]'])
async def test_a_damaged_file_of_the_hidden_tree_is_a_typed_error_that_names_it(tmp_path: Path, text: str) -> None:
    """Neither the names of a directory nor the time of a value are guessed; without the file all goes on."""
    signal, state = await on(tmp_path).signal("A", "B_C", "x"), await on(tmp_path).state("s", "b")
    await signal.write_signal_data({"n": 1})
    await state.write_state_data({"n": 1}, LATE)
    hidden = tmp_path / ".backtest-persist"
    label, record = hidden / "labels/data/signal/A_B_C_x%~.json", hidden / "records/state/s/b/b.json"
    for file in (label, record):
        assert file.is_file()
        file.write_text(text)
    with pytest.raises(InvalidPayloadError, match=rf"{label} is damaged.* Remove it"):
        await on(tmp_path).signal("A", "B_C", "x")
    with pytest.raises(InvalidPayloadError, match=rf"{record} is damaged.* Remove it"):
        await state.read_state_data()
    with pytest.raises(InvalidPayloadError, match=rf"{record} is damaged"):
        await state.write_state_data({"n": 2}, LATE)
    for file in (label, record):
        file.unlink()
    assert await (await on(tmp_path).signal("A", "B_C", "x")).read_signal_data() == {"n": 1}
    assert await state.read_state_data() == {"n": 1}


async def test_a_directory_of_another_user_is_a_typed_error(tmp_path: Path) -> None:
    """Whatever is done first there, the error says which directory it is, and is one of this package."""
    code = """
import asyncio, os, sys
from pathlib import Path
from backtest_persist import Registry, StoreUnavailableError, WriteRejectedError
async def main(root):
    persist = Registry(); persist.use_json(root)
    memory = await persist.memory("s", "b")
    await memory.write_memory_data({}, "m", 0)
    (root / "memory").chmod(0)
    if os.geteuid() == 0:
        os.setuid(65534)
    again = Registry(); again.use_json(root)
    for call, error in (
        (again.memory("s", "b"), WriteRejectedError),
        (memory.remove_memory_data("m"), WriteRejectedError),
        (memory.write_memory_data({}, "m", 0), WriteRejectedError),
        (memory.read_memory_data("m"), StoreUnavailableError),
    ):
        try:
            await call
        except error as refused:
            assert f"{root}/memory/s/b" in str(refused), refused
            assert "access" in str(refused), refused
        else:
            raise AssertionError(error)
asyncio.run(main(Path(sys.argv[1])))
"""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, str(tmp_path), cwd=Path(__file__).parents[2]
    )
    async with asyncio.timeout(60):
        assert await process.wait() == 0
    (tmp_path / "memory").chmod(0o700)


async def test_a_relative_directory_is_the_one_of_the_moment_it_was_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the working directory is changed to later does not matter to adapters, handed out before or not."""
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "first")
    persist = Registry()
    persist.use_json("dump")
    assert os.listdir() == []  # naming it makes nothing
    state = await persist.state("s", "b")
    monkeypatch.chdir(tmp_path / "second")
    await state.write_state_data({"n": 1}, 1)
    await (await persist.log()).write_log_data([{"id": "a"}])
    assert os.listdir() == []
    assert sorted(files_of(tmp_path / "first/dump")) == ["data/log/log/a.json", "state/s/b/b.json"]


async def test_every_directory_that_a_write_makes_survives_a_crash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The root, those of the values and those of the hidden tree: each is flushed in the directory it lies in."""
    flushed: set[tuple[int, int]] = set()
    real = os.fsync

    def identity(status: os.stat_result) -> tuple[int, int]:
        return status.st_dev, status.st_ino

    def fsync(descriptor: int) -> None:
        real(descriptor)
        flushed.add(identity(os.fstat(descriptor)))

    monkeypatch.setattr(files.os, "fsync", fsync)
    root = tmp_path / "dump"
    await (await on(root).partial("A", "my_trend", "x")).write_partial_data({"n": 1}, "s", LATE)
    made = [root, *(path for path in root.rglob("*") if path.is_dir())]
    assert len(made) == 12
    assert [path for path in made if identity(path.parent.stat()) not in flushed] == []


def minutes(number: int) -> list[dict[str, Any]]:
    return [{**CANDLE, "timestamp": CANDLE["timestamp"] + n * 60_000} for n in range(number)]


async def test_many_values_of_one_call_leave_others_their_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither another process, nor another adapter of this one, waits for the end of a bulk."""
    real = os.fsync

    def slow(descriptor: int) -> None:
        time.sleep(0.002)
        real(descriptor)

    monkeypatch.setattr(files.os, "fsync", slow)
    monkeypatch.setattr(files, "_LOCK_SECONDS", 1.0)
    persist, other = on(tmp_path), on(tmp_path)  # the other waits for the lock, like another process
    mine, theirs = await persist.candle("A", "1m", "x"), await other.candle("A", "1m", "x")
    signal = await persist.signal("A", "t", "x")
    bulk = asyncio.create_task(mine.write_candles_data(minutes(1000)))  # 2 s at least
    while not any(tmp_path.rglob("*.json")):  # noqa: ASYNC240
        await asyncio.sleep(0.001)
    await theirs.write_candles_data([{**CANDLE, "timestamp": 0}])
    assert not bulk.done()
    await signal.write_signal_data({"n": 1})
    assert not bulk.done()
    await bulk
    assert len(await mine.read_candles_data(1000, 1_600_000_020_000) or []) == 1000
    assert await mine.read_candles_data(1, 0) is not None


async def test_writes_of_one_adapter_keep_their_order_around_a_bulk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is written while a bulk is under way stands after it, and is listed after it."""
    monkeypatch.setattr(files, "_AT_ONCE", 2)
    storage = await on(tmp_path).storage(True)
    await asyncio.gather(
        storage.write_storage_data([{"id": str(n), "n": 1} for n in range(9)]),
        storage.write_storage_data([{"id": "8", "n": 2}, {"id": "9", "n": 2}]),
        storage.write_storage_data([{"id": "9", "n": 3}]),
    )
    found = [(entry["id"], entry["n"]) for entry in await storage.read_storage_data()]
    assert found == [*((str(n), 1) for n in range(8)), ("8", 2), ("9", 3)]


async def test_a_cancelled_bulk_ends_with_the_part_that_is_under_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first entries are stored and the others never will be; a later write stands."""
    monkeypatch.setattr(files, "_AT_ONCE", 2)
    log, storage = await on(tmp_path).log(), await on(tmp_path).storage(True)
    for write, read in (
        (log.write_log_data, log.read_log_data),
        (storage.write_storage_data, storage.read_storage_data),
    ):
        bulk = asyncio.create_task(write([{"id": str(n)} for n in range(1000)]))
        async with asyncio.timeout(10):
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


async def test_a_bulk_that_is_locked_out_halfway_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When another process takes the directory between two parts and keeps it, the next read tells what was stored."""
    import fcntl

    log = await on(tmp_path).log()
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

    monkeypatch.setattr(files.os, "fsync", fsync)
    monkeypatch.setattr(files, "_LOCK_SECONDS", 0.1)
    monkeypatch.setattr(files, "_AT_ONCE", 2)
    taking = asyncio.create_task(take())
    with pytest.raises(WriteOutcomeUnknownError, match=r"locked.*read to see"):
        await log.write_log_data([{"id": str(n)} for n in range(5)])
    await taking
    os.close(descriptor)
    assert [entry["id"] for entry in await log.read_log_data()] == ["first", "0", "1"]


async def test_a_name_with_a_slash_is_found_where_the_original_nests_it(tmp_path: Path) -> None:
    """Single values, windows and lists are read from the directories it makes of the name; reading changes nothing."""
    nested = {
        "data/signal/BTC/USDT_t_x/BTC/USDT.json": '{"id":"a"}',
        "data/partial/BTC/USDT_t_x/s-1.json": '{"n":1}',
        "data/risk/a/b_x/positions.json": "[1]",
        "data/recent/BTC/USDT_t_x_f_backtest/BTC/USDT.json": '{"timestamp":5}',
        "session/t/x/f/BTC/USDT_live.json": '{"when":5}',
        "state/s/1/b/c/b/c.json": '{"when":5}',
        "data/measure/a/b/k.json": '{"n":1}',
        "data/measure/a/b/gone.json": '{"removed":true}',
        "data/measure/a/b/http/k.json": '{"n":2}',
        "memory/s/1/b/m.json": '{"n":1}',
    }
    write_dump(tmp_path, {**ORIGINAL, **nested})
    persist = on(tmp_path)
    candles = await persist.candle("BTC/USDT:USDT", "1m", "binance")
    assert [candle["volume"] for candle in await candles.read_candles_data(1, 1_600_000_020_000) or []] == [100.0]
    assert await candles.read_candles_data(2, 1_600_000_020_000) is None
    assert await (await persist.signal("BTC/USDT", "t", "x")).read_signal_data() == {"id": "a"}
    assert await (await persist.partial("BTC/USDT", "t", "x")).read_partial_data("s-1", 0) == {"n": 1}
    assert await (await persist.risk("a/b", "x")).read_position_data(0) == [1]
    recent = await persist.recent("BTC/USDT", "t", "x", "f", True)
    session = await persist.session("t", "x", "f", "BTC/USDT", False)
    state = await persist.state("s/1", "b/c")
    for read in (recent.read_recent_data, session.read_session_data, state.read_state_data):
        assert await read(when=4) is None
        assert await read(when=5) is not None
    measure, memory = await persist.measure("a/b"), await persist.memory("s/1", "b")
    assert await measure.read_measure_data("k") == {"n": 1}
    assert await measure.read_measure_data("http/k") == {"n": 2}
    assert await collect(measure.list_measure_data()) == ["k"]  # nor does the original list what it has nested
    assert await collect(memory.list_memory_data()) == [("m", {"n": 1})]
    assert await memory.has_memory_data("m") is True
    assert files_of(tmp_path, hidden=True) == dict(sorted({**ORIGINAL, **nested}.items()))


async def test_a_write_to_a_name_with_a_slash_wins_over_what_the_original_nested(tmp_path: Path) -> None:
    """It is in a file of ours, keeps its place in lists, leaves a stored candle alone, and can be removed."""
    nested = {f"data/measure/a/b/{name}.json": '{"n":0}' for name in "cab"}
    nested["data/signal/BTC/USDT_t_x/BTC/USDT.json"] = '{"n":0}'
    write_dump(tmp_path, {**ORIGINAL, **nested})
    for age, name in enumerate("bac"):
        os.utime(tmp_path / f"data/measure/a/b/{name}.json", (1_000_000 - age, 1_000_000 - age))
    persist = on(tmp_path)
    signal, measure = await persist.signal("BTC/USDT", "t", "x"), await persist.measure("a/b")
    await signal.write_signal_data({"n": 1})
    await measure.remove_measure_data("a")
    await measure.write_measure_data({"n": 1}, "c", 0)
    await measure.write_measure_data({"n": 1}, "new", 0)
    candles = await persist.candle("BTC/USDT:USDT", "1m", "binance")
    await candles.write_candles_data([{**CANDLE, "close": 9.5}, minutes(2)[1]])
    for again in (persist, on(tmp_path)):
        assert await (await again.signal("BTC/USDT", "t", "x")).read_signal_data() == {"n": 1}
        measure = await again.measure("a/b")
        assert await collect(measure.list_measure_data()) == ["c", "b", "new"]
        assert [await measure.read_measure_data(name) for name in "cab"] == [{"n": 1}, None, {"n": 0}]
        window = await (await again.candle("BTC/USDT:USDT", "1m", "binance")).read_candles_data(2, 1_600_000_020_000)
        assert [candle["close"] for candle in window or []] == [11.0, 11.0]
    await measure.write_measure_data({"n": 2}, "a", 0)
    assert await collect(measure.list_measure_data()) == ["c", "a", "b", "new"]
    found = files_of(tmp_path)
    assert {path: found[path] for path in (*ORIGINAL, *nested)} == {**ORIGINAL, **nested}


@pytest.mark.parametrize("symbol", ["../../../out", "a/../../../../out", "a//b", "/a", "a/", "a/./b", "a/.b", "a/b%2F"])
async def test_only_plain_directories_are_looked_into_for_a_name_with_a_slash(tmp_path: Path, symbol: str) -> None:
    """Nothing above, beside or hidden in the dump is read, nor what is the file of another name of ours."""
    root = tmp_path / "dump"
    write_dump(root, {f"data/signal/{symbol}_t_x/{symbol}.json": "{}"})
    assert await (await on(root).signal(symbol, "t", "x")).read_signal_data() is None


async def test_a_file_system_that_does_not_tell_cases_apart_is_refused(tmp_path: Path) -> None:
    """Where BTC and btc would share a file nothing is stored; another directory with a like name does not matter."""
    for directory in ("data", "STATE"):
        (tmp_path / directory).mkdir()
    (tmp_path / "DATA").symlink_to("data")  # what such a file system would find
    (tmp_path / "data/MEASURE").symlink_to("measure")
    persist = on(tmp_path)
    with pytest.raises(SettingsError, match="upper and lower case"):
        await (await persist.measure("a")).write_measure_data({}, "k", 0)
    await (await persist.state("s", "b")).write_state_data({"n": 1}, 0)
    assert files_of(tmp_path) == {"state/s/b/b.json": '{"n":1}'}


DAMAGED: dict[str, tuple[str, str, str]] = {
    "nested too deep": ("memory/s/b/m.json", f'{{"a":{"[" * 600}1{"]" * 600}}}', "nested too deep"),
    "array for an object": ("memory/s/b/m.json", "[1]", "no object"),
    "object for an array": ("data/risk/r_x/positions.json", '{"a":1}', "no array"),
}


@pytest.mark.parametrize("kind", DAMAGED)
async def test_a_file_that_holds_no_value_is_a_typed_error(tmp_path: Path, kind: str) -> None:
    """It is named, whatever is wrong with it."""
    path, text, problem = DAMAGED[kind]
    file = tmp_path / path
    file.parent.mkdir(parents=True)
    file.write_text(text)
    persist = on(tmp_path)
    memory, risk = await persist.memory("s", "b"), await persist.risk("r", "x")
    reading = memory.read_memory_data("m") if path.startswith("memory") else risk.read_position_data(LATE)
    with pytest.raises(InvalidPayloadError, match=f"{path} is damaged: .*{problem}"):
        await reading


async def test_half_a_surrogate_pair_of_the_original_can_be_removed(tmp_path: Path) -> None:
    """JavaScript writes one as an escape; so do we."""
    file = tmp_path / "memory/s/b/m.json"
    file.parent.mkdir(parents=True)
    file.write_text('{"text":"\\ud800"}')
    memory = await on(tmp_path).memory("s", "b")
    assert await memory.read_memory_data("m") == {"text": "\ud800"}
    await memory.remove_memory_data("m")
    assert await memory.read_memory_data("m") is None
    assert json.loads(file.read_text()) == {"text": "\ud800", "removed": True}


async def test_a_window_costs_what_is_stored_of_it(tmp_path: Path) -> None:
    """However many candles are asked for, nothing is made for those that are missing."""
    candles = await on(tmp_path).candle("A", "1m", "x")
    await candles.write_candles_data(minutes(2))
    tracemalloc.start()
    try:
        assert await candles.read_candles_data(10**6, int(CANDLE["timestamp"])) is None
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("names", [("x", "x.json"), ("x.json", "x")])
async def test_a_name_with_the_suffix_of_a_file_disturbs_nobody(tmp_path: Path, names: tuple[str, str]) -> None:
    """Nor do long names below it, which are noted in directories of that name."""
    for name in names:
        partial = await on(tmp_path).partial("S", "s_1", name)
        await partial.write_partial_data({"n": name}, "k" * 201, 0)
    for name in names:
        partial = await on(tmp_path).partial("S", "s_1", name)
        assert await partial.read_partial_data("k" * 201, LATE) == {"n": name}


async def test_calls_that_wait_for_one_lock_wait_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each ends when its own time is over; who only reads, and whose directory is free, gets on."""
    import fcntl

    monkeypatch.setattr(files, "_LOCK_SECONDS", 1.0)
    persist = on(tmp_path)
    held, free = await persist.measure("held"), await persist.measure("free")
    await held.write_measure_data({"n": 0}, "k", 0)
    descriptor = os.open(tmp_path / "data/measure/held", os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        (tmp_path / "data/measure/held/.tmp-1-1").touch()
        with Stopwatch() as watch:
            reader = await on(tmp_path).measure("held")
            assert await reader.read_measure_data("k") == {"n": 0}
            writes = [held.write_measure_data({"n": n}, f"k{n}", 0) for n in range(4)]
            ends = await asyncio.gather(*writes, free.write_measure_data({"n": 1}, "k", 0), return_exceptions=True)
        assert [type(end) for end in ends] == [StoreUnavailableError] * 4 + [type(None)]
        assert watch.seconds < 2
    finally:
        os.close(descriptor)


async def test_a_reader_that_may_not_remove_what_a_crash_left_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a dump on a medium that cannot be written to."""
    state = await on(tmp_path).state("s", "b")
    await state.write_state_data({"n": 1}, 1)
    (tmp_path / "state/s/b/.tmp-1-1").touch()

    def refused(path: Path, *, missing_ok: bool = False) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    monkeypatch.setattr(Path, "unlink", refused)
    assert await (await on(tmp_path).state("s", "b")).read_state_data() == {"n": 1}


async def test_what_a_crash_left_of_a_note_of_names_is_removed_when_it_is_old(tmp_path: Path) -> None:
    """Nothing keeps others from writing there, so a young one may be theirs."""
    await (await on(tmp_path).signal("A", "B_C", "x")).write_signal_data({"n": 1})
    labels = tmp_path / ".backtest-persist/labels/data/signal"
    young, old = labels / ".tmp-1-1", labels / ".tmp-1-2"
    young.touch()
    old.touch()
    os.utime(old, (1, 1))
    await on(tmp_path).signal("A", "B_C", "x")
    assert young.exists()
    assert not old.exists()


async def test_a_child_that_was_forked_keeps_no_lock_of_a_parent_that_was_killed(tmp_path: Path) -> None:
    """The child lives on; the directory is free."""
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
    writing = asyncio.create_task(state.write_state_data({"n": 1}, 1))
    while not inside.is_set():
        await asyncio.sleep(0.01)
    child = os.fork()
    if not child:
        os.close(1); time.sleep(60); os._exit(0)
    print(child, flush=True)
    os.kill(os.getpid(), 9)
asyncio.run(main())
"""
    state = await on(tmp_path).state("s", "b")
    await state.write_state_data({"n": 0}, 0)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, str(tmp_path), stdout=asyncio.subprocess.PIPE, cwd=Path(__file__).parents[2]
    )
    assert process.stdout is not None
    child = int(await process.stdout.readline())
    try:
        assert await process.wait() == -signal.SIGKILL
        await state.write_state_data({"n": 2}, 2)
        assert await state.read_state_data() == {"n": 2}
    finally:
        os.kill(child, signal.SIGKILL)


def test_a_directory_with_a_zero_character_is_refused() -> None:
    """No system has one."""
    with pytest.raises(SettingsError, match="zero character"):
        on(Path("a\0b"))


async def test_notes_of_names_come_and_go_while_an_adapter_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process makes one just now: its temporary file is gone before it is looked at."""
    await (await on(tmp_path).signal("A", "B_C", "x")).write_signal_data({"n": 1})
    labels = tmp_path / ".backtest-persist/labels/data/signal"
    real = Path.stat

    def gone(path: Path, **options: Any) -> os.stat_result:
        if path.name == ".tmp-1-1":
            path.unlink(missing_ok=True)
        return real(path, **options)

    (labels / ".tmp-1-1").touch()
    monkeypatch.setattr(Path, "stat", gone)
    await on(tmp_path).signal("A", "B_C", "x")
    assert not (labels / ".tmp-1-1").exists()


async def test_a_call_that_waited_for_its_own_process_waits_for_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long the calls before it took, somebody who has the directory for a moment only is waited for."""
    import fcntl

    monkeypatch.setattr(files, "_LOCK_SECONDS", 0.5)
    persist = on(tmp_path)
    busy, mine = await persist.measure("busy"), await persist.measure("mine")
    await mine.write_measure_data({"n": 0}, "k", 0)
    descriptor = os.open(tmp_path / "data/measure/mine", os.O_RDONLY)
    real = os.fsync

    def slow(given: int) -> None:
        time.sleep(0.3)
        real(given)

    monkeypatch.setattr(files.os, "fsync", slow)
    writing = asyncio.gather(busy.write_measure_data({"n": 1}, "k", 0), mine.write_measure_data({"n": 1}, "k", 0))
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    while not (tmp_path / "data/measure/busy/k.json").exists():
        await asyncio.sleep(0.001)
    asyncio.get_running_loop().call_later(0.2, os.close, descriptor)
    await writing
    assert await mine.read_measure_data("k") == {"n": 1}
