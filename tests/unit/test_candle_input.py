"""Candle input: shapes of candles, what is told about them, and what is refused."""

import sys
from collections import namedtuple
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from fractions import Fraction
from importlib import import_module
from types import SimpleNamespace
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pandas
import pytest
from pydantic import BaseModel

from backtest_persist import CandleFrame, CandleRow, InvalidPayloadError, SettingsError
from backtest_persist.core.candles.input import CheckedCandles, check_candles, checked_candle
from backtest_persist.core.candles.ohlcv import Series, candle_columns

pd: Any = pandas  # of which most types are unknown
MINUTE, DAY = 60_000, 86_400_000
START = 18_519 * DAY
SERIES, DAILY = Series("BTCUSDT", "1m", "binance"), Series("BTCUSDT", "1d", "binance")
NAMES = ("timestamp", "open", "high", "low", "close", "volume")
LATER = START + 1000 * DAY


def candle(number: int, step: int = MINUTE, **changes: Any) -> dict[str, Any]:
    numbers = {"open": 10.0, "high": 12.0, "low": 9.0, "close": 11.0, "volume": 1.0 + number}
    return {"timestamp": START + number * step, **numbers, **changes}


def check(candles: Any, series: Series = SERIES, as_of: int = LATER) -> CheckedCandles:
    return check_candles(series, candles, as_of=as_of, early=lambda: False)


def stored(candles: Any, series: Series = SERIES) -> list[Any]:
    checked = check(candles, series)
    assert checked.invalid == []
    return list(checked.valid.values())


def refused(candles: Any, series: Series = SERIES) -> str:
    return str(check(candles, series).error(series))


CANDLES = [candle(n) for n in range(3)]
ROWS = [list(one.values()) for one in CANDLES]
COLUMNS = {name: [one[name] for one in CANDLES] for name in NAMES}
INSTANTS = [datetime.fromtimestamp(at / 1000, UTC) for at in COLUMNS["timestamp"]]
KLINES = [[*map(str, row), str(row[0] + MINUTE - 1), "1.5", "3", "0.5", "2.5", "0"] for row in ROWS]
FLOATS = [(name, "f8") for name in NAMES[1:]]
FRAME = pd.DataFrame(CANDLES)
BY_INDEX = FRAME.drop(columns="timestamp").set_axis(pd.DatetimeIndex(INSTANTS, name="Date"))
IN_NEW_YORK = [at.astimezone(timezone(timedelta(hours=-5))) for at in INSTANTS]

Named: Any = namedtuple("Named", NAMES)  # pyright: ignore[reportUntypedNamedTuple]  # as itertuples makes them


class Model(BaseModel):
    timestamp: int
    open: float
    high: float
    low: float
    close: float
    volume: float


@dataclass
class Bar:
    timestamp: Any
    open: Any = 10.0
    high: Any = 12.0
    low: Any = 9.0
    close: Any = 11.0
    volume: Any = 1.0


DATES: dict[str, Any] = {"create_date": START, "updated_date": START, "id": "0" * 24}
SHAPES: dict[str, Any] = {
    "mappings": CANDLES,
    "a generator": (one for one in CANDLES),
    "models": [Model(**one) for one in CANDLES],
    "stored rows": [CandleRow(**one, symbol="s", interval="1m", exchange_name="e", **DATES) for one in CANDLES],
    "rows of ccxt": ROWS,
    "tuples": [tuple(row) for row in ROWS],
    "klines": KLINES,
    "an array": np.array(ROWS),
    "a structured array": np.array([tuple(row) for row in ROWS], dtype=[("timestamp", "i8"), *FLOATS]),
    "a recarray": np.array([tuple(row) for row in ROWS], dtype=[("timestamp", "i8"), *FLOATS]).view(np.recarray),
    "records of a frame": FRAME.to_records(),
    "records of a frame with a DatetimeIndex": BY_INDEX.to_records(),
    "records of a frame with a DatetimeIndex without a name": BY_INDEX.rename_axis(None).to_records(),
    "named tuples": [Named(*row) for row in ROWS],
    "itertuples": FRAME.itertuples(index=False),
    "itertuples with a RangeIndex": FRAME.itertuples(),
    "itertuples with a DatetimeIndex": BY_INDEX.itertuples(),
    "iterrows": [row for _, row in FRAME.iterrows()],
    "columns": COLUMNS,
    "columns of arrays": candle_columns(CANDLES),  # pyright: ignore[reportArgumentType]
    "columns with datetimes": {**COLUMNS, "timestamp": INSTANTS},
    "columns of a time zone": {**COLUMNS, "timestamp": IN_NEW_YORK},
    "a frame": FRAME,
    "a frame with capitals": FRAME.rename(columns=str.title),
    "a frame with klines' names": FRAME.rename(columns={"timestamp": "Open Time"}),
    "a frame with a DatetimeIndex": BY_INDEX,
    "a frame with capitals and a DatetimeIndex": BY_INDEX.rename(columns=str.title),
    "a frame of yfinance": BY_INDEX.set_axis(pd.MultiIndex.from_product([BY_INDEX.columns, ["AAPL"]]), axis="columns"),
    "a frame with a date column": FRAME.assign(timestamp=pd.DatetimeIndex(INSTANTS)).rename(
        columns={"timestamp": "date"}
    ),
    "a frame of another time zone": BY_INDEX.tz_convert("America/New_York"),
    "a frame of objects": FRAME.astype(object),
    "fields with capitals": [{name.upper(): value for name, value in one.items()} for one in CANDLES],
    "texts": [{name: str(value) for name, value in one.items()} for one in CANDLES],
    "datetimes": [{**one, "timestamp": at} for one, at in zip(CANDLES, IN_NEW_YORK, strict=True)],
    "Timestamps": [{**one, "timestamp": pd.Timestamp(at)} for one, at in zip(CANDLES, INSTANTS, strict=True)],
    "ccxt's time and its text": [{**one, "datetime": "2020-09-14T00:00:00Z"} for one in CANDLES],
    "numbers of every type": [
        Bar(np.int64(START), 10, np.float32(12), Decimal("9.0"), Fraction(11), np.int64(1)),
        Bar(float(START + MINUTE), "10", "+1.2e1", "9.", "11.00", 2),
        Bar(str(START + 2 * MINUTE), np.float64(10), np.int8(12), np.str_("9"), 11, Decimal(3)),
    ],
}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_each_shape_gives_the_same_candles(shape: Any) -> None:
    """They come back as plain data, with int and floats."""
    found = stored(shape)
    assert found == CANDLES
    assert [{*map(type, one.values())} for one in found] == [{int, float}] * 3


def test_a_day_may_be_a_date() -> None:
    """Dates and naive midnights are UTC days for an interval of a day; every other naive time is refused."""
    expected = [candle(n, DAY) for n in range(3)]
    days = [date(2020, 9, 14 + n) for n in range(3)]
    midnights = [datetime(2020, 9, 14 + n) for n in range(3)]
    frame = pd.DataFrame([one.values() for one in expected], columns=list(NAMES)).drop(columns="timestamp")
    for times in (days, midnights, np.array(days, dtype="datetime64[D]"), list(np.array(days, dtype="datetime64[ns]"))):
        assert stored([{**one, "timestamp": at} for one, at in zip(expected, times, strict=True)], DAILY) == expected
        assert stored(frame.set_axis(pd.DatetimeIndex(list(times))), DAILY) == expected
        assert "must be a timezone-aware datetime" in refused([{**candle(0), "timestamp": days[0]}])
        assert "naive" in refused(frame.set_axis(pd.DatetimeIndex(list(times))))
    assert "naive" in refused(frame.set_axis(pd.DatetimeIndex(midnights) + pd.Timedelta(hours=9)), DAILY)


def test_an_array_of_days_means_utc_days_in_every_unit() -> None:
    """One of datetime64 is as naive as its elements, also in ns, of which numpy makes ints."""
    days = {**{name: COLUMNS[name] for name in NAMES[1:]}, "timestamp": [date(2020, 9, 14 + n) for n in range(3)]}
    expected = [START + n * DAY for n in range(3)]
    for unit in ("D", "s", "ms", "us", "ns"):
        times = np.array(days["timestamp"], dtype=f"datetime64[{unit}]")
        assert [*check({**days, "timestamp": times}, DAILY).valid] == expected
        records = np.array(list(zip(times, *list(days.values())[:5], strict=True)), [("Date", times.dtype), *FLOATS])
        assert [*check(records, DAILY).valid] == expected
        if unit != "D":
            assert "timestamp is a naive datetime" in refused({**days, "timestamp": times})
            later = times + np.timedelta64(1, "s")
            assert "timestamp is a naive datetime" in refused({**days, "timestamp": later}, DAILY)
    assert [*check({**days, "timestamp": pd.DatetimeIndex(days["timestamp"], tz="UTC")}, DAILY).valid] == expected
    nothing = np.array(["NaT"] * 3, dtype="datetime64[ns]")
    assert "timestamp must be a timezone-aware" in refused({**days, "timestamp": nothing}, DAILY)


def test_an_index_has_the_times_if_it_is_called_so_or_holds_dates() -> None:
    """Dates, datetimes as objects and in Arrow, and ms; no other values, and none beside a column of times."""
    pyarrow: Any = pytest.importorskip("pyarrow")
    days = pd.DatetimeIndex([date(2020, 9, 14 + n) for n in range(3)])
    frame = FRAME.drop(columns="timestamp")
    in_ms = pd.Index([START + n * DAY for n in range(3)], name="timestamp")
    in_utc, of_arrow = days.tz_localize("UTC"), pd.ArrowDtype
    indexes = [
        *(in_ms, pd.Index(days.date), days.astype(object), in_utc.astype(object)),
        *(days.astype(of_arrow(pyarrow.timestamp("ns"))), in_utc.astype(of_arrow(pyarrow.timestamp("ms", "UTC")))),
        pd.Index(pd.array(days.date, dtype=of_arrow(pyarrow.date32()))),
    ]
    for index in indexes:
        assert [*check(frame.set_axis(index), DAILY).valid] == [*in_ms]
        assert [*check(frame.assign(timestamp=in_ms.to_numpy()).set_axis(index), DAILY).valid] == [*in_ms]
    as_text = pd.Index(["2020-09-14", "2020-09-15", "2020-09-16"], name="Date")
    assert "an int in ms since the epoch, not the str '2020-09-14'" in refused(frame.set_axis(as_text), DAILY)
    symbols = pd.MultiIndex.from_arrays([["AAPL"] * 3, days], names=["symbol", "date"])
    for other in (pd.Index([5, 6, 7]), pd.Index(["a", "b", "c"]), symbols):
        assert "it lacks timestamp" in refused(frame.set_axis(other), DAILY)


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_the_hour_that_a_clock_repeats_is_two_candles(unit: str) -> None:
    """Of a frame, its rows and plain datetimes; a local time that names none or both is told by the time it shares."""
    hourly = Series("AAPL", "1h", "nasdaq")
    local = ["2022-11-06 00:00", "2022-11-06 01:00", "2022-11-06 01:00", "2022-11-06 02:00"]
    index = pd.DatetimeIndex(local).tz_localize("America/New_York", ambiguous="infer").as_unit(unit)
    frame = pd.DataFrame([[10.0, 12.0, 9.0, 11.0, 1.0 + n] for n in range(4)], columns=list(NAMES[1:]), index=index)
    first = 1_667_707_200_000  # 04:00 UTC
    by_column = frame.reset_index(names="date")
    for given in (frame, frame.itertuples(), by_column, by_column.astype(object), by_column.to_dict("records")):
        assert [one["timestamp"] - first for one in stored(given, hourly)] == [n * 60 * MINUTE for n in range(4)]
    new_york = ZoneInfo("America/New_York")
    twice = [{**candle(n), "timestamp": datetime(2022, 11, 6, 1, fold=n, tzinfo=new_york)} for n in range(2)]
    assert [one["timestamp"] - first for one in stored(twice, hourly)] == [60 * MINUTE, 120 * MINUTE]
    for at in (datetime(2022, 11, 6, 1, tzinfo=new_york), datetime(2022, 3, 13, 2, tzinfo=new_york)):
        rows = [{**candle(0), "timestamp": at}, {**candle(1), "timestamp": at + timedelta(hours=at.month == 3)}]
        assert "is also that of candle 1, which differs" in refused(rows, hourly)


def test_a_price_in_another_unit_is_told_and_left_out() -> None:
    """By its time, among those that are closed and real; it is kept if outliers are allowed."""
    given = [candle(n) for n in range(5)]
    given[3] = candle(3, open=1e7, high=1.2e7, low=9e6, close=1.1e7)
    wrong = START + 3 * MINUTE
    checked = check([*given, candle(5, open="x"), candle(0)])
    assert [*checked.outliers] == [wrong]
    assert (len(checked.valid), checked.repeated, len(checked.invalid)) == (4, 1, 1)
    allowed = check_candles(SERIES, given, as_of=LATER, early=lambda: False, allow_outliers=True)
    assert [*allowed.outliers] == [wrong]
    assert len(allowed.valid) == 5
    unknown = check(given, as_of=wrong + MINUTE - 1)
    assert (unknown.outliers, unknown.open) == ({}, [wrong, START + 4 * MINUTE])


def test_an_early_day_of_a_frame_needs_no_setting() -> None:
    """Datetimes are instants without a doubt; the same ints are refused."""
    frame = pd.DataFrame([[10.0, 12.0, 9.0, 11.0, 1.0]], columns=list(NAMES[1:]))
    frame = frame.set_axis(pd.DatetimeIndex(["1971-01-04"], tz="UTC"))
    assert [one["timestamp"] for one in stored(frame, DAILY)] == [368 * DAY]
    assert "seconds" in refused(frame.assign(timestamp=368 * DAY), DAILY)


@pytest.mark.parametrize("library", ["polars", "pyarrow", "arro3.core"])
def test_a_frame_of_another_library_is_read(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Polars by itself, any other by the Arrow stream that it exports."""
    module: Any = pytest.importorskip(library)
    columns = {**COLUMNS, "timestamp": INSTANTS}
    if library == "polars":
        tables: list[Any] = [
            module.DataFrame(COLUMNS),
            module.DataFrame(columns),
            module.DataFrame(columns).rename(str.title),
        ]
        naive = module.DataFrame({**COLUMNS, "timestamp": [at.replace(tzinfo=None) for at in INSTANTS]})
        assert "naive" in refused(naive)
        assert "naive" in refused(Stream(naive))
    elif library == "pyarrow":
        tables = [module.table(COLUMNS), module.table(columns)]
    else:
        pyarrow: Any = pytest.importorskip("pyarrow")
        tables = [module.Table(pyarrow.table(COLUMNS))]
    for table in tables:
        assert stored(table) == CANDLES
        assert stored(Stream(table)) == CANDLES
    for other in {"polars", "pyarrow", "arro3.core"} - {library}:
        monkeypatch.setitem(sys.modules, other, None)
    for table in tables:
        assert stored(Stream(table)) == CANDLES


class Stream:
    """What exports an Arrow stream, and is nothing else."""

    def __init__(self, table: Any) -> None:
        self._table = table

    def __arrow_c_stream__(self, requested_schema: Any = None) -> Any:
        return self._table.__arrow_c_stream__(requested_schema)


def test_an_arrow_stream_needs_a_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without one it is a SettingsError that says which."""
    for library in ("polars", "pyarrow", "arro3.core"):
        monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(SettingsError, match=r'pip install "backtest-persist\[arrow\]"'):
        check(Stream(None))


def test_what_changes_on_the_way_is_told() -> None:
    """Fields that are left out, digits that a float does not hold, and a high or low that is widened."""
    given = [
        candle(0, quote_volume=5.0, trades=7),
        candle(1, volume=2**53 + 1),
        candle(2, volume=Decimal("1234567890.12345678901")),
        candle(3, volume="0.1234567890123456789"),
        candle(4, high=11.0 * (1 - 1e-15)),
        candle(5, low=10.0 * (1 + 1e-15)),
        candle(6, volume="93576.01000000", open=Decimal("10.10")),
    ]
    checked = check(given)
    assert checked.invalid == []
    assert checked.ignored == {"quote_volume", "trades"}
    assert [(at - START) // MINUTE for at in checked.rounded] == [1, 2, 3]
    assert [(at - START) // MINUTE for at in checked.widened] == [4, 5]
    assert checked.valid[START + 4 * MINUTE]["high"] == 11.0
    assert checked.valid[START + 5 * MINUTE]["low"] == 10.0
    assert checked.valid[START + MINUTE]["volume"] == 2.0**53
    assert check(KLINES).ignored == set()


def test_a_scaled_price_may_miss_the_body_by_a_billionth() -> None:
    """Of positive and negative prices; more is a contradiction."""
    for price in (155.161091, 1e-9, -37.63, 1e300):
        for part, fits in ((1e-9, True), (-1e-9, True), (3e-9, False)):
            high, low = price - abs(price) * abs(part) * 0.99, price + abs(price) * abs(part) * 0.99
            numbers = {"open": price, "close": price, "volume": 1}
            for changes in ({"high": high, "low": price}, {"high": price, "low": low}):
                checked = check([{"timestamp": START, **numbers, **changes}])
                assert bool(checked.valid) is fits
                assert bool(checked.widened) is fits
                assert bool(checked.invalid) is not fits


def test_an_open_candle_is_not_stored_whatever_it_holds() -> None:
    """A candle has closed when its interval has ended by `as_of`; two rows of an open one are no contradiction."""
    given = [candle(0), candle(1), candle(1, close=9.5), candle(2, volume=None)]
    checked = check(given, as_of=START + 2 * MINUTE - 1)
    assert [*checked.valid] == [START]
    assert [(at - START) // MINUTE for at in checked.open] == [1, 1, 2]
    assert checked.invalid == []


def test_different_candles_of_one_time_are_refused() -> None:
    """Nobody knows which is right: none of them is stored; the same one may be there twice."""
    checked = check([candle(0), candle(1), candle(0), candle(1, close=9.5), candle(1)])
    assert [*checked.valid] == [START]
    assert [position for position, _ in checked.invalid] == [1, 3, 4]
    assert "also that of candle 1, which differs" in checked.invalid[1][1]
    assert (checked.count, checked.repeated) == (5, 1)


def test_an_error_counts_the_bad_rows_and_names_the_first_five() -> None:
    """It names the series, each position, the problem and what was given."""
    rows: list[Any] = [candle(n) for n in range(1000)]
    rows[617]["timestamp"] = "2025-01-01 10:17"
    error = check(rows).error(SERIES)
    assert (error.collection, error.context) == ("candle-items", SERIES.parts())
    for part in (
        "symbol='BTCUSDT'",
        "1 of 1000 candles",
        "candle 617",
        "the str '2025-01-01 10:17'",
        "a dict with timestamp, open",
    ):
        assert part in str(error)
    for position in range(10, 20):
        rows[position] = {"time": 1, "open": 1.0}
    text = refused(rows)
    assert "11 of 1000" in text
    assert "candle 14: it lacks high, low, close, volume (a dict with time, open)" in text
    assert "candle 15" not in text
    assert "and 6 more" in text


BAD: dict[str, Any] = {
    "no list": (5, "expected candles as a list, as columns or as a frame, not int"),
    "None": (None, "not NoneType"),
    "text": ("text", "not str"),
    "a model": (Model(**candle(0)), "not Model"),
    "one candle": (candle(0), "put it into a list"),
    "columns of different lengths": ({**COLUMNS, "open": [1.0]}, "open 1"),
    "columns of one name": (FRAME.set_axis(["timestamp", *["open"] * 5], axis="columns"), "one name"),
}


@pytest.mark.parametrize(("given", "problem"), BAD.values(), ids=BAD)
def test_what_holds_no_candles_is_refused(given: Any, problem: str) -> None:
    """The error says what was expected, and what was given."""
    with pytest.raises(InvalidPayloadError, match=problem):
        check(given)


BAD_ROWS: dict[str, Any] = {
    "a number": (5, "not int"),
    "a short row": (ROWS[0][:5], "a list of 5 values"),
    "a row of another exchange": ([*ROWS[0], 1.0, 2.0], "a list of 8 values"),
    "no time": (dict.fromkeys(NAMES[1:], 1.0), "it lacks timestamp"),
    "two times": ({"Date": START, "Time": START, **dict.fromkeys(NAMES[1:], 1.0)}, "it has date and time"),
    "two opens": (
        {**{n: v for n, v in candle(0).items() if n != "open"}, "Open": 10.0, "OPEN": 10.0},
        "several values for open",
    ),
    "a position for a time": (next(FRAME.drop(columns="timestamp").itertuples()), "it lacks timestamp"),
    "another unit": (candle(0, timestamp=START // 1000), "looks like seconds"),
    "microseconds as text": (candle(0, timestamp=f"{START * 1000}"), "looks like microseconds"),
    "NaT": (candle(0, timestamp=pd.NaT), "timestamp must be"),
    "numpy's NaT": (candle(0, timestamp=np.datetime64("NaT")), "timestamp must be"),
    "between two candles": (candle(0, timestamp=START + 1), "00:00:00.001 later than the start of a UTC 1m interval"),
    "an object": (SimpleNamespace(**candle(0)), "not SimpleNamespace"),
}


@pytest.mark.parametrize(("row", "problem"), BAD_ROWS.values(), ids=BAD_ROWS)
def test_a_row_that_is_no_candle_is_refused(row: Any, problem: str) -> None:
    """Alone and among others, with its position."""
    text = refused([candle(5), row])
    assert f"1 of 2 candles cannot be stored, and none was. candle 1: {problem}" in text or problem in text
    with pytest.raises(InvalidPayloadError, match=problem):
        checked_candle(SERIES, row, lambda: False)


def test_a_start_that_is_misaligned_is_not_corrected() -> None:
    """A floor could be look-ahead: the message tells the offset, and under which day a session is stored."""
    day = Series("BTC-USDT", "1d", "okx")
    text = refused([candle(0, timestamp=1_667_491_200_000)], day)
    assert "it is 16:00:00 later than the start of a UTC day" in text
    assert "stored under the UTC day in which it closes, session_day(opening, length), and a day that is" in text
    hourly = refused([candle(0, timestamp=1_667_491_200_000 + 30 * MINUTE)], Series("AAPL", "1h", "nasdaq"))
    assert "under the UTC 1h interval in which it closes (a dict" in hourly
    assert "1667433600000" not in text


def test_nothing_is_imported_for_a_frame_that_was_not_given() -> None:
    """The libraries of frames are optional."""
    source = import_module("backtest_persist.core.candles.columns").__dict__
    assert not {"pandas", "polars", "pyarrow", "arro3", "numpy"} & source.keys()


def test_candles_that_know_another_interval_are_refused() -> None:
    """A week stored as a day would show its close six days early; of equal intervals nothing is said."""
    weekly = [candle(7 * n, DAY) for n in range(3)]
    for interval, expected in (("1w", "1w"), ("1M", "1M"), ("1d", None)):
        frame = CandleFrame("BTCUSDT", interval, "binance", candle_columns(weekly))  # pyright: ignore[reportArgumentType]
        if expected is None:
            assert stored(frame, DAILY) == weekly
        else:
            with pytest.raises(InvalidPayloadError, match=f"the CandleFrame has candles of {expected}; store it in"):
                check(frame, DAILY)
    rows = [CandleRow(**one, symbol="s", interval="1d", exchange_name="e", **DATES) for one in weekly]
    by_name = [{**one, "Interval": "1w"} for one in weekly]
    columns = {name: [one[name] for one in by_name] for name in by_name[0]}
    for given, problem in ((rows, "of 1d, not of 1m"), (by_name, "of 1w, not of 1m"), (columns, "of 1w, not of 1m")):
        assert f"it is a candle {problem}" in refused(given)
        with pytest.raises(InvalidPayloadError, match=f"it is a candle {problem}"):
            checked_candle(SERIES, rows[0] if given is rows else by_name[0], lambda: False)
    assert stored(rows, DAILY) == weekly
    assert stored([{**one, "interval": other} for one, other in zip(weekly, (pd.NA, "D", None), strict=True)]) == weekly


def test_records_of_naive_times_are_days_and_nothing_else() -> None:
    """An index without a name is called "index" in records, and its times are datetime64 in ns."""
    days = FRAME.drop(columns="timestamp").set_axis(pd.date_range("2020-09-14", periods=3))
    for records in (days.to_records(), days.rename_axis("Date").to_records()):
        assert stored(records, DAILY) == [candle(n, DAY) for n in range(3)]
    assert "timestamp is a naive datetime" in refused(days.to_records())


@pytest.mark.parametrize("library", ["pyarrow", "polars", "arro3.core"])
def test_one_column_is_no_table(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Series is a list of candles, and another stream of Arrow without columns is none, whichever library reads."""
    polars, pyarrow = import_module("polars"), import_module("pyarrow")
    numbers = (FRAME["close"], FRAME.iloc[0], polars.Series("close", [1.0]))
    array = pyarrow.chunked_array([[1.0, 2.0]])
    for one in numbers:
        assert "a candle is a mapping, a model, a dataclass or a row, not float" in refused(one)
    assert stored(polars.Series(CANDLES)) == stored(pd.Series(CANDLES)) == stored(pd.Series(ROWS)) == CANDLES
    for other in {"pyarrow", "polars", "arro3.core"} - {library}:
        monkeypatch.setitem(sys.modules, other, None)
    with pytest.raises(InvalidPayloadError, match=r"a \w+Array is not a table with columns: "):
        check(array)


def test_a_lazy_frame_is_told_to_collect() -> None:
    """It has no rows yet."""
    for library in ("polars", "narwhals"):
        lazy = import_module("polars").LazyFrame(COLUMNS)
        given = lazy if library == "polars" else import_module("narwhals").from_native(lazy)
        with pytest.raises(
            InvalidPayloadError, match=r"a LazyFrame has no rows yet; give what its collect\(\) returns"
        ):
            check(given)


def test_a_frame_of_several_symbols_is_refused_with_the_way_to_select_one() -> None:
    """The symbol of yfinance stands behind the price, or with group_by="ticker" before it."""
    symbols = ["AAPL", "MSFT"]
    for by_ticker in (pd.concat({"AAPL": BY_INDEX}, axis=1), pd.concat(dict.fromkeys(symbols, BY_INDEX), axis=1)):
        with pytest.raises(
            InvalidPayloadError, match=r"begin with a symbol; give the candles of one, such as frame\['AAPL'\]"
        ):
            check(by_ticker)
        assert stored(by_ticker["AAPL"]) == CANDLES
    both = by_ticker.swaplevel(axis=1)
    with pytest.raises(
        InvalidPayloadError, match=r"several symbols; give those of one, such as frame.xs\('AAPL', axis=1, level=1\)"
    ):
        check(both)
    assert stored(both.xs("AAPL", axis=1, level=1)) == CANDLES
