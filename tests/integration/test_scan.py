"""The search for the values of a dump: every file is found, or reported with the reason, or counted."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from backtest_persist import Container, Registry, import_dump
from tests.support.dumps import (
    CANDLE_TEXT,
    CANDLE_TIME,
    MINUTE,
    ORIGINAL,
    file_totals,
    stored_documents,
    write_dump,
)

MALFORMED = {
    "data/storage/live/cut.json": '{"id": "cut',
    "data/storage/live/list.json": "[1]",
    "data/storage/live/null.json": "null",
    "data/storage/live/renamed.json": '{"id":"other"}',
    "data/storage/paper/x.json": '{"id":"x"}',
    "data/storage/live/deep/x.json": '{"id":"x"}',
    "data/storage/live/notes.txt": "hello",
    "data/storage/live/.tmp-12-x.json": "{",
    "data/storage/live/huge.json": '{"id":"huge","n":123456789012345678901234567890}',
    "data/log/x.json": '{"id":"x"}',
    "data/risk/max_binance/other.json": "[]",
    "data/risk/min_binance/positions.json": '{"no":"list"}',
    "data/risk/alone/positions.json": "[]",
    "data/signal/A_B_C/D.json": '{"id":"x"}',
    "data/signal/A_B/A.json": '{"id":"x"}',
    "data/candle/binance/BTC/1w/1600000020000.json": CANDLE_TEXT % CANDLE_TIME,
    "data/candle/binance/BTC/1m/1600000020000.json": CANDLE_TEXT % (CANDLE_TIME + MINUTE),
    "data/candle/binance/BTC/1m/1600000020001.json": CANDLE_TEXT % (CANDLE_TIME + 1),
    "data/candle/binance/BTC/1m/now.json": CANDLE_TEXT % CANDLE_TIME,
    "data/candle/binance/BTC/1m/1600000140000.json": '{"timestamp":1600000140000,"open":10}',
    "data/candle/binance/BTC/1m/1600000200000.json": (CANDLE_TEXT % 1_600_000_200_000).replace("12", "1"),
    "data/candle/binance/BTC/1m/4102444800000.json": CANDLE_TEXT % 4_102_444_800_000,
    "data/candle/binance/BTC/1m/1600000260000.json": "\x00",
    f"data/candle/binance/BTC%00/1m/{CANDLE_TIME}.json": CANDLE_TEXT % CANDLE_TIME,
    os.fsdecode(b"data/candle/binance/\xff/1m/%d.json" % CANDLE_TIME): CANDLE_TEXT % CANDLE_TIME,
    os.fsdecode(b"data/partial/A_\xff_e/s.json"): "{}",
    "state/s/b/c.json": "{}",
    "session/t/b/f/nothing.json": "{}",
    "memory/s/b/deeper/m.json": "{}",
}


async def test_a_malformed_file_stops_nothing_and_is_always_reported(container: Container, tmp_path: Path) -> None:
    """Each is in the report, once, with a reason; every good file beside them is stored."""
    write_dump(tmp_path, {**ORIGINAL, **MALFORMED})
    (tmp_path / "data/storage/live" / os.fsdecode(b"\xff.json")).write_text("{}")
    report = await import_dump(container, tmp_path)
    reported = [entry.path for entry in report.skipped]
    assert set(MALFORMED) <= set(reported)
    assert len(reported) == len(set(reported)) == len(MALFORMED) + 1
    assert all(entry.reason for entry in report.skipped)
    assert file_totals(report) == (len(ORIGINAL) + len(reported), len(ORIGINAL), 0, len(reported))


async def test_what_the_hidden_directory_says_may_be_damaged(container: Container, tmp_path: Path) -> None:
    """A file whose names cannot be told is reported with the reason; every other is stored."""
    write_dump(tmp_path, ORIGINAL)
    registry, long = Registry(container), "x" * 300
    registry.use_json(tmp_path)
    await (await registry.signal("A_B", "C", "e")).write_signal_data({"n": 1})
    await (await registry.recent("A_B", "C", "e", "f", True)).write_recent_data({"n": 1}, 0)
    await (await registry.measure("b")).write_measure_data({"n": 1}, long, 0)
    await (await registry.measure("b")).write_measure_data({"n": 1}, "short", 0)
    labels = sorted((tmp_path / ".backtest-persist/labels").rglob("*.json"))
    assert [label.parent.name for label in labels] == ["b", "recent", "signal"]
    for label, text in zip(labels, ("", '["A_B","C"]', "{"), strict=True):
        label.write_text(text)
    report = await import_dump(container, tmp_path)
    assert file_totals(report) == (len(ORIGINAL) + 4, len(ORIGINAL) + 1, 0, 3)
    measure, recent, signal = sorted(entry.path for entry in report.skipped)
    assert measure.startswith("data/measure/b/xxx")
    assert (recent, signal) == ("data/recent/A_B_C_e_f_backtest/A_B.json", "data/signal/A_B_C_e/A_B.json")
    assert all(entry.reason for entry in report.skipped)


async def test_links_are_followed_but_not_in_circles(container: Container, tmp_path: Path) -> None:
    """Files behind a link are imported as the JSON backend reads them; a circular and a broken link are reported."""
    root, elsewhere = tmp_path / "dump", tmp_path / "elsewhere"
    write_dump(root, ORIGINAL)
    elsewhere.mkdir()
    for directory in ("data/signal/BTCUSDT_my_strategy_binance", "data/candle/binance", "state"):
        (root / directory).rename(elsewhere / Path(directory).name)
        (root / directory).symlink_to(elsewhere / Path(directory).name)
    (root / "state/back").symlink_to(root)
    (root / "data/log/self").symlink_to(root / "data/log/self")
    (root / "data/log/log/up").symlink_to("..")
    report = await import_dump(container, root)
    assert {entry.path: entry.reason for entry in report.skipped} == {
        "data/log/log/up": "a link to a directory that contains it",
        "data/log/self": "not a JSON file",
        "state/back": "a link to a directory that contains it",
    }
    assert file_totals(report) == (len(ORIGINAL) + 3, len(ORIGINAL), 0, 3)
    (root / "state").unlink()
    (root / "state").symlink_to(tmp_path / "unmounted")
    report = await import_dump(container, root)
    assert [entry.reason for entry in report.skipped if entry.path == "state"] == [
        "cannot be read: No such file or directory"
    ]


SCAN_AS_NOBODY = """
import json, os, sys
from pathlib import Path
from backtest_persist import SettingsError
from backtest_persist.backends.json.layout import LAYOUTS
from backtest_persist.operations.transfer.importing import scan_dump
if os.geteuid() == 0:
    os.setgroups([]), os.setgid(65534), os.setuid(65534)
try:
    scan = scan_dump(Path(sys.argv[1]), LAYOUTS)
    skipped = [(skipped.path, skipped.reason) for files in scan.skipped.values() for skipped in files]
    print(json.dumps([sum(map(len, scan.found.values())), skipped]))
except SettingsError as error:
    print(json.dumps([str(error)]))
"""


def scan_as_nobody(root: Path) -> Any:
    """How many values another user finds, and what is reported."""
    done = subprocess.run([sys.executable, "-c", SCAN_AS_NOBODY, root], capture_output=True, check=True)
    return json.loads(done.stdout)


def test_a_directory_that_cannot_be_read_is_reported() -> None:
    """It stops nothing if it belongs to one domain; without the whole directory nothing is imported."""
    with tempfile.TemporaryDirectory(dir="/tmp") as public:
        os.chmod(public, 0o755)
        root = Path(public) / "dump"
        write_dump(root, ORIGINAL)
        assert scan_as_nobody(root) == [len(ORIGINAL), []]
        closed = [root / "data/candle", root / "data/storage/live", root / "session/my_strategy"]
        lost = sum(len(list(directory.rglob("*.json"))) for directory in closed)
        try:
            for directory in closed:
                directory.chmod(0)
            found, skipped = scan_as_nobody(root)
            assert found == len(ORIGINAL) - lost
            assert sorted(skipped) == [
                [str(directory.relative_to(root)), "cannot be read: Permission denied"] for directory in closed
            ]
            for directory in (root / "data", root):
                directory.chmod(0)
                assert scan_as_nobody(root) == [f"{directory} cannot be read: Permission denied."]
        finally:
            for directory in (root, root / "data", *closed):
                directory.chmod(0o755)


async def test_what_is_no_persisted_data_is_counted(container: Container, tmp_path: Path) -> None:
    """Other things the framework writes into its dump directory are named, and left alone."""
    others = {"report/a.jsonl": "", "report/b/c.jsonl": "", "data/other/A_B_C/A.json": "{}", "notes.txt": ""}
    write_dump(tmp_path, {**ORIGINAL, **others})
    report = await import_dump(container, tmp_path)
    assert report.ignored == {"data/other": 1, "report": 2, "notes.txt": 1}
    assert report.skipped == []


@pytest.mark.parametrize(
    ("path", "hints", "expected"),
    [
        ("data/partial/BTC_my_trend_binance/s.json", {}, ("BTC", "my_trend", "binance")),
        ("data/partial/BTC_trend_gate_io/s.json", {"exchanges": ["gate_io"]}, ("BTC", "trend", "gate_io")),
        ("data/partial/BTC_USDT_trend_gate/s.json", {"candle": ("gate", "BTC_USDT")}, ("BTC_USDT", "trend", "gate")),
        ("data/signal/BTC_USDT_trend_gate/BTC_USDT.json", {}, ("BTC_USDT", "trend", "gate")),
        (
            "data/signal/BTC_a_b_c/BTC.json",
            {"payload": {"strategyName": "a", "exchangeName": "b_c"}},
            ("BTC", "a", "b_c"),
        ),
        ("data/signal/BTC/USDT_trend_binance/BTC/USDT.json", {}, ("BTC/USDT", "trend", "binance")),
    ],
)
async def test_a_joined_name_is_split_by_what_is_known(
    container: Container, tmp_path: Path, path: str, hints: dict[str, Any], expected: tuple[str, ...]
) -> None:
    """The symbol of the file, the payload, known exchanges and symbols decide, in the end the rule; it is reported."""
    write_dump(tmp_path, {path: json.dumps(hints.get("payload", {"id": "x"}))})
    if "candle" in hints:
        exchange, symbol = hints["candle"]
        write_dump(tmp_path, {f"data/candle/{exchange}/{symbol}/1m/{CANDLE_TIME}.json": CANDLE_TEXT % CANDLE_TIME})
    report = await import_dump(container, tmp_path, exchanges=hints.get("exchanges", ()))
    domain = path.split("/")[1]
    (row,) = (await stored_documents(container))[f"{domain}-items"]
    assert (row["symbol"], row["strategyName"], row["exchangeName"]) == expected
    assert (path.rpartition("/")[0] in report.assumed) == (path == "data/partial/BTC_my_trend_binance/s.json")
