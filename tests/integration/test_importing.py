"""`import_dump`: every value arrives or is reported, and stored documents are never changed."""

import json
import os
from pathlib import Path

import pytest

from backtest_persist import Container, Registry, SettingsError, export_dump, import_dump
from backtest_persist.operations.transfer import importing
from tests.support.dumps import (
    CANDLE_TEXT,
    CANDLE_TIME,
    MINUTE,
    ORIGINAL,
    ORIGINAL_WHEN,
    file_totals,
    files_of,
    stored_documents,
    write_dump,
)


async def test_a_dump_of_the_original_arrives_whole(container: Container, tmp_path: Path) -> None:
    """Every file is a document of the right context, with the payload, the tombstone and the time it says itself."""
    write_dump(tmp_path, ORIGINAL)
    report = await import_dump(container, tmp_path)
    assert file_totals(report) == (len(ORIGINAL), len(ORIGINAL), 0, 0)
    assert report.skipped == []
    sse = {"symbol": "BTCUSDT", "strategyName": "my_strategy", "exchangeName": "binance"}
    stored = await stored_documents(container)
    assert stored["schedule-items"] == [{**sse, "payload": None, "__v": 0}]
    assert stored["partial-items"] == [
        {
            **sse,
            "signalId": "s-1",
            "payload": {"BTC": {"profitLevels": [10, 20], "lossLevels": []}},
            "when": 0,
            "__v": 0,
        }
    ]
    assert stored["risk-items"][0]["positions"] == [
        ["BTCUSDT", {"openTimestamp": 1, "minuteEstimatedTime": float("inf")}]
    ]
    assert {(row["frameName"], row["backtest"], row["when"]) for row in stored["recent-items"]} == {
        ("2024_q1", True, ORIGINAL_WHEN),
        ("", False, ORIGINAL_WHEN),  # the original trades live without a frame
    }
    assert {(row["frameName"], row["symbol"], row["backtest"]) for row in stored["session-items"]} == {
        ("2024_q1", "BTCUSDT", True),
        ("", "BTCUSDT", False),
    }
    assert {(row["entryKey"], row["removed"]) for row in stored["measure-items"]} == {("k1", False), ("k2", True)}
    assert {(row["memoryId"], row["removed"], row["when"]) for row in stored["memory-items"]} == {
        ("m1", False, ORIGINAL_WHEN),
        ("m2", True, ORIGINAL_WHEN),
    }
    assert {row["symbol"] for row in stored["candle-items"]} == {"BTCUSDT", "BTC/USDT:USDT"}
    assert [len(stored[f"{name}-items"]) for name in ("storage", "notification", "log", "candle")] == [4, 2, 2, 4]
    persist = Registry(container)
    window = await (await persist.candle("BTCUSDT", "1m", "binance")).read_candles_data(3, CANDLE_TIME)
    assert window is not None
    signal = await (await persist.signal("BTCUSDT", "my_strategy", "binance")).read_signal_data()
    assert signal == {**json.loads(next(text for path, text in ORIGINAL.items() if "data/signal" in path))} | {
        "minuteEstimatedTime": float("inf")
    }


async def test_a_second_import_stores_nothing_new(container: Container, tmp_path: Path) -> None:
    """Importing again changes no document, not even its dates, and says that all is there already."""
    write_dump(tmp_path, ORIGINAL)
    await import_dump(container, tmp_path)
    signals = container.mongo_service.collection("signal-items")
    before, dates = await stored_documents(container), [row async for row in signals.find({})]
    report = await import_dump(container, tmp_path)
    assert file_totals(report) == (len(ORIGINAL), 0, len(ORIGINAL), 0)
    assert await stored_documents(container) == before
    assert [row async for row in signals.find({})] == dates


async def test_a_dry_run_writes_nothing_at_all(container: Container, tmp_path: Path) -> None:
    """Not even a collection or an index comes into being, and the report is that of the import."""
    write_dump(tmp_path, {**ORIGINAL, "data/storage/live/bad.json": "{"})
    dry = await import_dump(container, tmp_path, dry_run=True)
    assert await container.mongo_service.database.list_collection_names() == []
    assert await container.candle_cache_service.size() == 0
    wet = await import_dump(container, tmp_path)
    dry.seconds = wet.seconds
    assert dry == wet


async def test_what_stands_in_the_database_is_kept_and_reported(container: Container, tmp_path: Path) -> None:
    """A value that a runner has written since is not overwritten, and the file that lost is named."""
    write_dump(tmp_path, ORIGINAL)
    persist = Registry(container)
    signal = await persist.signal("BTCUSDT", "my_strategy", "binance")
    await signal.write_signal_data({"id": "newer"})
    candle = {"timestamp": CANDLE_TIME, "open": 1.0, "high": 2.0, "low": 1.0, "close": 1.5, "volume": 1.0}
    await (await persist.candle("BTCUSDT", "1m", "binance")).write_candles_data([candle])
    report = await import_dump(container, tmp_path)
    assert await signal.read_signal_data() == {"id": "newer"}
    assert await (await persist.candle("BTCUSDT", "1m", "binance")).read_candles_data(1, CANDLE_TIME) == [candle]
    assert {entry.path for entry in report.skipped} == {
        "data/signal/BTCUSDT_my_strategy_binance/BTCUSDT.json",
        f"data/candle/binance/BTCUSDT/1m/{CANDLE_TIME}.json",
    }
    assert all("another value is stored already" in entry.reason for entry in report.skipped)
    assert file_totals(report) == (len(ORIGINAL), len(ORIGINAL) - 2, 0, 2)


SAME = [
    ("data/signal/BTC/USDT_t_binance/BTC/USDT.json", "data/signal/BTC%2FUSDT_t_binance/BTC%2FUSDT.json"),
    ("session/t/e/f/BTC/USDT_backtest.json", "session/t/e/f/BTC%2FUSDT_backtest.json"),
    (f"data/candle/binance/BTC/USDT/1m/{CANDLE_TIME}.json", f"data/candle/binance/BTC%2FUSDT/1m/{CANDLE_TIME}.json"),
]
"""Paths of the original and of the JSON backend for the same context."""


@pytest.mark.parametrize("newer", [0, 1])
@pytest.mark.parametrize("paths", SAME, ids=["signal", "session", "candle"])
async def test_of_two_files_of_one_context_the_newer_is_taken(
    container: Container, tmp_path: Path, paths: tuple[str, str], newer: int
) -> None:
    """The other is reported, in a dry run and a second import as well, and stops nothing around it."""
    beside = f"data/candle/binance/BTC%2FUSDT/1m/{CANDLE_TIME + MINUTE}.json"
    write_dump(tmp_path, {beside: CANDLE_TEXT % (CANDLE_TIME + MINUTE)})
    for path, close, modified in ((paths[newer], "11.5", 1_600_000_060), (paths[1 - newer], "11", 1_600_000_000)):
        write_dump(tmp_path, {path: (CANDLE_TEXT % CANDLE_TIME).replace("11", close)})
        os.utime(tmp_path / path, (modified, modified))
    dry = await import_dump(container, tmp_path, dry_run=True)
    first = await import_dump(container, tmp_path)
    second = await import_dump(container, tmp_path)
    assert file_totals(dry) == file_totals(first) == (3, 2, 0, 1)
    assert file_totals(second) == (3, 0, 2, 1)
    for report in (dry, first, second):
        (skipped,) = report.skipped
        assert skipped.path == paths[1 - newer]
        assert skipped.reason == f"{paths[newer]} holds the same context and is newer"
    rows = [row for rows in (await stored_documents(container)).values() for row in rows]
    assert sorted(row.get("payload", row)["close"] for row in rows) == [11, 11.5]


async def test_an_import_that_was_cut_is_resumed(
    container: Container, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However far it came, running it again ends with the same documents as one that was not cut."""
    candles = {
        f"data/candle/b/BTC/1m/{CANDLE_TIME + n * MINUTE}.json": CANDLE_TEXT % (CANDLE_TIME + n * MINUTE)
        for n in range(250)
    }
    write_dump(tmp_path, {**ORIGINAL, **candles})
    monkeypatch.setattr(importing, "CANDLES_AT_ONCE", 50)
    monkeypatch.setattr(importing, "FILES_AT_ONCE", 2)

    class Cut(Exception):  # noqa: N818
        pass

    class Cutter:
        def __init__(self, cut: int) -> None:
            self.left = cut

        def begin(self, total: int) -> None:
            assert total == len(ORIGINAL) + 250

        def advance(self, done: int) -> None:
            self.left -= 1
            if not self.left:
                raise Cut

    stored = 0
    for cut in (1, 2, 5, 9, 14):
        with pytest.raises(Cut):
            await import_dump(container, tmp_path, progress=Cutter(cut))
        now = sum(map(len, (await stored_documents(container)).values()))
        assert stored <= now < len(ORIGINAL) + 250
        stored = now
    report = await import_dump(container, tmp_path)
    files, new, same, skipped = file_totals(report)
    assert (files, skipped) == (len(ORIGINAL) + 250, 0)
    assert new + same == files
    assert same == stored
    assert sum(map(len, (await stored_documents(container)).values())) == files


async def test_decimals_are_compared_digit_by_digit(container: Container, tmp_path: Path) -> None:
    """A second import finds the same, NaN of any kind too; other digits of the same number are another value."""
    texts = {f"memory/s/b/{name}.json": f'{{"x":{{"$numberDecimal":"{name}"}}}}' for name in ("1.10", "NaN", "sNaN")}
    write_dump(tmp_path, texts)
    assert file_totals(await import_dump(container, tmp_path)) == (3, 3, 0, 0)
    assert file_totals(await import_dump(container, tmp_path)) == (3, 0, 3, 0)
    write_dump(tmp_path, {"memory/s/b/1.10.json": '{"x":{"$numberDecimal":"1.1"}}'})
    report = await import_dump(container, tmp_path)
    assert file_totals(report) == (3, 0, 2, 1)
    assert [skipped.path for skipped in report.skipped] == ["memory/s/b/1.10.json"]


async def test_a_directory_that_cannot_be_meant_is_a_settings_error(container: Container, tmp_path: Path) -> None:
    """No dump, the directory above one, and a target that is in use are refused with what to do."""
    with pytest.raises(SettingsError, match="no directory"):
        await import_dump(container, tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(SettingsError, match="holds no dump"):
        await import_dump(container, tmp_path / "empty")
    write_dump(tmp_path / "dump", ORIGINAL)
    with pytest.raises(SettingsError, match=r"try .*dump"):
        await import_dump(container, tmp_path)
    with pytest.raises(SettingsError, match="not an empty directory"):
        await export_dump(container, tmp_path)
    assert files_of(tmp_path / "dump") == dict(sorted(ORIGINAL.items()))
