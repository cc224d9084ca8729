"""JSON files: the layout and the text of the TypeScript framework, and the order of lists."""

import os
import tracemalloc
from pathlib import Path

import pytest

from backtest_persist import Registry, SettingsError
from backtest_persist.contracts import CandleColumns
from tests.support.dumps import files_of
from tests.support.json_backend import CANDLE, EARLY, LATE, candles_from_start, collect, open_dump


async def test_files_are_where_the_framework_keeps_its_own(tmp_path: Path) -> None:
    """One write in each domain makes exactly these files with exactly this text."""
    persist = open_dump(tmp_path)
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


async def test_live_trading_has_no_frame_in_its_paths(tmp_path: Path) -> None:
    """The framework leaves an empty frame out, in both modes."""
    persist = open_dump(tmp_path)
    await (await persist.recent("S", "t", "x", "", False)).write_recent_data({"n": 1}, LATE)
    await (await persist.recent("S", "t", "x", "", True)).write_recent_data({"n": 2}, LATE)
    await (await persist.session("t", "x", "", "S", False)).write_session_data({"n": 3}, LATE)
    await (await persist.session("t", "x", "", "S", True)).write_session_data({"n": 4}, LATE)
    await (await persist.recent("S", "t", "x", "", False)).write_recent_data(None, LATE)
    assert files_of(tmp_path) == {
        "data/recent/S_t_x_backtest/S.json": '{"n":2}',
        "data/recent/S_t_x_live/S.json": "null",
        "session/t/x/S_backtest.json": '{"n":4}',
        "session/t/x/S_live.json": '{"n":3}',
    }
    assert await (await open_dump(tmp_path).session("t", "x", "", "S", False)).read_session_data() == {"n": 3}


async def test_an_entry_keeps_its_place_when_it_is_written_again(tmp_path: Path) -> None:
    """The order is that of the first writes, over restarts, rewrites, removals and revivals."""
    storage, memory = await open_dump(tmp_path).storage(True), await open_dump(tmp_path).memory("s", "b")
    await storage.write_storage_data([{"id": name} for name in ("c", "a", "b")])
    for name in ("c", "a", "b"):
        await memory.write_memory_data({"n": 1}, name, LATE)
    storage, memory = await open_dump(tmp_path).storage(True), await open_dump(tmp_path).memory("s", "b")
    await storage.write_storage_data([{"id": "c", "n": 2}, {"id": "0"}])
    await storage.write_storage_data([{"id": "c", "n": 3}])
    await memory.remove_memory_data("c")
    await memory.write_memory_data({"n": 2}, "c", EARLY)
    storage, memory = await open_dump(tmp_path).storage(True), await open_dump(tmp_path).memory("s", "b")
    assert [entry["id"] for entry in await storage.read_storage_data()] == ["c", "a", "b", "0"]
    assert [name for name, _ in await collect(memory.list_memory_data())] == ["c", "a", "b"]


async def test_a_window_comes_as_columns(tmp_path: Path) -> None:
    """Columns are arrays of int64 and float64, as from MongoDB; there are none when a candle is missing."""
    candles = await open_dump(tmp_path).candle("BTC", "1m", "b")
    assert isinstance(candles, CandleColumns)
    await candles.write_candles_data(candles_from_start(3))
    columns = await candles.read_candle_columns(3, 1_600_000_020_000)
    assert columns is not None
    assert {name: str(column.dtype) for name, column in columns.items()} == {
        "timestamp": "int64",
        **dict.fromkeys(("open", "high", "low", "close", "volume"), "float64"),
    }
    assert columns["timestamp"].tolist() == [1_600_000_020_000, 1_600_000_080_000, 1_600_000_140_000]
    assert columns["high"].tolist() == [12.5] * 3
    assert await candles.read_candle_columns(4, 1_600_000_020_000) is None


async def test_a_window_costs_only_its_stored_candles(tmp_path: Path) -> None:
    """However many candles are asked for, nothing is allocated for the missing ones."""
    candles = await open_dump(tmp_path).candle("A", "1m", "x")
    await candles.write_candles_data(candles_from_start(2))
    tracemalloc.start()
    try:
        assert await candles.read_candles_data(10**6, int(CANDLE["timestamp"])) is None
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


async def test_a_relative_directory_is_below_the_working_directory_of_the_call_that_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A later change of the working directory moves no adapter, whether it was built before or after."""
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "first")
    persist = Registry()
    persist.use_json("dump")
    assert os.listdir() == []  # naming a directory creates nothing
    state = await persist.state("s", "b")
    monkeypatch.chdir(tmp_path / "second")
    await state.write_state_data({"n": 1}, 0)
    await (await persist.log()).write_log_data([{"id": "a"}])
    assert os.listdir() == []
    assert sorted(files_of(tmp_path / "first/dump")) == ["data/log/log/a.json", "state/s/b/b.json"]


def test_a_directory_with_a_zero_character_is_refused() -> None:
    """No system has a path with a zero character."""
    with pytest.raises(SettingsError, match="zero character"):
        open_dump(Path("a\0b"))
