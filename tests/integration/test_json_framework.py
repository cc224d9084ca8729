"""Dumps of the TypeScript framework: read in every domain, never changed, and written beside."""

import json
import os
from pathlib import Path

import pytest

from tests.support.dumps import ORIGINAL, ORIGINAL_WHEN, files_of, write_dump
from tests.support.json_backend import CANDLE, candles_from_start, collect, open_dump


async def test_a_dump_of_the_framework_is_read_in_every_domain(tmp_path: Path) -> None:
    """Values of backtest-kit are read, infinity and tombstones included, and hidden before the times they contain."""
    write_dump(tmp_path, ORIGINAL)
    persist, before = open_dump(tmp_path), ORIGINAL_WHEN - 1
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
    assert await (await persist.recent(*sse, "", False)).read_recent_data() is not None  # live, so without a frame
    assert await (await persist.session(*sse[1:], "", sse[0], False)).read_session_data() is not None
    state = await persist.state("s-1", "stop")
    assert await state.read_state_data(when=before) is None
    assert await state.read_state_data(when=ORIGINAL_WHEN) is not None
    session = await persist.session("my_strategy", "binance", "2024_q1", "BTCUSDT", True)
    assert await session.read_session_data(when=before) is None
    assert await session.read_session_data() is not None
    assert files_of(tmp_path, hidden=True) == dict(sorted(ORIGINAL.items()))  # reading changes nothing


async def test_a_directory_of_the_framework_belongs_to_its_first_writer(tmp_path: Path) -> None:
    """All contexts with the same joined name see what is in its directory, until one of them writes."""
    write_dump(tmp_path, {"data/signal/A_B_C_x/A.json": '{"n":0}'})
    assert await (await open_dump(tmp_path).signal("A", "B_C", "x")).read_signal_data() == {"n": 0}
    writer, other = await open_dump(tmp_path).signal("A", "B", "C_x"), await open_dump(tmp_path).signal("A", "B_C", "x")
    assert await writer.read_signal_data() == {"n": 0}
    await writer.write_signal_data({"n": 1})
    assert await writer.read_signal_data() == {"n": 1}
    assert await other.read_signal_data() is None


async def test_a_name_with_a_slash_is_found_where_the_framework_nests_it(tmp_path: Path) -> None:
    """Values, windows and lists are read from the directories that it makes of the name; reading changes nothing."""
    nested = {
        "data/signal/BTC/USDT_t_x/BTC/USDT.json": '{"id":"a"}',
        "data/partial/BTC/USDT_t_x/s-1.json": '{"n":1}',
        "data/risk/a/b_x/positions.json": "[1]",
        "data/recent/BTC/USDT_t_x_f_backtest/BTC/USDT.json": '{"timestamp":-5}',
        "session/t/x/f/BTC/USDT_live.json": '{"when":-5}',
        "state/s/1/b/c/b/c.json": '{"when":-5}',
        "data/measure/a/b/k.json": '{"n":1}',
        "data/measure/a/b/gone.json": '{"removed":true}',
        "data/measure/a/b/http/k.json": '{"n":2}',
        "memory/s/1/b/m.json": '{"n":1}',
    }
    write_dump(tmp_path, {**ORIGINAL, **nested})
    persist = open_dump(tmp_path)
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
        assert await read(when=-6) is None
        assert await read(when=-5) is not None
    measure, memory = await persist.measure("a/b"), await persist.memory("s/1", "b")
    assert await measure.read_measure_data("k") == {"n": 1}
    assert await measure.read_measure_data("http/k") == {"n": 2}
    assert await collect(measure.list_measure_data()) == ["k"]  # the framework does not list what it has nested, either
    assert await collect(memory.list_memory_data()) == [("m", {"n": 1})]
    assert await memory.has_memory_data("m") is True
    assert files_of(tmp_path, hidden=True) == dict(sorted({**ORIGINAL, **nested}.items()))


async def test_a_write_to_a_name_with_a_slash_replaces_the_nested_value_of_the_framework(tmp_path: Path) -> None:
    """The file of the framework stays, the value keeps its place in lists and can be removed, and a candle stays."""
    nested = {f"data/measure/a/b/{name}.json": '{"n":0}' for name in "cab"}
    nested["data/signal/BTC/USDT_t_x/BTC/USDT.json"] = '{"n":0}'
    write_dump(tmp_path, {**ORIGINAL, **nested})
    for age, name in enumerate("bac"):
        os.utime(tmp_path / f"data/measure/a/b/{name}.json", (1_000_000 - age, 1_000_000 - age))
    persist = open_dump(tmp_path)
    signal, measure = await persist.signal("BTC/USDT", "t", "x"), await persist.measure("a/b")
    await signal.write_signal_data({"n": 1})
    await measure.remove_measure_data("a")
    await measure.write_measure_data({"n": 1}, "c", 0)
    await measure.write_measure_data({"n": 1}, "new", 0)
    candles = await persist.candle("BTC/USDT:USDT", "1m", "binance")
    await candles.write_candles_data([{**CANDLE, "close": 9.5}, candles_from_start(2)[1]])
    for again in (persist, open_dump(tmp_path)):
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
async def test_only_plain_directories_are_read_for_a_name_with_a_slash(tmp_path: Path, symbol: str) -> None:
    """Nothing above, beside or hidden in the dump is read, nor the file that belongs to another name."""
    root = tmp_path / "dump"
    write_dump(root, {f"data/signal/{symbol}_t_x/{symbol}.json": "{}"})
    assert await (await open_dump(root).signal(symbol, "t", "x")).read_signal_data() is None


async def test_a_value_with_a_lone_surrogate_can_be_removed(tmp_path: Path) -> None:
    """A lone surrogate is written as an escape, as JavaScript does."""
    file = tmp_path / "memory/s/b/m.json"
    file.parent.mkdir(parents=True)
    file.write_text('{"text":"\\ud800"}')
    memory = await open_dump(tmp_path).memory("s", "b")
    assert await memory.read_memory_data("m") == {"text": "\ud800"}
    await memory.remove_memory_data("m")
    assert await memory.read_memory_data("m") is None
    assert json.loads(file.read_text()) == {"text": "\ud800", "removed": True}
