"""The store of candles: what becomes of each, corrections of a series, the last of it, and reads of any size."""

import asyncio
import json
import logging
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backtest_persist import (
    CandleReport,
    Container,
    DummyBackend,
    InvalidKeyError,
    InvalidPayloadError,
    JsonBackend,
    Mode,
    PersistCandleInstance,
    Registry,
    Settings,
)
from backtest_persist.core.candles import mongo, store
from backtest_persist.core.mongo_store import MongoStore
from backtest_persist.domains.candle import CandleDbService
from tests.support.commands import monitored_container
from tests.support.dumps import files_of

MINUTE, DAY = 60_000, 86_400_000
START = 18_519 * DAY
KEY = ("BTC/USDT:USDT", "1m", "binance")
RANGE = (START + 3 * MINUTE, START + 6 * MINUTE)


@pytest.fixture(scope="session")
def driver() -> str:
    """One driver: what the two do differently is in `test_candles`."""
    return "motor"


@pytest.fixture(params=["mongo", "json"])
def db(request: pytest.FixtureRequest, container: Container, tmp_path: Path) -> CandleDbService:
    """Return the db service of candles of each backend that keeps some."""
    adapter: Any = JsonBackend(tmp_path)["candle"](*KEY)
    return container.candle_db_service if request.param == "mongo" else adapter.db


def candle(number: int, **changes: Any) -> dict[str, Any]:
    prices = {"open": 10.0, "high": 12.0, "low": 9.0, "close": 11.0, "volume": 1.0 + number}
    return {"timestamp": START + number * MINUTE, **prices, **changes}


def at(*numbers: int) -> list[int]:
    return [START + number * MINUTE for number in numbers]


async def closes(db: CandleDbService, count: int = 10) -> list[float]:
    return [row.close for row in await db.find_range(*KEY, START, count)]


async def test_a_report_tells_what_became_of_each_candle(db: CandleDbService, caplog: pytest.LogCaptureFixture) -> None:
    """Every candle that was given is counted once, and what was not stored as given is one line in the log."""
    caplog.set_level(logging.INFO, "backtest_persist")
    assert await db.store(*KEY, [candle(n) for n in (2, 0, 1)]) == CandleReport(new=3)
    assert await db.store(*KEY, []) == CandleReport()
    assert caplog.records == []
    given = [
        candle(0),
        candle(1, close=9.5),
        candle(2, volume=2**53 + 1),
        candle(3),
        candle(3),
        candle(4),
        candle(5, open="x"),
    ]
    report = await db.store(*KEY, given, as_of=at(5)[0] - 1, errors="skip")
    assert (report.new, report.same, report.different, report.open) == (1, 2, at(1, 2), at(4, 5))
    assert (report.invalid, report.rounded) == ([], at(2))
    assert [vars(record)["event"] for record in caplog.records] == ["candles.not_as_given"]
    (line,) = caplog.records
    assert line.levelname == "WARNING"
    assert (vars(line)["bp_different"], vars(line)["bp_first_different"], vars(line)["bp_open"]) == (2, at(1)[0], 2)
    assert vars(line)["bp_symbol"] == KEY[0]
    report = await db.store(*KEY, [candle(6, open="x"), candle(7), {"n": 1}], errors="skip")
    assert (report.new, [position for position, _ in report.invalid]) == (1, [0, 2])
    assert "open must be a finite number, not the str 'x'" in report.invalid[0][1]
    with pytest.raises(InvalidPayloadError, match="2 of 3 candles cannot be stored"):
        await db.store(*KEY, [candle(8), candle(9, open="x"), {"n": 1}])
    assert await closes(db) == [11.0] * 5
    bad: Any
    for bad in ("ignore", None):
        with pytest.raises(InvalidPayloadError, match="errors must be"):
            await db.store(*KEY, [candle(8)], errors=bad)


async def test_a_price_in_another_unit_is_reported(
    db: CandleDbService, container: Container, caplog: pytest.LogCaptureFixture
) -> None:
    """It is stored only if that is allowed; adapters, runs and the dummy leave it out as well, with one line each."""
    caplog.set_level(logging.INFO, "backtest_persist")
    million: dict[str, Any] = {"open": 10e6, "high": 12e6, "low": 9e6, "close": 11e6}
    given = [candle(0), candle(1), candle(2, **million), candle(3), candle(4, low=0.003)]
    report = await db.store(*KEY, [*given, candle(3)])
    assert report == CandleReport(new=4, same=1, outliers=at(2))
    (line,) = caplog.records
    assert (vars(line)["event"], line.levelname) == ("candles.not_as_given", "WARNING")
    assert (vars(line)["bp_outliers"], vars(line)["bp_first_outliers"]) == (1, at(2)[0])
    assert await db.store(*KEY, given, allow_outliers=True) == CandleReport(new=1, same=4, outliers=at(2))
    for allowed in (True, False):  # what is stored is not told again
        assert await db.store(*KEY, given, allow_outliers=allowed) == CandleReport(same=5)
    two = [candle(n, **(million if n in (22, 24) else {})) for n in range(20, 30)]
    assert await db.store(*KEY, two, allow_outliers=True) == CandleReport(new=10, outliers=at(22, 24))
    assert await db.store(*KEY, two) == CandleReport(same=10)
    other = [*given[:2], candle(2, **{name: 2 * price for name, price in million.items()}), *given[3:]]
    assert await db.store(*KEY, other) == CandleReport(same=4, outliers=at(2))
    assert await closes(db) == [11.0, 11.0, 11e6, 11.0, 11.0]
    assert (await db.create(*KEY, candle(5, **million))).close == 11e6
    start, end = at(0, 3)
    right = [candle(number) for number in range(3)]
    assert await db.replace_range(*KEY, start, end, right) == CandleReport(new=3)
    wrong = [*right[:2], candle(2, **million)]
    with pytest.raises(InvalidPayloadError, match=f"1 of 3 candles .*nothing was replaced: {at(2)[0]}. .*allow_outl"):
        await db.replace_range(*KEY, start, end, wrong)
    assert await closes(db, 3) == [11.0] * 3
    for allowed in (True, False):  # what is stored is replaced by the same
        assert (await db.replace_range(*KEY, start, end, wrong, allow_outliers=allowed)).new == 3
        assert await closes(db, 3) == [11.0, 11.0, 11e6]

    caplog.clear()
    adapter = PersistCandleInstance("other", *KEY[1:], ioc=container)
    await adapter.write_candles_data(given)
    assert await adapter.read_last_candles(9) == [*given[:2], *given[3:]]
    dummy: Any = DummyBackend()["candle"](*KEY)
    assert (await dummy.db.store(*KEY, given)).new == 4
    run = Registry(container).run(
        strategy="s", exchange="e", symbol="run", frame="f", mode=Mode.BACKTEST, session=dict[str, Any]
    )
    async with run, run.bar(at(9)[0]) as bar:
        await bar.candle("1m").write_candles_data(given)
        assert [one["timestamp"] for one in await bar.candles("1m", 9)] == at(0, 1, 3, 4)
    assert [vars(record)["bp_outliers"] for record in caplog.records if "bp_outliers" in vars(record)] == [1, 1, 1]

    for frame, expected in (("g", (5, at(2))), ("h", (4, at(2)))):  # what is stored is not looked up, and stays
        run = Registry(container).run(
            strategy="s", exchange="e", symbol="run", frame=frame, mode=Mode.BACKTEST, session=dict[str, Any]
        )
        async with run, run.bar(at(10)[0]) as bar:
            report = await bar.candle("1m").db.store("run", *KEY[1:], given, allow_outliers=frame == "g")
            assert (report.new, report.outliers) == expected
    assert [row.close for row in await container.candle_db_service.find_range("run", *KEY[1:], START, 5)][2] == 11e6


async def test_what_is_stored_is_looked_up_in_parts(db: CandleDbService, monkeypatch: pytest.MonkeyPatch) -> None:
    """No command asks for more candles than `PART`, also of those of a call and of its outliers."""
    monkeypatch.setattr(store, "PART", 2)
    find_numbers, sizes = db.candles.find_numbers, list[int]()

    async def counted(series: Any, times: Any, **options: Any) -> Any:
        sizes.append(len(times))
        return await find_numbers(series, times, **options)

    monkeypatch.setattr(db.candles, "find_numbers", counted)
    million: dict[str, Any] = {"open": 10e6, "high": 12e6, "low": 9e6, "close": 11e6}
    given = [candle(n, **(million if n % 4 == 1 else {})) for n in range(12)]
    assert (await db.store(*KEY, given, allow_outliers=True)).new == 12
    assert (await db.store(*KEY, given)).same == 12
    assert max(sizes) == 2
    assert sum(sizes) == 2 * (3 + 12)


async def test_fields_that_are_left_out_are_told_once(db: CandleDbService, caplog: pytest.LogCaptureFixture) -> None:
    """In the report of each call, and in the log for the first of a series; single candles are no exception."""
    caplog.set_level(logging.INFO, "backtest_persist")
    for number in range(3):
        await db.create(*KEY, candle(number, quote_volume=1.0, trades=7))
        assert (await db.store(*KEY, [candle(number, trades=7, quote_volume=1.0)])).ignored == (
            "quote_volume",
            "trades",
        )
    assert [vars(record)["bp_ignored"] for record in caplog.records] == ["quote_volume,trades"]
    await db.create("other", "1m", "binance", candle(0, trades=7))
    assert len(caplog.records) == 2
    await db.create(*KEY, candle(0, close=9.5))
    await db.create(*KEY, candle(5, volume=2**53 + 1))
    assert [vars(record).get("bp_different") for record in caplog.records[2:]] == [1, None]
    assert vars(caplog.records[3])["bp_rounded"] == 1


async def test_an_unfinished_candle_is_never_stored(db: CandleDbService) -> None:
    """A single one is refused, of many it is left out; what closed meanwhile is stored by a later call."""
    now = int(time.time() * 1000)
    coming = now - now % MINUTE + MINUTE
    with pytest.raises(InvalidPayloadError, match=f"timestamp={coming}.*not closed yet"):
        await db.create(*KEY, candle(0, timestamp=coming))
    assert await db.create_many(*KEY, [candle(0), candle(0, timestamp=coming)]) == 1
    fetched_open = candle(1, close=9.5)
    asked = datetime.fromtimestamp(at(1)[0] / 1000 + 58, UTC)
    assert (await db.store(*KEY, [fetched_open], as_of=asked)).open == at(1)
    assert (await db.store(*KEY, [candle(1)])).new == 1
    assert await closes(db) == [11.0, 11.0]
    with pytest.raises(InvalidKeyError, match=f"as_of must be in ms since the epoch; {now // 1000} looks like seconds"):
        await db.store(*KEY, [candle(2)], as_of=now // 1000)


async def test_a_range_is_replaced(db: CandleDbService) -> None:
    """What is stored in it is gone, the new candles are there, and the rest of the series is as it was."""
    await db.create_many(*KEY, [candle(n) for n in range(10)])
    await db.create_many("other", "1m", "binance", [candle(3)])
    report = await db.replace_range(*KEY, *RANGE, [candle(n, close=9.5) for n in (3, 5)])
    assert report == CandleReport(new=2)
    assert await closes(db) == [11.0] * 3 + [9.5] * 2 + [11.0] * 4
    assert await db.find_gaps(*KEY, *at(0, 10)) == [(at(4)[0], at(5)[0])]
    assert await db.has_candle("other", "1m", "binance", at(3)[0])
    with pytest.raises(InvalidPayloadError, match="1 candles lie outside"):
        await db.replace_range(*KEY, *RANGE, [candle(3), candle(6)])
    with pytest.raises(InvalidPayloadError, match="high is below"):
        await db.replace_range(*KEY, *RANGE, [candle(3), candle(4, high=1.0)])
    with pytest.raises(InvalidKeyError, match="microseconds"):
        await db.replace_range(*KEY, at(3)[0] * 1000, at(6)[0], [])
    assert (await closes(db))[3] == 9.5
    assert await db.replace_range(*KEY, START, RANGE[0], []) == CandleReport()
    assert await closes(db) == [9.5] * 2 + [11.0] * 4


async def test_a_range_is_deleted(db: CandleDbService, monkeypatch: pytest.MonkeyPatch) -> None:
    """With bounds or without, in parts; a candle that is written afterwards is stored."""
    monkeypatch.setattr(mongo, "DELETED_PART", 3)
    await db.create_many(*KEY, [candle(n) for n in range(20)])
    await db.create_many("other", "1m", "binance", [candle(3)])
    assert await db.delete_range(*KEY, *at(5, 15)) == 10
    assert await db.find_gaps(*KEY, *at(0, 20)) == [(at(5)[0], at(15)[0])]
    assert await db.delete_range(*KEY, *at(5, 15)) == 0
    assert await db.delete_range(*KEY, since=at(18)[0]) == 2
    assert await db.delete_range(*KEY, until=at(2)[0]) == 2
    assert [row.timestamp for row in await db.find_last(*KEY, 100)] == at(2, 3, 4, 15, 16, 17)
    assert await db.find_by_context(*KEY, at(5)[0]) is None
    assert await db.create_many(*KEY, [candle(5, close=9.5)]) == 1
    assert await db.delete_range(*KEY) == 7
    assert await db.find_last(*KEY, 100) == []
    assert await db.has_candle("other", "1m", "binance", at(3)[0])


async def test_a_wrong_import_can_be_deleted(container: Container) -> None:
    """Of what an older version took for ms as well, in whichever unit it was."""
    db, stored = container.candle_db_service, container.mongo_service.collection("candle-items")
    await db.create_many(*KEY, [candle(n) for n in range(3)])
    (row,) = await stored.find({"timestamp": START}, {"_id": 0}).to_list(None)
    wrong = [{**row, "timestamp": at * 1000 + n} for n, at in enumerate([START] * 5)]
    await stored.insert_many([*wrong, {**row, "timestamp": START + 0.5}, {**row, "timestamp": 1_735_689_600}])
    assert await db.delete_range(*KEY, since=10**14 - 1) == 5
    assert await db.delete_range(*KEY, until=10**11) == 1
    assert await db.delete_range(*KEY) == 4


async def test_deleting_takes_its_turn_among_the_writes(container: Container) -> None:
    """Candles that are written one by one before it are deleted, and those after it are stored."""
    db = container.candle_db_service
    await db.wait_for_init()
    before = [asyncio.ensure_future(db.create(*KEY, candle(n))) for n in range(20)]
    await asyncio.sleep(0)
    assert await db.delete_range(*KEY) == 20
    await asyncio.gather(*before)
    assert await db.find_last(*KEY, 100) == []


async def test_another_writer_is_not_counted_as_new(container: Container, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it stores between the look and the write is the same or different, and stays."""
    db = container.candle_db_service
    insert = MongoStore[Any, Any].insert_many

    async def insert_after_another(self: Any, documents: Any, **options: Any) -> int:
        monkeypatch.setattr(MongoStore, "insert_many", insert)
        assert await db.create_many(*KEY, [candle(0), candle(1, close=9.5)]) == 2
        return await insert(self, documents, **options)

    monkeypatch.setattr(MongoStore, "insert_many", insert_after_another)
    report = await db.store(*KEY, [candle(n) for n in range(4)])
    assert (report.new, report.same, report.different) == (2, 1, at(1))


async def test_the_last_candles_are_found_over_gaps(db: CandleDbService, monkeypatch: pytest.MonkeyPatch) -> None:
    """As rows, oldest first, in parts; `until` is the time by which they have closed."""
    monkeypatch.setattr(mongo, "PART", 3)
    stored = [candle(n) for n in (0, 1, 2, 5, 6, 7, 8, 30)]
    await db.create_many(*KEY, stored)
    for limit in range(10):
        assert [row.data() for row in await db.find_last(*KEY, limit)] == stored[max(8 - limit, 0) :]
        until = at(9)[0]
        assert await db.find_last_data(*KEY, limit, until) == stored[max(7 - limit, 0) : 7]
        assert await db.find_last_data(*KEY, limit, until - 1) == stored[max(6 - limit, 0) : 6]
    assert [row.timestamp for row in await db.find_last(*KEY, 1, datetime(2020, 9, 14, 0, 1, tzinfo=UTC))] == at(0)


async def test_what_others_stored_among_the_last_is_read(container: Container) -> None:
    """Numbers of JavaScript are numbers, and a candle between two others is none of the series."""
    db, stored = container.candle_db_service, container.mongo_service.collection("candle-items")
    await db.create_many(*KEY, [candle(n) for n in range(3)])
    (row,) = await stored.find({"timestamp": START}, {"_id": 0}).to_list(None)
    await stored.insert_many([{**row, "timestamp": at(2)[0] + 500}, {**row, "timestamp": float(at(3)[0]), "open": 10}])
    expected = [candle(1), candle(2), candle(3, volume=1.0)]
    assert await PersistCandleInstance("BTC/USDT:USDT", "1m", "binance", ioc=container).read_last_candles(3) == expected


async def test_a_window_of_any_size_is_read_in_parts(container: Container, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows, data, columns and gaps are those of one command, wherever parts end; each part is one operation."""
    db, stored = container.candle_db_service, container.mongo_service.collection("candle-items")
    numbers = [n for n in range(40) if n not in (0, 7, 8, 9, 13, 20, 39)]
    await db.create_many(*KEY, [candle(n) for n in numbers])
    await stored.update_many({"timestamp": {"$in": at(3, 17)}}, {"$set": {"volume": 7, "open": 10}})
    await stored.update_one({"timestamp": at(30)[0]}, {"$set": {"timestamp": float(at(30)[0])}})
    expected = [candle(n, **({"volume": 7.0} if n in (3, 17) else {})) for n in numbers]
    gaps = [(at(a)[0], at(b)[0]) for a, b in ((0, 1), (7, 10), (13, 14), (20, 21), (39, 40))]
    operation, operations = MongoStore[Any, Any].operation, list[str]()

    def counted(self: Any, verb: str, **options: Any) -> Any:
        operations.append(verb)
        return operation(self, verb, **options)

    monkeypatch.setattr(MongoStore, "operation", counted)
    for part in (1, 2, 3, 4, 5, 33, 34, 1000):
        monkeypatch.setattr(mongo, "PART", part)
        operations.clear()
        assert [row.data() for row in await db.find_range(*KEY, START, 40)] == expected
        assert len(operations) == len(numbers) // part + 1
        assert await db.find_data(*KEY, START, 40) == expected
        columns = await db.find_columns(*KEY, START, 40)
        assert columns["timestamp"].dtype == np.int64
        assert [
            dict(zip(columns, row, strict=True)) for row in zip(*map(list, columns.values()), strict=True)
        ] == expected
        assert await db.find_gaps(*KEY, START, *at(40)) == gaps
        assert await db.find_gaps("none", "1m", "binance", START, *at(40)) == [(START, *at(40))]


async def test_a_collection_is_counted_by_its_metadata(settings: Settings, driver: str) -> None:
    """Without a filter, so that it takes no time; with one, an empty one as well, documents are counted."""
    async with monitored_container(settings, driver) as (container, commands):
        db = container.candle_db_service
        assert await db.count() == 0
        await db.create_many(*KEY, [candle(n) for n in range(5)])
        commands.names.clear()
        assert [await db.count(), await db.count({}), await db.count({"timestamp": {"$gt": START}})] == [5, 5, 4]
        assert commands.names == ["count", "aggregate", "aggregate"]


async def test_a_dump_is_corrected_where_the_framework_nested_it(tmp_path: Path) -> None:
    """A symbol with a slash: files of the framework are replaced and deleted like those of this package."""
    nested = tmp_path / "data/candle/binance/BTC/USDT:USDT/1m"
    nested.mkdir(parents=True)
    (nested / f"{START}.json").write_text(json.dumps(candle(0, open=10)))
    adapter: Any = JsonBackend(tmp_path)["candle"](*KEY)
    assert await adapter.read_last_candles(2) == [candle(0)]
    assert (await adapter.db.replace_range(*KEY, START, START + 2 * MINUTE, [candle(0), candle(1)])).new == 2
    assert await adapter.read_candles_data(2, START) == [candle(0), candle(1)]
    assert await adapter.db.delete_range(*KEY) == 2
    assert [name for name in files_of(tmp_path) if f"{START}" in name] == []


async def test_the_dummy_checks_and_keeps_nothing() -> None:
    """Its report is that of an empty store, and its reads check what they are given."""
    adapter: Any = DummyBackend()["candle"](*KEY)
    report = await adapter.db.store(*KEY, [candle(0), candle(1, open="x"), candle(2)], errors="skip", as_of=at(2)[0])
    assert (report.new, report.open, [position for position, _ in report.invalid]) == (1, at(2), [1])
    assert (await adapter.db.create(*KEY, candle(0))).data() == candle(0)
    assert await adapter.db.replace_range(*KEY, *at(0, 1), [candle(0)]) == CandleReport(new=1)
    assert await adapter.db.delete_range(*KEY) == 0
    assert await adapter.db.find_last(*KEY, 3) == await adapter.db.find_range(*KEY, START, 3) == []
    for call in (
        adapter.db.find_last(*KEY, -1),
        adapter.read_last_candles(1, START // 1000),
        adapter.db.find_range(*KEY, START, -1),
    ):
        with pytest.raises(InvalidKeyError):
            await call


async def test_a_registry_reads_the_last_candles(container: Container) -> None:
    """The adapters behind it have the method, whichever backend they are of."""
    persist = Registry(container)
    series = await persist.candle("BTC/USDT:USDT", "1m", "binance")
    await series.write_candles_data([candle(n) for n in range(5)], as_of=at(4)[0])
    assert await series.read_last_candles(2) == [candle(2), candle(3)]
