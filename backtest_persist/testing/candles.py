"""Candles: a stored candle never changes, and a window is whole or None."""

import asyncio
import time
from decimal import Decimal
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel

from backtest_persist.contracts import CandleInterval
from backtest_persist.errors import InvalidKeyError, InvalidPayloadError
from backtest_persist.testing.domains import DAY, MINUTE, START, candle
from backtest_persist.testing.suite import Suite

__all__ = ("Candles",)

_CONTEXT = ("BTC/USDT:USDT", "1m", "binance")
_UNITS = {"m": MINUTE, "h": 60 * MINUTE, "d": DAY}

_UNREAL: list[dict[str, Any]] = [
    {"timestamp": START + MINUTE + 1},
    {"timestamp": None},
    {"timestamp": True},
    {"timestamp": str(START)},
    {"open": float("nan")},
    {"high": float("inf")},
    {"low": float("-inf")},
    {"close": "11"},
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


class Candles(Suite):
    """A stored candle never changes, and a window is whole or None."""

    async def test_a_window_is_whole_or_none(self, tmp_path: Path) -> None:
        """With every candle there it comes in order, in whatever order they were written; else it is None."""
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

    async def test_a_window_of_no_candles_is_empty(self, tmp_path: Path) -> None:
        """A limit of 0 is [], whatever is stored and whatever `until_timestamp` says; writing no candles is fine."""
        async with self.open(tmp_path) as persist:
            adapter = await persist.candle(*_CONTEXT)
            await adapter.write_candles_data([])
            assert await adapter.read_candles_data(0, START) == []
            assert await adapter.read_candles_data(0, START, 0) == []
            assert await adapter.read_candles_data(1, START) is None

    async def test_a_long_window_comes_back_whole(self, tmp_path: Path) -> None:
        """Two thousand candles of one call, one window, from any instance: there is no cap."""
        async with self.open(tmp_path) as persist:
            await (await persist.candle(*_CONTEXT)).write_candles_data([candle(n) for n in range(2000)])
        async with self.open(tmp_path) as persist:
            adapter = await persist.candle(*_CONTEXT)
            assert await adapter.read_candles_data(2000, START) == [candle(n) for n in range(2000)]
            assert await adapter.read_candles_data(2001, START) is None

    async def test_the_first_write_of_a_candle_stands(self, tmp_path: Path) -> None:
        """A second candle of one opening time changes nothing: of a later call, the same one, or another instance."""
        changed: dict[str, Any] = {"close": 9.5, "volume": 99.0}
        async with self.open(tmp_path) as persist, self.open(tmp_path) as other:
            adapter, same = await persist.candle(*_CONTEXT), await other.candle(*_CONTEXT)
            await adapter.write_candles_data([candle(0)])
            await adapter.write_candles_data([candle(0, **changed), candle(1), candle(1, **changed), candle(2)])
            await same.write_candles_data([candle(n, **changed) for n in range(4)])
            expected = [*(candle(n) for n in range(3)), candle(3, **changed)]
            assert await adapter.read_candles_data(4, START) == expected
            assert await same.read_candles_data(4, START) == expected

    async def test_of_two_that_write_at_once_one_stands_for_all(self, tmp_path: Path) -> None:
        """Whichever of two candles it is, every reader has the same one, and it is one of the two entirely."""
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

    async def test_a_candle_that_closes_after_until_is_missing(self, tmp_path: Path) -> None:
        """At its close it is there; one ms before, the window that needs it is None, and shorter ones are not."""
        async with self.open(tmp_path) as persist:
            adapter = await persist.candle(*_CONTEXT)
            await adapter.write_candles_data([candle(n) for n in range(3)])
            whole = [candle(n) for n in range(3)]
            assert await adapter.read_candles_data(3, START, START + 3 * MINUTE) == whole
            assert await adapter.read_candles_data(3, START, START + 3 * MINUTE - 1) is None
            assert await adapter.read_candles_data(2, START, START + 3 * MINUTE - 1) == whole[:2]
            assert await adapter.read_candles_data(1, START, START) is None
            assert await adapter.read_candles_data(1, START, 0) is None

    async def test_a_candle_that_has_not_closed_is_skipped(self, tmp_path: Path) -> None:
        """That of the coming day is not stored; the closed ones of the same call are, and no error is raised."""
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

    async def test_a_candle_that_cannot_be_real_is_refused(self, tmp_path: Path) -> None:
        """One of them among good ones is an InvalidPayloadError, and none of the call is stored."""
        partial = [{name: value for name, value in candle(1).items() if name != left_out} for left_out in candle(1)]
        bad: Any
        async with self.open(tmp_path) as persist:
            adapter = await persist.candle(*_CONTEXT)
            for bad in (*partial, *(candle(1, **changes) for changes in _UNREAL), "text", None, 5):
                with pytest.raises(InvalidPayloadError):
                    await adapter.write_candles_data([candle(0), bad, candle(2)])
                for number in range(3):
                    assert await adapter.read_candles_data(1, START + number * MINUTE) is None

    async def test_the_borders_of_what_is_real_are_stored(self, tmp_path: Path) -> None:
        """A flat candle, one without volume, one with whole numbers, and one of the first minute of 1970."""
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

    async def test_candles_may_be_models_and_numbers_come_back_exactly(self, tmp_path: Path) -> None:
        """A pydantic model goes in like a mapping; a float comes back to its last digit, as a plain dict."""
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

    async def test_a_bad_window_is_refused(self, tmp_path: Path) -> None:
        """A limit that is negative or no int, and a start between two candles, is an InvalidKeyError."""
        bad: Any
        async with self.open(tmp_path) as persist:
            adapter = await persist.candle(*_CONTEXT)
            await adapter.write_candles_data([candle(0)])
            for bad in (-1, 1.5, True, None, "10"):
                with pytest.raises(InvalidKeyError):
                    await adapter.read_candles_data(bad, START)
            for start in (START + 1, START - 1, START + MINUTE // 2, 1):
                with pytest.raises(InvalidKeyError):
                    await adapter.read_candles_data(1, start)
            daily = await persist.candle("BTCUSDT", "1d", "binance")
            with pytest.raises(InvalidKeyError):
                await daily.read_candles_data(1, START + MINUTE)

    async def test_every_interval_is_a_series_of_its_own(self, tmp_path: Path) -> None:
        """All eleven intervals keep their candles apart, though they open at the same time."""
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

    async def test_a_window_belongs_to_its_reader(self, tmp_path: Path) -> None:
        """What a reader changes in a window, or a writer in what it has handed over, changes nothing stored."""
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
