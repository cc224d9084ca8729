"""Resampling: periods of hours, days, weeks and months, compared with those of pandas and made of real quotes."""

from datetime import UTC, datetime
from typing import Any, cast, get_args

import numpy as np
import pandas
import pytest
from bokeh_sampledata import stocks

from backtest_persist import CandleInterval, InvalidKeyError
from backtest_persist.core.candles.ohlcv import COLUMNS, candle_columns, interval_step_ms
from backtest_persist.core.candles.resampling import checked_resample, resample_columns

pd: Any = pandas  # of which most types are unknown
AAPL: Any = stocks.AAPL
MINUTE, HOUR, DAY = 60_000, 3_600_000, 86_400_000
LATER = 10**13
RULES = {
    **{name: name.replace("m", "min").replace("d", "D") for name in get_args(CandleInterval)},
    "12h": "12h",
    "3d": "3D",
    "1w": "W-MON",
    "1M": "MS",
}


def millis(*parts: int) -> int:
    return int(datetime(*cast("tuple[int, int, int]", parts), tzinfo=UTC).timestamp() * 1000)


def series(since: int, until: int, step: int, *, kept: float = 1.0) -> dict[str, Any]:
    """Return candles that walk at random, of which a part is left out."""
    random = np.random.default_rng(1)
    times = np.arange(since, until, step, dtype="int64")
    times = times[random.random(len(times)) < kept]
    closes = 100 * np.exp(np.cumsum(random.normal(0, 0.01, len(times))))
    opens = closes * np.exp(random.normal(0, 0.01, len(times)))
    spread = np.exp(np.abs(random.normal(0, 0.01, len(times))))
    volumes = random.exponential(10, len(times))
    high, low = np.maximum(opens, closes) * spread, np.minimum(opens, closes) / spread
    return dict(zip(COLUMNS, (times, opens, high, low, closes, volumes), strict=True))


def by_pandas(columns: dict[str, Any], resample: str) -> dict[str, Any]:
    frame = pd.DataFrame({name: columns[name] for name in COLUMNS[1:]})
    frame.index = pd.to_datetime(columns["timestamp"], unit="ms")  # naive, so that `origin` counts for days
    options = {} if resample in ("1w", "1M") else {"origin": "epoch"}
    how = {"open": "first", "high": "max", "low": "min", "close": "last", "volume": "sum"}
    found = frame.resample(RULES[resample], closed="left", label="left", **options).agg(how).dropna()
    times = found.index.astype("datetime64[ms]").astype("int64")
    return {"timestamp": times.to_numpy(), **{name: found[name].to_numpy() for name in COLUMNS[1:]}}


def assert_same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert tuple(found) == COLUMNS
    assert found["timestamp"].dtype == np.int64
    for name in COLUMNS[:-1]:
        assert found[name].tolist() == expected[name].tolist(), name
    assert np.allclose(found["volume"], expected["volume"], rtol=1e-12, atol=0)


@pytest.mark.parametrize("interval", ["1m", "1h", "4h", "8h", "1d"])
def test_periods_are_those_of_pandas(interval: str) -> None:
    """Every interval that can be made, with gaps and without, before 1970 and over leap days."""
    step = interval_step_ms(interval)
    spans = [(millis(2024, 2, 26), millis(2024, 3, 5) if step == MINUTE else millis(2024, 7, 1))]
    if step > MINUTE:
        spans.append((millis(1968, 12, 30), millis(1970, 3, 2)))
    possible = [name for name in RULES if name in ("1w", "1M") or interval_step_ms_of(name) % step == 0]
    for since, until in spans:
        for kept in (1.0, 0.6):
            columns = series(since, until, step, kept=kept)
            for resample in possible:
                found = resample_columns(columns, interval, resample, since=None, until=LATER)
                assert_same(found, by_pandas(columns, resample))


def interval_step_ms_of(name: str) -> int:
    return int(name[:-1]) * {"m": MINUTE, "h": HOUR, "d": DAY}[name[-1]]


def test_weeks_and_months_of_real_quotes() -> None:
    """Those of a share over 13 years: weeks of four and five days, that begin on Monday, and calendar months."""
    columns = {name: np.array(AAPL[name], dtype="float64") for name in COLUMNS[1:]}
    columns["timestamp"] = np.array([millis(*map(int, day.split("-"))) for day in AAPL["date"]], dtype="int64")
    for resample in ("1w", "1M"):
        found = resample_columns(columns, "1d", resample, since=None, until=LATER)
        assert_same(found, by_pandas(columns, resample))
    weeks = resample_columns(columns, "1d", "1w", since=None, until=LATER)
    assert {datetime.fromtimestamp(at / 1000, UTC).weekday() for at in weeks["timestamp"].tolist()} == {0}
    assert weeks["volume"].sum() == columns["volume"].sum()
    assert AAPL["date"][0] == "2000-03-01"  # a Wednesday
    assert weeks["timestamp"][0] == millis(2000, 2, 28)
    assert (weeks["open"][0], weeks["close"][0]) == (AAPL["open"][0], AAPL["close"][2])


def test_a_period_is_whole_or_left_out() -> None:
    """It begins at `since` or later and has closed by `until`; a ms makes the difference."""
    monday = millis(2024, 1, 1)
    columns = series(monday, monday + 21 * DAY, HOUR)

    def found(resample: str, since: int | None, until: int) -> list[int]:
        return resample_columns(columns, "1h", resample, since=since, until=until)["timestamp"].tolist()

    weeks = [monday + number * 7 * DAY for number in range(3)]
    assert found("1w", None, weeks[2] + 7 * DAY) == weeks
    assert found("1w", monday, weeks[2] + 7 * DAY - 1) == weeks[:2]
    assert found("1w", monday + 1, weeks[2]) == weeks[1:2]
    assert found("1w", None, monday + 7 * DAY - 1) == []
    assert found("1M", None, millis(2024, 2, 1) - 1) == []
    assert found("1M", None, millis(2024, 2, 1)) == [monday]
    assert found("12h", monday + HOUR, monday + 36 * HOUR) == [monday + 12 * HOUR, monday + 24 * HOUR]
    wednesday = monday + 2 * DAY  # a series that begins within a week
    columns = series(wednesday, monday + 21 * DAY, HOUR)
    assert found("1w", None, weeks[2] + 7 * DAY) == weeks
    assert found("1w", wednesday, weeks[2] + 7 * DAY) == weeks[1:]


def test_candles_that_are_not_on_the_grid_are_left_out() -> None:
    """What another program has stored under 16:00 UTC on Sunday closes on Monday, after the week."""
    monday = millis(2024, 1, 1)
    columns = series(monday, monday + 7 * DAY, DAY)
    crooked = {name: np.append(column, column[-1]) for name, column in columns.items()}
    crooked["timestamp"][-1] += 16 * HOUR
    crooked["high"][-1] *= 2
    bounds: Any = {"since": None, "until": monday + 7 * DAY}
    assert_same(
        resample_columns(crooked, "1d", "1w", **bounds),
        resample_columns(columns, "1d", "1w", **bounds),
    )
    nothing = resample_columns(candle_columns([]), "1d", "1w", **bounds)
    assert_same(nothing, candle_columns([]))
    nothing = resample_columns({n: c[-1:] for n, c in crooked.items()}, "1d", "1w", **bounds)
    assert_same(nothing, candle_columns([]))


def test_an_interval_that_cannot_be_made_is_refused() -> None:
    """A shorter one, one that the candles do not divide, and one that nobody knows; the message lists the others."""
    assert checked_resample("1d", "1d") == "1d"
    with pytest.raises(InvalidKeyError, match="Candles of 1d can be resampled to 1d 3d 1w 1M, not to '12h'"):
        checked_resample("1d", "12h")
    with pytest.raises(InvalidKeyError, match="Candles of 8h can be resampled to 8h 1d 3d 1w 1M, not to '12h'"):
        resample_columns(candle_columns([]), "8h", "12h", since=None, until=LATER)
    bad: Any
    for bad in ("1min", "W", "1 w", "1W", "45m", "", None, 7, ["1w"]):
        with pytest.raises(InvalidKeyError, match="can be resampled to 1m 3m 5m"):
            checked_resample("1m", bad)
    with pytest.raises(InvalidKeyError, match="interval must be one of"):
        checked_resample("1w", "1M")
