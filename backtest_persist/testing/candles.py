"""Candles: a stored candle never changes, and a window is complete or None."""

import asyncio
import time
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple, get_args

import pytest
from pydantic import BaseModel

from backtest_persist.contracts import CandleInterval
from backtest_persist.domains.candle import CANDLE
from backtest_persist.errors import InvalidKeyError, InvalidPayloadError
from backtest_persist.testing.subjects import DAY, LATE, MINUTE, NO_MILLIS, START, candle
from backtest_persist.testing.suite import Suite, requires

__all__ = ("Candles",)

_CONTEXT = ("BTC/USDT:USDT", "1m", "binance")
_UNITS = {"m": MINUTE, "h": 60 * MINUTE, "d": DAY}

_IMPOSSIBLE_CHANGES: list[dict[str, Any]] = [
    {"timestamp": START + MINUTE + 1},
    {"timestamp": None},
    {"timestamp": True},
    {"timestamp": "2020-09-14"},
    *({"timestamp": instant} for instant in NO_MILLIS),
    {"open": float("nan")},
    {"high": float("inf")},
    {"low": float("-inf")},
    {"close": "eleven"},
    {"close": "0x1"},
    {"close": None},
    {"close": True},
    {"high": 10.5},
    {"low": 10.5},
    {"volume": -1.0},
    {"volume": float("nan")},
]


class _Candle(BaseModel):
    timestamp: int
    open: float
    high: float
    low: float
    close: float
    volume: float


class _Named(NamedTuple):
    timestamp: int
    open: float
    high: float
    low: float
    close: float
    volume: float


class Candles(Suite):
    """A stored candle never changes, and a window is complete or None."""

    @requires(CANDLE)
    async def test_a_window_is_complete_or_none(self, tmp_path: Path) -> None:
        """A complete window is in order, in whatever order its candles were written; any other is None."""
        async with self.open(tmp_path) as persist:
            adapter = await persist.candle(*_CONTEXT)
            await adapter.write_candles_data([candle(n) for n in reversed(range(10)) if n != 7])
            assert await adapter.read_candles_data(7, START) == [candle(n) for n in range(7)]
            assert await adapter.read_candles_data(2, START + 8 * MINUTE) == [candle(8), candle(9)]
            assert await adapter.read_candles_data(1, START + 3 * MINUTE) == [candle(3)]
            assert await adapter.read_candles_data(8, START) is None
            assert await adapter.read_candles_data(1, START + 7 * MINUTE) is None
            assert await adapter.read_candles_data(3, START + 8 * MINUTE) is None
            assert await adapter.read_candles_data(2, START - MINUTE) is None
            await adapter.write_candles_data([candle(7)])
            assert await adapter.read_candles_data(10, START) == [candle(n) for n in range(10)]

    @requires(CANDLE)
    async def test_a_window_of_no_candles_is_empty(self, tmp_path: Path) -> None:
        """A limit of 0 returns [], whatever is stored and whatever `until_timestamp` is; [] can be written."""
        async with self.open(tmp_path) as persist:
            adapter = await persist.candle(*_CONTEXT)
            await adapter.write_candles_data([])
            assert await adapter.read_candles_data(0, START) == []
            assert await adapter.read_candles_data(0, START, 0) == []
            assert await adapter.read_candles_data(1, START) is None

    @requires(CANDLE)
    async def test_a_long_window_comes_back_complete(self, tmp_path: Path) -> None:
        """Any instance reads two thousand candles of one call as one window: there is no limit."""
        async with self.open(tmp_path) as persist:
            await (await persist.candle(*_CONTEXT)).write_candles_data([candle(n) for n in range(2000)])
        async with self.open(tmp_path) as persist:
            adapter = await persist.candle(*_CONTEXT)
            assert await adapter.read_candles_data(2000, START) == [candle(n) for n in range(2000)]
            assert await adapter.read_candles_data(2001, START) is None

    @requires(CANDLE)
    async def test_the_first_write_of_a_candle_wins(self, tmp_path: Path) -> None:
        """A later candle of one opening time changes nothing, whichever instance writes it."""
        changed: dict[str, Any] = {"close": 9.5, "volume": 99.0}
        async with self.open(tmp_path) as persist, self.open(tmp_path) as other:
            adapter, same = await persist.candle(*_CONTEXT), await other.candle(*_CONTEXT)
            await adapter.write_candles_data([candle(0)])
            await adapter.write_candles_data([candle(0, **changed), candle(1), candle(1), candle(2)])
            await same.write_candles_data([candle(n, **changed) for n in range(4)])
            expected = [*(candle(n) for n in range(3)), candle(3, **changed)]
            assert await adapter.read_candles_data(4, START) == expected
            assert await same.read_candles_data(4, START) == expected

    @requires(CANDLE)
    async def test_concurrent_writes_of_a_candle_leave_one_of_them(self, tmp_path: Path) -> None:
        """Every reader finds the same candle, all of which was written by one call."""
        changed: dict[str, Any] = {"open": 20.0, "high": 22.0, "low": 19.0, "close": 21.0, "volume": 99.0}
        async with self.open(tmp_path) as persist, self.open(tmp_path) as other:
            adapter, same = await persist.candle(*_CONTEXT), await other.candle(*_CONTEXT)
            await asyncio.gather(
                adapter.write_candles_data([candle(n) for n in range(100)]),
                same.write_candles_data([candle(n, **changed) for n in reversed(range(100))]),
            )
            window = await adapter.read_candles_data(100, START)
            assert window is not None
            assert await same.read_candles_data(100, START) == window
            for number, found in enumerate(window):
                assert found in (candle(number), candle(number, **changed))

    @requires(CANDLE)
    async def test_a_candle_that_closes_after_until_is_missing(self, tmp_path: Path) -> None:
        """Up to one ms before its close a window that needs it is None, and shorter ones are not."""
        async with self.open(tmp_path) as persist:
            adapter = await persist.candle(*_CONTEXT)
            await adapter.write_candles_data([candle(n) for n in range(3)])
            whole = [candle(n) for n in range(3)]
            assert await adapter.read_candles_data(3, START, START + 3 * MINUTE) == whole
            assert await adapter.read_candles_data(3, START, START + 3 * MINUTE - 1) is None
            assert await adapter.read_candles_data(2, START, START + 3 * MINUTE - 1) == whole[:2]
            assert await adapter.read_candles_data(1, START, START) is None
            assert await adapter.read_candles_data(1, START, 0) is None

    @requires(CANDLE)
    async def test_a_candle_that_has_not_closed_is_skipped(self, tmp_path: Path) -> None:
        """The candle of the coming day is not stored, the closed ones of its call are, and no error is raised."""
        now = int(time.time() * 1000)
        coming = now - now % DAY + DAY  # it cannot close while this test runs
        async with self.open(tmp_path) as persist:
            adapter = await persist.candle("BTCUSDT", "1d", "binance")
            await adapter.write_candles_data(
                [candle(0, timestamp=coming), candle(0), candle(0, timestamp=coming + DAY)]
            )
            assert await adapter.read_candles_data(1, START) == [candle(0)]
            assert await adapter.read_candles_data(1, coming) is None
            assert await adapter.read_candles_data(1, coming + DAY) is None

    @requires(CANDLE)
    async def test_a_candle_that_was_fetched_open_is_skipped(self, tmp_path: Path) -> None:
        """A candle that was open at `as_of` is not stored, so that the final one is; `as_of` is never after now."""
        now = int(time.time() * 1000)
        coming = now - now % DAY + DAY
        async with self.open(tmp_path) as persist:
            adapter = await persist.candle(*_CONTEXT)
            fetched = [candle(0), candle(1, close=9.5)]
            await adapter.write_candles_data(fetched, as_of=START + 2 * MINUTE - 1)
            assert await adapter.read_last_candles(5) == [candle(0)]
            await adapter.write_candles_data([candle(0), candle(1)], as_of=datetime.fromtimestamp(now / 1000, UTC))
            assert await adapter.read_last_candles(5) == [candle(0), candle(1)]
            daily = await persist.candle("BTCUSDT", "1d", "binance")
            await daily.write_candles_data([candle(0, timestamp=coming)], as_of=coming + DAY)
            assert await daily.read_last_candles(1, coming + DAY) == []
            for bad in (START // 1000, datetime(2024, 1, 1)):
                with pytest.raises(InvalidKeyError):
                    await adapter.write_candles_data([candle(2)], as_of=bad)

    @requires(CANDLE)
    async def test_the_last_candles_are_read_over_gaps(self, tmp_path: Path) -> None:
        """They are the last that have closed by `until`, oldest first, as many as are stored of those asked for."""
        async with self.open(tmp_path) as persist:
            adapter = await persist.candle(*_CONTEXT)
            assert await adapter.read_last_candles(3) == []
            stored = [candle(n) for n in (0, 1, 2, 5, 6, 200)]
            await adapter.write_candles_data(list(reversed(stored)))
            assert await adapter.read_last_candles(0) == []
            assert await adapter.read_last_candles(3) == stored[-3:]
            assert await adapter.read_last_candles(100) == stored
            assert await adapter.read_last_candles(3, START + 7 * MINUTE) == stored[2:5]
            assert await adapter.read_last_candles(3, START + 7 * MINUTE - 1) == stored[1:4]
            until = datetime.fromtimestamp((START + MINUTE) / 1000, UTC)
            assert await adapter.read_last_candles(3, until) == stored[:1]
            assert await adapter.read_last_candles(3, START) == []
            bad: Any
            for bad in (-1, 1.5, None, "3"):
                with pytest.raises(InvalidKeyError):
                    await adapter.read_last_candles(bad)
            for bad in (START // 1000, True, datetime(2024, 1, 1)):
                with pytest.raises(InvalidKeyError):
                    await adapter.read_last_candles(1, bad)

    @requires(CANDLE)
    async def test_candles_come_in_the_shapes_of_their_sources(self, tmp_path: Path) -> None:
        """Rows of ccxt, klines of twelve fields, named tuples, columns, and fields with capitals are stored alike."""
        values = [list(candle(n).values()) for n in range(3)]
        texts = [
            [START + n * MINUTE, *map(str, values[n][1:]), START + (n + 1) * MINUTE - 1, *"12340"] for n in range(3)
        ]
        shapes: list[Any] = [
            values,
            texts,
            [[*map(str, row)] for row in texts],
            [_Named(*row) for row in values],
            {name: [row[place] for row in values] for place, name in enumerate(candle(0))},
            [{name.capitalize(): value for name, value in candle(n).items()} for n in range(3)],
            [candle(n, timestamp=datetime.fromtimestamp((START + n * MINUTE) / 1000, UTC)) for n in range(3)],
            (candle(n, volume=Decimal(n + 1)) for n in range(3)),
        ]
        async with self.open(tmp_path) as persist:
            for number, shape in enumerate(shapes):
                adapter = await persist.candle(f"S{number}", "1m", "binance")
                await adapter.write_candles_data(shape)
                assert await adapter.read_candles_data(3, START) == [candle(n) for n in range(3)]
            daily = await persist.candle("BTCUSDT", "1d", "binance")
            await daily.write_candles_data(
                [candle(0, timestamp=date(2020, 9, 14)), candle(0, timestamp=datetime(2020, 9, 15))]
            )
            assert await daily.read_last_candles(2) == [candle(0), candle(0, timestamp=START + DAY)]
            hourly = await persist.candle("BTCUSDT", "1h", "binance")
            for bad in (date(2020, 9, 14), datetime(2020, 9, 14)):
                with pytest.raises(InvalidPayloadError):
                    await hourly.write_candles_data([candle(0, timestamp=bad)])

    @requires(CANDLE)
    async def test_a_high_that_misses_the_body_by_a_rounding_error_is_widened(self, tmp_path: Path) -> None:
        """Scaled prices do so: such a high or low becomes the body's; a larger difference is refused."""
        ulp = 11.0 * (1 - 1e-15)
        async with self.open(tmp_path) as persist:
            adapter = await persist.candle(*_CONTEXT)
            await adapter.write_candles_data([candle(0, high=ulp), candle(1, low=10.0 * (1 + 1e-15))])
            assert await adapter.read_candles_data(2, START) == [candle(0, high=11.0), candle(1, low=10.0)]
            too_far: list[dict[str, Any]] = [{"high": 11.0 * (1 - 1e-8)}, {"low": 10.0 * (1 + 1e-8)}]
            for bad in too_far:
                with pytest.raises(InvalidPayloadError):
                    await adapter.write_candles_data([candle(2, **bad)])

    @requires(CANDLE)
    async def test_a_price_in_another_unit_is_skipped(self, tmp_path: Path) -> None:
        """One that is a million times those around it is not stored, the others of its call are; a crash is real."""
        million: dict[str, Any] = {"open": 10e6, "high": 12e6, "low": 9e6, "close": 11e6}
        crash: dict[str, Any] = {"low": 0.003}
        async with self.open(tmp_path) as persist:
            adapter = await persist.candle(*_CONTEXT)
            given = [candle(n) for n in range(5)]
            await adapter.write_candles_data([*given[:2], candle(2, **million), *given[3:4], candle(4, **crash)])
            assert await adapter.read_last_candles(9) == [*given[:2], given[3], candle(4, **crash)]
            await adapter.write_candles_data(given)
            assert await adapter.read_candles_data(4, START) == given[:4]
            await adapter.write_candles_data([candle(5, **million)])  # of one alone nobody can tell
            assert await adapter.read_candles_data(1, START + 5 * MINUTE) == [candle(5, **million)]

    @requires(CANDLE)
    async def test_an_impossible_candle_is_refused_with_its_call(self, tmp_path: Path) -> None:
        """One among good ones is an InvalidPayloadError, and no candle of the call is stored."""
        partial = [{name: value for name, value in candle(1).items() if name != left_out} for left_out in candle(1)]
        bad: Any
        async with self.open(tmp_path) as persist:
            adapter = await persist.candle(*_CONTEXT)
            for bad in (*partial, *(candle(1, **changes) for changes in _IMPOSSIBLE_CHANGES), "text", None, 5):
                with pytest.raises(InvalidPayloadError):
                    await adapter.write_candles_data([candle(0), bad, candle(2)])
                for number in range(3):
                    assert await adapter.read_candles_data(1, START + number * MINUTE) is None
            with pytest.raises(InvalidPayloadError):
                await adapter.write_candles_data([candle(0), candle(1), candle(1, close=9.5)])
            assert await adapter.read_last_candles(5) == []

    @requires(CANDLE)
    async def test_extreme_but_possible_candles_are_stored(self, tmp_path: Path) -> None:
        """A flat candle, one without volume, one of whole numbers and one of the first minute of 1970 come back."""
        flat: dict[str, Any] = {"open": 10.0, "high": 10.0, "low": 10.0, "close": 10.0}
        async with self.open(tmp_path) as persist:
            adapter = await persist.candle(*_CONTEXT)
            whole: dict[str, Any] = {"open": 10, "high": 12, "low": 9, "close": 11, "volume": 0}
            given = [candle(0, **flat), candle(1, volume=0.0), candle(2, **whole), candle(3, open=Decimal("10.5"))]
            await adapter.write_candles_data([*given, candle(0, timestamp=0)])
            window = await adapter.read_candles_data(4, START)
            assert window is not None
            assert window == [*given[:3], candle(3, open=10.5)]
            assert repr(sorted(window[2].items())) == repr(sorted(candle(2, volume=0.0).items()))
            assert await adapter.read_candles_data(1, 0) == [candle(0, timestamp=0)]

    @requires(CANDLE)
    async def test_candles_may_be_models_and_numbers_come_back_exactly(self, tmp_path: Path) -> None:
        """A pydantic model is stored like a mapping; floats keep their last digit, and each candle is a plain dict."""
        numbers: dict[str, Any] = {
            "open": 0.1 + 0.2,
            "high": 1e300,
            "low": 5e-324,
            "close": 1 / 3,
            "volume": 2.0**53 + 2,
        }
        async with self.open(tmp_path) as persist:
            adapter = await persist.candle(*_CONTEXT)
            await adapter.write_candles_data([_Candle(**candle(0, **numbers)), candle(1, **numbers)])
            window = await adapter.read_candles_data(2, START)
            assert window is not None
            assert window == [candle(0, **numbers), candle(1, **numbers)]
            assert [type(found) for found in window] == [dict, dict]

    @requires(CANDLE)
    async def test_a_bad_window_is_refused(self, tmp_path: Path) -> None:
        """A limit that is negative or no int, a start between two candles, and no instant, are InvalidKeyErrors."""
        bad: Any
        start: Any
        until: Any
        async with self.open(tmp_path) as persist:
            adapter = await persist.candle(*_CONTEXT)
            await adapter.write_candles_data([candle(0)])
            for bad in (-1, 1.5, True, None, "10"):
                with pytest.raises(InvalidKeyError):
                    await adapter.read_candles_data(bad, START)
            for start in (START + 1, START - 1, START + MINUTE // 2, None, True, str(START), *NO_MILLIS):
                with pytest.raises(InvalidKeyError):
                    await adapter.read_candles_data(1, start)
            for until in (True, str(LATE), *NO_MILLIS):
                with pytest.raises(InvalidKeyError):
                    await adapter.read_candles_data(1, START, until)
            daily = await persist.candle("BTCUSDT", "1d", "binance")
            with pytest.raises(InvalidKeyError):
                await daily.read_candles_data(1, START + MINUTE)

    @requires(CANDLE)
    async def test_every_interval_is_a_separate_series(self, tmp_path: Path) -> None:
        """Candles of different intervals are kept apart, though they open at the same time."""
        intervals: tuple[CandleInterval, ...] = get_args(CandleInterval)
        async with self.open(tmp_path) as persist:
            for position, interval in enumerate(intervals):
                step = int(interval[:-1]) * _UNITS[interval[-1]]
                adapter = await persist.candle("BTCUSDT", interval, "binance")
                assert await adapter.read_candles_data(1, START) is None
                await adapter.write_candles_data([candle(n, step, volume=float(position)) for n in range(3)])
            for position, interval in enumerate(intervals):
                step = int(interval[:-1]) * _UNITS[interval[-1]]
                adapter = await persist.candle("BTCUSDT", interval, "binance")
                window = await adapter.read_candles_data(3, START, START + 3 * step)
                assert window == [candle(n, step, volume=float(position)) for n in range(3)]
                assert await adapter.read_candles_data(3, START, START + 3 * step - 1) is None

    @requires(CANDLE)
    async def test_a_window_belongs_to_its_reader(self, tmp_path: Path) -> None:
        """Neither changing a window that was read, nor a candle that was passed to a write, changes a stored candle."""
        given = candle(0)
        async with self.open(tmp_path) as persist:
            adapter = await persist.candle(*_CONTEXT)
            writing = asyncio.ensure_future(adapter.write_candles_data([given]))
            await asyncio.sleep(0)
            given["close"] = 9.5
            await writing
            window = await adapter.read_candles_data(1, START)
            assert window is not None
            assert window == [candle(0)]
            window[0]["close"] = 9.5
            assert await adapter.read_candles_data(1, START) == [candle(0)]
