"""Import and export: everything arrives or is reported, nothing that stands is touched, and the way back is exact."""

import json
import os
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from bson import ObjectId

from backtest_persist import Container, Registry, Settings, SettingsError
from backtest_persist.core.row import STORED
from backtest_persist.operations.transfer import dump as transfer
from backtest_persist.operations.transfer.dump import Imported, export_dump, import_dump
from tests.support.cases import CASES
from tests.support.dumps import ORIGINAL, ORIGINAL_WHEN, files_of, write_dump

Documents = dict[str, list[dict[str, Any]]]
MINUTE = 60_000
START = 1_600_000_020_000


async def documents(container: Container) -> Documents:
    """All documents as they are stored, without ids and dates, by collection."""
    found: Documents = {}
    for service in container.db_services:
        collection = container.mongo_service.collection(service.collection)
        rows = [document async for document in collection.find({}).sort([("createDate", 1), ("_id", 1)])]
        for row in rows:
            assert isinstance(row.pop("_id"), ObjectId)
            del row["createDate"], row["updatedDate"]
        if rows:
            found[service.collection] = rows
    return found


def totals(report: Imported) -> tuple[int, int, int, int]:
    counts = report.domains.values()
    files, new = sum(count.files for count in counts), sum(count.new for count in counts)
    return files, new, sum(count.same for count in counts), sum(count.skipped for count in counts)


async def test_a_dump_of_the_original_arrives_whole(container: Container, tmp_path: Path) -> None:
    """Every file is a document of the right context, with the payload, the tombstone and the time it says itself."""
    write_dump(tmp_path, ORIGINAL)
    report = await import_dump(container, tmp_path)
    assert totals(report) == (len(ORIGINAL), len(ORIGINAL), 0, 0)
    assert report.skipped == []
    sse = {"symbol": "BTCUSDT", "strategyName": "my_strategy", "exchangeName": "binance"}
    stored = await documents(container)
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
    window = await (await persist.candle("BTCUSDT", "1m", "binance")).read_candles_data(3, START)
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
    before, dates = await documents(container), [row async for row in signals.find({})]
    report = await import_dump(container, tmp_path)
    assert totals(report) == (len(ORIGINAL), 0, len(ORIGINAL), 0)
    assert await documents(container) == before
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
    candle = {"timestamp": START, "open": 1.0, "high": 2.0, "low": 1.0, "close": 1.5, "volume": 1.0}
    await (await persist.candle("BTCUSDT", "1m", "binance")).write_candles_data([candle])
    report = await import_dump(container, tmp_path)
    assert await signal.read_signal_data() == {"id": "newer"}
    assert await (await persist.candle("BTCUSDT", "1m", "binance")).read_candles_data(1, START) == [candle]
    assert {entry.path for entry in report.skipped} == {
        "data/signal/BTCUSDT_my_strategy_binance/BTCUSDT.json",
        f"data/candle/binance/BTCUSDT/1m/{START}.json",
    }
    assert all("another value is stored already" in entry.reason for entry in report.skipped)
    assert totals(report) == (len(ORIGINAL), len(ORIGINAL) - 2, 0, 2)


GOOD = '{"timestamp":%d,"open":10,"high":12,"low":9,"close":11,"volume":1}'
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
    "data/candle/binance/BTC/1w/1600000020000.json": GOOD % START,
    "data/candle/binance/BTC/1m/1600000020000.json": GOOD % (START + MINUTE),
    "data/candle/binance/BTC/1m/1600000020001.json": GOOD % (START + 1),
    "data/candle/binance/BTC/1m/now.json": GOOD % START,
    "data/candle/binance/BTC/1m/1600000140000.json": '{"timestamp":1600000140000,"open":10}',
    "data/candle/binance/BTC/1m/1600000200000.json": (GOOD % 1_600_000_200_000).replace("12", "1"),
    "data/candle/binance/BTC/1m/4102444800000.json": GOOD % 4_102_444_800_000,
    "data/candle/binance/BTC/1m/1600000260000.json": "\x00",
    f"data/candle/binance/BTC%00/1m/{START}.json": GOOD % START,
    os.fsdecode(b"data/candle/binance/\xff/1m/%d.json" % START): GOOD % START,
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
    assert totals(report) == (len(ORIGINAL) + len(reported), len(ORIGINAL), 0, len(reported))


async def test_what_the_hidden_directory_says_may_be_damaged(container: Container, tmp_path: Path) -> None:
    """A file whose names cannot be told is reported with the reason; every other is stored."""
    write_dump(tmp_path, ORIGINAL)
    registry, long = Registry(container), "x" * 300
    registry.use_json(tmp_path)
    await (await registry.signal("A_B", "C", "e")).write_signal_data({"n": 1})
    await (await registry.recent("A_B", "C", "e", "f", True)).write_recent_data({"n": 1}, 1)
    await (await registry.measure("b")).write_measure_data({"n": 1}, long, 1)
    await (await registry.measure("b")).write_measure_data({"n": 1}, "short", 1)
    labels = sorted((tmp_path / ".backtest-persist/labels").rglob("*.json"))
    assert [label.parent.name for label in labels] == ["b", "recent", "signal"]
    for label, text in zip(labels, ("", '["A_B","C"]', "{"), strict=True):
        label.write_text(text)
    report = await import_dump(container, tmp_path)
    assert totals(report) == (len(ORIGINAL) + 4, len(ORIGINAL) + 1, 0, 3)
    measure, recent, signal = sorted(entry.path for entry in report.skipped)
    assert measure.startswith("data/measure/b/xxx")
    assert (recent, signal) == ("data/recent/A_B_C_e_f_backtest/A_B.json", "data/signal/A_B_C_e/A_B.json")
    assert all(entry.reason for entry in report.skipped)


async def test_links_are_followed_but_not_in_circles(container: Container, tmp_path: Path) -> None:
    """What lies behind a link is imported as the JSON backend reads it; a circle and a dead end are reported."""
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
        "data/log/log/up": "a link to a directory that it lies in",
        "data/log/self": "no JSON file",
        "state/back": "a link to a directory that it lies in",
    }
    assert totals(report) == (len(ORIGINAL) + 3, len(ORIGINAL), 0, 3)
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
from backtest_persist.operations.transfer.dump import _scan
if os.geteuid() == 0:
    os.setgroups([]), os.setgid(65534), os.setuid(65534)
try:
    scan = _scan(Path(sys.argv[1]))
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
    others = {"report/a.jsonl": "", "report/b/c.jsonl": "", "data/strategy/A_B_C/A.json": "{}", "notes.txt": ""}
    write_dump(tmp_path, {**ORIGINAL, **others})
    report = await import_dump(container, tmp_path)
    assert report.ignored == {"data/strategy": 1, "report": 2, "notes.txt": 1}
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
        write_dump(tmp_path, {f"data/candle/{exchange}/{symbol}/1m/{START}.json": GOOD % START})
    report = await import_dump(container, tmp_path, exchanges=hints.get("exchanges", ()))
    domain = path.split("/")[1]
    (row,) = (await documents(container))[f"{domain}-items"]
    assert (row["symbol"], row["strategyName"], row["exchangeName"]) == expected
    assert (path.rpartition("/")[0] in report.assumed) == (path == "data/partial/BTC_my_trend_binance/s.json")


SAME = [
    ("data/signal/BTC/USDT_t_binance/BTC/USDT.json", "data/signal/BTC%2FUSDT_t_binance/BTC%2FUSDT.json"),
    ("session/t/e/f/BTC/USDT_backtest.json", "session/t/e/f/BTC%2FUSDT_backtest.json"),
    (f"data/candle/binance/BTC/USDT/1m/{START}.json", f"data/candle/binance/BTC%2FUSDT/1m/{START}.json"),
]
"""What the original and the JSON backend name the files of one context."""


@pytest.mark.parametrize("newer", [0, 1])
@pytest.mark.parametrize("paths", SAME, ids=["signal", "session", "candle"])
async def test_of_two_files_of_one_context_the_newer_is_taken(
    container: Container, tmp_path: Path, paths: tuple[str, str], newer: int
) -> None:
    """The other is reported, in a dry run and a second import as well, and stops nothing around it."""
    beside = f"data/candle/binance/BTC%2FUSDT/1m/{START + MINUTE}.json"
    write_dump(tmp_path, {beside: GOOD % (START + MINUTE)})
    for path, close, modified in ((paths[newer], "11.5", 1_600_000_060), (paths[1 - newer], "11", 1_600_000_000)):
        write_dump(tmp_path, {path: (GOOD % START).replace("11", close)})
        os.utime(tmp_path / path, (modified, modified))
    dry = await import_dump(container, tmp_path, dry_run=True)
    first = await import_dump(container, tmp_path)
    second = await import_dump(container, tmp_path)
    assert totals(dry) == totals(first) == (3, 2, 0, 1)
    assert totals(second) == (3, 0, 2, 1)
    for report in (dry, first, second):
        (skipped,) = report.skipped
        assert skipped.path == paths[1 - newer]
        assert skipped.reason == f"{paths[newer]} holds the same context, and was taken"
    rows = [row for rows in (await documents(container)).values() for row in rows]
    assert sorted(row.get("payload", row)["close"] for row in rows) == [11, 11.5]


async def test_an_import_that_was_cut_is_resumed(
    container: Container, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However far it came, running it again ends with the same documents as one that was not cut."""
    candles = {f"data/candle/b/BTC/1m/{START + n * MINUTE}.json": GOOD % (START + n * MINUTE) for n in range(250)}
    write_dump(tmp_path, {**ORIGINAL, **candles})
    monkeypatch.setattr(transfer, "CANDLES_AT_ONCE", 50)
    monkeypatch.setattr(transfer, "FILES_AT_ONCE", 2)

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
        now = sum(map(len, (await documents(container)).values()))
        assert stored <= now < len(ORIGINAL) + 250
        stored = now
    report = await import_dump(container, tmp_path)
    files, new, same, skipped = totals(report)
    assert (files, skipped) == (len(ORIGINAL) + 250, 0)
    assert new + same == files
    assert same == stored
    assert sum(map(len, (await documents(container)).values())) == files


async def test_import_of_an_export_gives_identical_documents(
    container: Container, settings: Settings, tmp_path: Path
) -> None:
    """Every domain, hostile names, all types, tombstones, null payloads and the order of lists survive the way."""
    for case in CASES:
        service = getattr(container, f"{case.domain}_db_service")
        if case.domain == "candle":
            await service.create(*case.args[:3], *case.written)
        else:
            await service.upsert(*case.args, *case.written)
    names = ["a/b", "..", "A_B", "x" * 3000, "é😀", "%2F", ".hidden", "CON", "a\nb", "a:b"]
    odd = {"d": Decimal("1.10"), "t": datetime(2024, 1, 1, tzinfo=UTC), "b": b"\0", "n": float("-inf"), "$date": 1}
    for name in names:
        await container.signal_db_service.upsert(name, "B_C", name, {**odd, "minuteEstimatedTime": None})
        await container.partial_db_service.upsert("A", name, "B_C", name, {"minuteEstimatedTime": float("inf")}, -5)
        await container.recent_db_service.upsert(name, "t", "e", name, False, None, 5)
        await container.session_db_service.upsert(name, "e", name, name, True, {"n": 1}, 2**62)
        await container.state_db_service.upsert(name, name, odd, 7)
        await container.memory_db_service.upsert(name, "b", name, None, 7)
        await container.memory_db_service.upsert("s", "b", name, {"n": 1}, 7)
    await container.memory_db_service.upsert("s", "b", "tagged", {"$date": "today"}, 7)
    await container.memory_db_service.soft_remove("s", "b", "tagged")
    await container.memory_db_service.soft_remove("s", "b", "..")
    await container.memory_db_service.soft_remove("..", "b", "..")
    await container.storage_db_service.upsert_many(True, [{"id": name, **odd} for name in names])
    await container.log_db_service.create_many([{"id": f"{n}"} for n in range(1200)])
    await container.candle_db_service.create_many(
        "A/B", "1m", "x_y", [json.loads(GOOD % (START + n * MINUTE)) for n in range(100)]
    )
    before = await documents(container)

    exported = await export_dump(container, tmp_path / "dump")
    assert exported.skipped == []
    assert sum(exported.domains.values()) == sum(map(len, before.values()))
    await container.mongo_service.client.drop_database(container.mongo_service.database.name)
    async with Container(settings) as other:
        report = await import_dump(other, tmp_path / "dump")
        assert report.skipped == []
        assert report.assumed == {}
        after = await documents(other)
        assert after.keys() == before.keys()
        for collection, rows in before.items():
            if collection in ("storage-items", "log-items", "memory-items"):
                assert after[collection] == rows  # in the same order
            else:
                assert sorted(after[collection], key=repr) == sorted(rows, key=repr)
        again = tmp_path / "again"
        await export_dump(other, again)
        assert files_of(again) == files_of(tmp_path / "dump")


async def test_the_json_backend_reads_an_export_and_an_import_reads_its_files(
    container: Container, tmp_path: Path
) -> None:
    """Strategy state moves between the two backends with the time it was written for."""
    mongo, files = Registry(container), Registry(container)
    state = await mongo.state("s_1", "b")
    await state.write_state_data({"at": datetime(2024, 1, 1, tzinfo=UTC)}, ORIGINAL_WHEN)
    await export_dump(container, tmp_path / "dump")
    files.use_json(tmp_path / "dump")
    mine = await files.state("s_1", "b")
    assert await mine.read_state_data(when=ORIGINAL_WHEN - 1) is None
    assert await mine.read_state_data(when=ORIGINAL_WHEN) == {"at": datetime(2024, 1, 1, tzinfo=UTC)}
    await (await files.recent("A_B", "C", "x", "f", False)).write_recent_data({"n": 1}, 5)
    await import_dump(container, tmp_path / "dump")
    recent = await mongo.recent("A_B", "C", "x", "f", False)
    assert await recent.read_recent_data(when=4) is None
    assert await recent.read_recent_data(when=5) == {"n": 1}


NOW = datetime(2024, 1, 1, tzinfo=UTC)
CANDLE = {"exchangeName": "b", "symbol": "S", "interval": "1m", "timestamp": START, **json.loads(GOOD % START)}
LOST: list[tuple[str, dict[str, Any], str]] = [
    ("signal", {"symbol": "foreign type", "payload": {"x": ObjectId()}}, "no exact form"),
    ("signal", {"symbol": "no payload"}, "see payload"),
    ("signal", {"symbol": "no mapping", "payload": 5}, "see payload"),
    ("signal", {"symbol": "no date", "payload": {}, "createDate": None}, "see createDate"),
    ("signal", {"symbol": 5, "payload": {}}, "symbol must be a str"),
    ("session", {"symbol": "no frame", "frameName": "", "backtest": True, "payload": {}, "when": 0}, "frame_name"),
    ("candle", {**CANDLE, "open": float("nan")}, "open must be a finite number"),
    ("candle", {**CANDLE, "high": 0.0, "symbol": "T"}, "high is below"),
    ("candle", {**CANDLE, "interval": "1w"}, "interval must be one of"),
]
"""Documents of other programs that have no form in a dump, by domain, and why."""


async def test_an_export_leaves_nothing_out_in_silence(container: Container, tmp_path: Path) -> None:
    """A foreign document that has no form in a dump is named, and all others are written, before it and after it."""
    expected: list[tuple[str, str]] = []
    await container.candle_db_service.create("a", "1m", "e", json.loads(GOOD % START))
    await container.signal_db_service.upsert("a", "s", "e", {"n": 1})
    for domain, document, reason in LOST:
        whole = {"strategyName": "s", "exchangeName": "e", "createDate": NOW, "updatedDate": NOW, "__v": 0, **document}
        inserted = await container.mongo_service.collection(f"{domain}-items").insert_one(whole)
        expected.append((f"{domain}-items {inserted.inserted_id}", reason))
    await container.signal_db_service.upsert("z", "s", "e", {"n": 1})
    await container.state_db_service.upsert("s", "b", {"n": 1}, 0)

    class Advanced:
        total = done = 0

        def begin(self, total: int) -> None:
            self.total = total

        def advance(self, done: int) -> None:
            self.done += done

    progress = Advanced()
    report = await export_dump(container, tmp_path / "dump", progress=progress)
    assert progress.total == progress.done == len(LOST) + 4
    assert len(report.skipped) == len(LOST)
    reasons = {entry.path: entry.reason for entry in report.skipped}
    assert [name for name, reason in expected if reason not in reasons[name]] == []
    assert list(files_of(tmp_path / "dump")) == [
        f"data/candle/e/a/1m/{START}.json",
        "data/signal/a_s_e/a.json",
        "data/signal/z_s_e/z.json",
        "state/s/b/b.json",
    ]
    again = await import_dump(container, tmp_path / "dump")
    assert totals(again) == (4, 0, 4, 0)


async def test_an_export_takes_dates_that_another_program_wrote_as_text(container: Container, tmp_path: Path) -> None:
    """Of a date only the order is kept, so one without a time zone will do."""
    await container.signal_db_service.upsert("a", "s", "e", {"n": 1})
    signals = container.mongo_service.collection("signal-items")
    await signals.update_one({}, {"$set": {"createDate": "2024-01-01T00:00:00"}})
    report = await export_dump(container, tmp_path)
    assert (report.domains["signal"], report.skipped) == (1, [])


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


async def test_decimals_are_compared_digit_by_digit(container: Container, tmp_path: Path) -> None:
    """A second import finds the same, NaN of any kind too; other digits of the same number are another value."""
    texts = {f"memory/s/b/{name}.json": f'{{"x":{{"$numberDecimal":"{name}"}}}}' for name in ("1.10", "NaN", "sNaN")}
    write_dump(tmp_path, texts)
    assert totals(await import_dump(container, tmp_path)) == (3, 3, 0, 0)
    assert totals(await import_dump(container, tmp_path)) == (3, 0, 3, 0)
    write_dump(tmp_path, {"memory/s/b/1.10.json": '{"x":{"$numberDecimal":"1.1"}}'})
    report = await import_dump(container, tmp_path)
    assert totals(report) == (3, 0, 2, 1)
    assert [skipped.path for skipped in report.skipped] == ["memory/s/b/1.10.json"]


async def test_a_long_name_beside_an_empty_frame_comes_back(
    container: Container, settings: Settings, tmp_path: Path
) -> None:
    """The directory that has no frame is read with what is noted of the others."""
    sessions = container.session_db_service
    name = "s" * 201
    context = sessions.context_type.model_validate(
        {"strategy_name": name, "exchange_name": "e", "frame_name": "", "symbol": "B", "backtest": False},
        context=STORED,
    )
    await sessions.mongo_store.restore([(context, {"payload": {"n": 1}, "when": 5})])
    before = await documents(container)
    assert (await export_dump(container, tmp_path / "dump")).skipped == []
    await container.mongo_service.client.drop_database(container.mongo_service.database.name)
    async with Container(settings) as another:
        assert (await import_dump(another, tmp_path / "dump")).skipped == []
        assert await documents(another) == before


async def test_an_entry_whose_id_is_another_has_no_form_in_a_dump(container: Container, tmp_path: Path) -> None:
    """It would not come back; the export says so."""
    await container.storage_db_service.upsert(True, "right", {"id": "right"})
    await container.storage_db_service.upsert(True, "S1", {"id": "another"})
    report = await export_dump(container, tmp_path / "dump")
    assert [skipped.reason for skipped in report.skipped] == ["Its name is not the 'id' of what it holds."]
    assert report.domains["storage"] == 1


@pytest.mark.parametrize("name", ["x" * 300, "a\0b"])
async def test_an_export_into_what_cannot_be_a_directory_is_refused(
    container: Container, tmp_path: Path, name: str
) -> None:
    """As a setting that cannot be used."""
    with pytest.raises(SettingsError, match=r"cannot be read|zero character"):
        await export_dump(container, tmp_path / name)
