"""Frames: candles for pandas, polars, Arrow and backtesting.py, on every backend, and back into the store."""

import sys
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backtest_persist import (
    CandleFrame,
    CandleReport,
    Container,
    DummyBackend,
    InvalidKeyError,
    JsonBackend,
    Mode,
    Registry,
    Settings,
    SettingsError,
)
from backtest_persist.core.candles import mongo
from backtest_persist.core.unit_of_work import joined_unit
from backtest_persist.domains.candle import CandleDbService
from tests.own_domain.funding import FUNDING, FundingDbService

pandas, polars, pyarrow = (import_module(name) for name in ("pandas", "polars", "pyarrow"))
MINUTE, DAY = 60_000, 86_400_000
START = 19_723 * DAY  # 2024-01-01
KEY = ("BTC/USDT:USDT", "1m", "binance")
NAMES = ["timestamp", "open", "high", "low", "close", "volume"]


@pytest.fixture(scope="session")
def driver() -> str:
    """One driver: these tests are not about drivers."""
    return "motor"


def candle(number: int, **changes: Any) -> dict[str, Any]:
    prices = {"open": 10.0, "high": 12.0 + number, "low": 9.0, "close": 11.0, "volume": 1.0 + number}
    return {"timestamp": START + number * MINUTE, **prices, **changes}


def db_of(backend: Any) -> CandleDbService:
    return backend["candle"](*KEY).db


def minutes(frame: CandleFrame) -> list[int]:
    return ((frame.columns["timestamp"] - START) // MINUTE).tolist()


async def test_a_frame_has_the_candles_of_a_range_on_every_backend(
    container: Container, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without bounds it has the whole series; a bound is an instant, a date or a text; the parts of a read fit."""
    for db in (container.candle_db_service, db_of(JsonBackend(tmp_path))):
        numbers = [n for n in range(1400, 1500) if n not in (1400, 1403, 1470)]
        await db.store(*KEY, [candle(n) for n in numbers])
        monkeypatch.setattr(mongo, "PART", 30)
        frame = await db.find_frame(*KEY)
        assert (frame.symbol, frame.interval, frame.exchange_name, len(frame)) == (*KEY, len(numbers))
        assert minutes(frame) == numbers
        assert [*frame.columns] == NAMES
        assert {name: str(column.dtype) for name, column in frame.columns.items()} == {
            "timestamp": "int64",
            **dict.fromkeys(NAMES[1:], "float64"),
        }
        assert frame.columns["high"].tolist() == [12.0 + n for n in numbers]
        assert all(column.flags.writeable for column in frame.columns.values())
        assert repr(frame) == (
            "<CandleFrame BTC/USDT:USDT 1m binance: 97 candles, 2024-01-01 23:21 to 2024-01-02 00:59 UTC>"
        )
        ranges: list[tuple[Any, Any, list[int]]] = [
            (START + 1402 * MINUTE, START + 1405 * MINUTE, [1402, 1404]),
            ("2024-01-01T23:22Z", "2024-01-02T00:25+01:00", [1402, 1404]),
            (
                datetime(2024, 1, 1, 23, 22, tzinfo=UTC),
                pandas.Timestamp("2024-01-01 23:25", tz="UTC"),
                [1402, 1404],
            ),
            ("2024-01-02", None, [n for n in numbers if n >= 1440]),
            (date(2024, 1, 2), "2024-01-03", [n for n in numbers if n >= 1440]),
            (None, "2024-01-01T23:22:30Z", [1401, 1402]),
            ("2024-01-02", "2024-01-02T00:00Z", []),
        ]
        for since, until, expected in ranges:
            assert minutes(await db.find_frame(*KEY, since, until)) == expected, (since, until)
        daily = await db.find_frame(*KEY, "2024-01-01", "2024-01-02", resample="1d")
        assert (daily.interval, daily.columns["timestamp"].tolist()) == ("1d", [START])
        assert daily.columns["high"].tolist() == [12.0 + 1439]
        with pytest.raises(InvalidKeyError, match="Candles of 1m can be resampled to"):
            await db.find_frame(*KEY, resample="7m")


async def test_a_bound_that_is_no_instant_is_refused(tmp_path: Path) -> None:
    """A time without an offset could mean any zone: the message says what to write."""
    refused: dict[Any, str] = {
        "2024-01-01T09:30": r"since '2024-01-01T09:30' is a time without an offset; write 2024-01-01T09:30:00Z for UTC",
        "yesterday": r"since 'yesterday' is neither a date, such as '2024-01-31', nor",
        datetime(2024, 1, 1): "since is a naive datetime",
        1_704_067_200: "looks like seconds",
        True: "not bool",
        1.5: r"since must be .*, a date, or either in ISO format, such as '2024-01-31', not float",
    }
    for db in (db_of(JsonBackend(tmp_path)), db_of(DummyBackend())):
        for since, message in refused.items():
            with pytest.raises(InvalidKeyError, match=message):
                await db.find_frame(*KEY, since)
        with pytest.raises(InvalidKeyError, match="interval must be one of"):
            await db.find_frame("BTC", "7m", "binance")
        for resample in (None, "1w"):
            with pytest.raises(InvalidKeyError, match="since 2024-01-03 is after until 2024-01-02; exchange them"):
                await db.find_frame(*KEY, "2024-01-03", "2024-01-02", resample=resample)


async def test_an_empty_series_is_an_empty_frame_of_the_same_types(container: Container, tmp_path: Path) -> None:
    """Nothing is special about it for those who read it."""
    for db in (container.candle_db_service, db_of(JsonBackend(tmp_path)), db_of(DummyBackend())):
        frame = await db.find_frame(*KEY)
        assert len(frame) == 0
        assert repr(frame) == "<CandleFrame BTC/USDT:USDT 1m binance: no candles>"
        assert frame.to_pandas().index.dtype == "datetime64[ms, UTC]"
        assert set(map(str, frame.to_pandas("title").dtypes)) == {"float64"}
        assert frame.to_polars().schema == polars.DataFrame(frame).schema
        assert pyarrow.table(frame).schema.field("timestamp").type == pyarrow.timestamp("ms", "UTC")
        assert len(await db.find_frame(*KEY, resample="1w")) == 0
        assert await db.store(*KEY, frame) == CandleReport()


async def test_a_frame_shows_no_candle_that_another_program_stored_in_between(container: Container) -> None:
    """Such a candle may close after the bar; numbers of other types are converted."""
    db, stored = container.candle_db_service, container.mongo_service.collection("candle-items")
    await db.store(*KEY, [candle(n) for n in range(4)])
    await stored.update_one({"timestamp": START + MINUTE}, {"$set": {"timestamp": START + MINUTE + 1}})
    await stored.update_one({"timestamp": START + 2 * MINUTE}, {"$set": {"open": 10, "volume": 7}})
    frame = await db.find_frame(*KEY)
    assert minutes(frame) == [0, 2, 3]
    assert frame.columns["volume"].tolist() == [1.0, 7.0, 4.0]


async def test_in_a_run_a_frame_ends_at_the_bar(container: Container, tmp_path: Path) -> None:
    """What closes after the instant of the bar is not shown, whatever `until` is; what the bar has written is."""
    for backend in ("mongo", "json", "dummy"):
        persist = Registry(container)
        if backend == "json":
            persist.use_json(tmp_path)
        if backend == "dummy":
            persist.use_dummy()
        stored = await persist.candle("BTC", "1m", "binance")
        await stored.write_candles_data([candle(n) for n in range(10) if n != 2])
        async with persist.run(strategy="s", exchange="binance", symbol="BTC", frame="f", mode=Mode.BACKTEST) as run:
            async with run.bar(START + 4 * MINUTE) as bar:
                adapter = bar.candle("1m")
                await adapter.write_candles_data([candle(2)])
                db = adapter.db
                key = ("BTC", "1m", "binance")
                seen = [] if backend == "dummy" else [0, 1]
                for until in (None, START + 3 * MINUTE + 1, START + 8 * MINUTE, "2030-01-01"):
                    expected = [*seen, 2] if backend == "dummy" else [0, 1, 2, 3]
                    assert minutes(await db.find_frame(*key, until=until)) == expected
                assert minutes(await db.find_frame(*key, START + MINUTE, START + 3 * MINUTE)) == [*seen, 2][-2:]
                assert len(await db.find_frame(*key, resample="5m")) == 0
                assert len(await db.find_frame(*key, resample="3m")) == 1
            async with run.bar(START + 6 * MINUTE) as bar:
                assert len(await bar.candle("1m").db.find_frame("BTC", "1m", "binance")) == (
                    1 if backend == "dummy" else 6
                )


async def test_lists_and_pages_of_rows_are_frames(settings: Settings, tmp_path: Path) -> None:
    """Those of every backend, of a unit of work, and of a domain of a user's own; a slice of one is one, too."""
    async with Container(settings, domains=[FUNDING]) as ioc:
        persist = Registry(ioc)
        await ioc.storage_db_service.upsert_many(True, [{"id": "t-1", "pnl": {"usd": 1.5}}, {"id": "t-2"}])
        await ioc.notification_db_service.upsert_many(False, [{"id": "n-1", "text": "x"}])
        await ioc.log_db_service.create_many([{"id": "l-1", "level": "info", "at": datetime(2024, 1, 1, tzinfo=UTC)}])
        await ioc.recent_db_service.upsert("BTC", "s", "e", "f", True, {"symbol": "BTC", "close": 2.0}, START)
        await ioc.state_db_service.upsert("s-1", "b", {"n": 1}, START)
        await ioc.session_db_service.upsert("s", "e", "f", "BTC", True, {"n": 1}, START)
        await (await persist.entry(FUNDING)("BTC", "e")).write_funding_data({"rate": 0.1}, START)
        await ioc.candle_db_service.store(*KEY, [candle(0)])
        page = await ioc.storage_db_service.paginate(limit=1)
        async with persist.checkpoint():
            unit: Any = joined_unit(ioc)
            buffered = await unit.db_service(type(ioc.storage_db_service)).list_by_mode(True)
        persist.use_json(tmp_path)
        await (await persist.storage(True)).write_storage_data([{"id": "t-1", "pnl": {"usd": 1.5}}])
        files: Any = JsonBackend(tmp_path)["storage"](True)
        lists: list[tuple[Any, list[str]]] = [
            (await ioc.storage_db_service.list_by_mode(True), ["backtest", "signal_id", "id", "pnl.usd"]),
            (await ioc.storage_db_service.find_all(newest=1), ["backtest", "signal_id", "id"]),
            (page, ["backtest", "signal_id", "id", "pnl.usd"]),
            (buffered, ["backtest", "signal_id", "id", "pnl.usd"]),
            (await files.db.list_by_mode(True), ["backtest", "signal_id", "id", "pnl.usd"]),
            (await ioc.notification_db_service.list_by_mode(False), ["backtest", "notification_id", "id", "text"]),
            (await ioc.log_db_service.list_all(), ["entry_id", "id", "level", "at"]),
            (
                await ioc.recent_db_service.find_all(),
                ["symbol", "strategy_name", "exchange_name", "frame_name", "backtest", "close", "when"],
            ),
            (await ioc.state_db_service.find_all(), ["signal_id", "bucket_name", "n", "when"]),
            (await ioc.db_service(FundingDbService).store.select({}), ["symbol", "exchange_name", "rate", "when"]),
            (await ioc.candle_db_service.find_range(*KEY, START, 5), ["exchange_name", "symbol", "interval", *NAMES]),
            ((await ioc.candle_db_service.find_last(*KEY, 5))[:1], ["exchange_name", "symbol", "interval", *NAMES]),
        ]
        for rows, names in lists:
            frame = rows.to_frame()
            assert [*frame.columns] == [*names, "create_date", "updated_date"]
            for instant in {"when", "timestamp", "at", "create_date"} & {*frame.columns}:
                assert frame.to_polars()[instant].dtype == polars.Datetime("ms", "UTC")
                assert str(frame.to_pandas()[instant].dtype) == "datetime64[ms, UTC]"
            assert pyarrow.table(frame).num_rows == len(frame) > 0
        session = (await ioc.session_db_service.find_all()).to_frame().to_pandas()
        assert session["when"][0] == datetime(2024, 1, 1, tzinfo=UTC)


def frame_of(count: int = 4) -> CandleFrame:
    columns: dict[str, Any] = {name: np.array([candle(n)[name] for n in range(count)]) for name in NAMES}
    return CandleFrame(*KEY, columns)


def test_pandas_has_the_names_that_libraries_expect() -> None:
    """A UTC index and lower case suit pandas-ta and vectorbt, capitals backtesting.py, a date column freqtrade."""
    frame = frame_of()
    lower = frame.to_pandas()
    assert [*lower.columns] == NAMES[1:]
    assert (lower.index.name, str(lower.index.dtype)) == ("date", "datetime64[ms, UTC]")
    assert lower.loc["2024-01-01 00:02", "volume"].item() == 3.0
    title = frame.to_pandas("title")
    assert [*title.columns] == ["Open", "High", "Low", "Close", "Volume"]
    assert title.index.name == "Date"
    by_column = frame.to_pandas(index=False)  # as freqtrade's: its `populate_indicators` is given this
    assert [*by_column.columns] == ["date", *NAMES[1:]]
    assert str(by_column["date"].dtype) == "datetime64[ms, UTC]"
    assert [*frame.to_pandas("title", index=False).columns] == ["Date", "Open", "High", "Low", "Close", "Volume"]
    with pytest.raises(InvalidKeyError, match="names must be 'lower' or 'title', not 'upper'"):
        frame.to_pandas("upper")  # pyright: ignore[reportArgumentType]


def test_nothing_is_copied_where_the_library_allows_it() -> None:
    """The numbers of a frame of pandas, and the columns of a table of pyarrow, are the arrays themselves."""
    frame = frame_of()
    close = frame.columns["close"]
    assert np.shares_memory(frame.to_pandas()["close"].to_numpy(), close)
    table = pyarrow.table(frame)
    for name in ("timestamp", "close"):
        assert table[name].chunk(0).buffers()[1].address == frame.columns[name].ctypes.data


@pytest.mark.parametrize("library", ["pyarrow", "polars", "arro3.core"])
def test_any_library_makes_the_arrow_stream(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has the same types and values, whichever of them is installed; without any, the error names the extra."""
    table = pyarrow.table
    others = {"pyarrow", "polars", "arro3.core"} - {library}
    for other in others:
        monkeypatch.setitem(sys.modules, other, None)
    read = table(frame_of())
    assert read.schema.names == NAMES
    assert [str(field.type) for field in read.schema] == ["timestamp[ms, tz=UTC]", *["double"] * 5]
    assert read["volume"].to_pylist() == [1.0, 2.0, 3.0, 4.0]
    assert read["timestamp"][0].as_py() == datetime(2024, 1, 1, tzinfo=UTC)
    monkeypatch.setitem(sys.modules, library, None)
    monkeypatch.setitem(sys.modules, "pandas", None)
    calls: dict[str, Callable[[], Any]] = {
        "arrow": frame_of().__arrow_c_stream__,
        "pandas": frame_of().to_pandas,
    }
    if library != "polars":
        calls["polars"] = frame_of().to_polars
    for extra, call in calls.items():
        with pytest.raises(SettingsError, match=rf'pip install "backtest-persist\[{extra}\]"'):
            call()


def frames_back(frame: CandleFrame) -> dict[str, Any]:
    """Return what a user may make of a frame before it is stored again, by what it is."""
    narwhals = import_module("narwhals")
    plain, by_column, pl = frame.to_pandas(), frame.to_pandas(index=False), frame.to_polars()
    arrow = plain.convert_dtypes(dtype_backend="pyarrow")
    by_arrow = by_column.convert_dtypes(dtype_backend="pyarrow")
    units = {f"pandas in {unit}": plain.set_axis(plain.index.as_unit(unit)) for unit in ("s", "ms", "us", "ns")}
    instants = pl["timestamp"]
    return {
        "itself": frame,
        "columns": frame.columns,
        "pandas": plain,
        "pandas with capitals": frame.to_pandas("title"),
        "pandas with a date column": by_column,
        "pandas of another zone": plain.tz_convert("America/New_York"),
        **units,
        "pandas, nullable": by_column.convert_dtypes(),
        "pandas, backed by Arrow": arrow,
        "pandas, backed by Arrow, with a date column": by_arrow,
        "pandas, with an index backed by Arrow": by_arrow.set_index("date"),
        "pandas of float32": plain.astype("float32"),
        "pandas of objects": by_column.astype(object),
        "pandas, with its index as a column": plain.reset_index(),
        "polars": pl,
        "polars with capitals": pl.rename(str.title),
        **{f"polars in {unit}": pl.with_columns(instants.dt.cast_time_unit(unit)) for unit in ("us", "ns")},
        "polars of another zone": pl.with_columns(instants.dt.convert_time_zone("Asia/Tokyo")),
        "polars in ms as ints": pl.with_columns(instants.dt.epoch("ms")),
        "pyarrow": pyarrow.table(frame),
        "pyarrow in ns": pyarrow.table(pl.with_columns(instants.dt.cast_time_unit("ns"))),
        "a record batch": pyarrow.table(frame).to_batches()[0],
        "arro3": import_module("arro3.core").Table(frame),
        "narwhals over pandas": narwhals.from_native(by_column),
        "narwhals over polars": narwhals.from_native(pl),
        "narwhals over pyarrow": narwhals.from_arrow(frame, backend="pyarrow"),
    }


async def test_a_frame_that_is_stored_again_is_the_same(container: Container) -> None:
    """It comes back through every library, resolution and time zone without a candle altered, or one that is new."""
    db = container.candle_db_service
    await db.store(*KEY, [candle(n) for n in range(20)])
    frame = await db.find_frame(*KEY)
    for what, given in frames_back(frame).items():
        assert await db.store(*KEY, given) == CandleReport(same=20), what


@pytest.mark.filterwarnings("ignore:DatetimeIndex.dayofweek is deprecated")
def test_backtesting_runs_on_a_frame() -> None:
    """backtesting.py takes the frame with capitals as it is: prices, times and a resampled indicator."""
    backtesting, lib = import_module("backtesting"), import_module("backtesting.lib")
    count = 24 * 40
    close = 100 + 10 * np.sin(np.arange(count) / 24)
    opened = np.concatenate([close[:1], close[:-1]])
    columns: dict[str, Any] = {
        "timestamp": START + np.arange(count) * 60 * MINUTE,
        "open": opened,
        "high": np.maximum(opened, close),
        "low": np.minimum(opened, close),
        "close": close,
        "volume": np.ones(count),
    }

    def mean(closes: Any) -> Any:
        return closes.rolling(3).mean()

    class Trend(backtesting.Strategy):
        def init(self) -> None:
            self.mean = lib.resample_apply("D", mean, self.data.Close)

        def next(self) -> None:
            if not self.position and self.data.Close[-1] > self.mean[-1]:
                self.buy()
            elif self.position and self.data.Close[-1] < self.mean[-1]:
                self.position.close()

    frame = CandleFrame("BTCUSDT", "1h", "binance", columns).to_pandas("title")
    found = backtesting.Backtest(frame, Trend, cash=10_000, finalize_trades=True).run()
    assert found["# Trades"] > 3
    assert found["Start"] == datetime(2024, 1, 1, tzinfo=UTC)
    assert found["Duration"] == timedelta(hours=count - 1)
