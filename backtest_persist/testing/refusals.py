"""Refusals: bad input is an error, as the other capabilities check it on a backend that keeps what it is given."""

from collections.abc import Awaitable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from backtest_persist.domains.candle import CANDLE
from backtest_persist.errors import BacktestPersistError, InvalidKeyError, InvalidPayloadError, InvalidWhenError
from backtest_persist.testing.subjects import (
    DAY,
    NO_MILLIS,
    START,
    Subject,
    candle,
    is_list,
    is_listed_at_when,
    is_removable,
    is_single_payload,
    is_timed,
    keeps_payloads,
    may_omit_when,
    tells_presence,
)
from backtest_persist.testing.suite import Suite, for_each, requires

__all__ = ("Refusals",)

_BAD_NAMES: tuple[Any, ...] = ("", "a\0b", "\ud800", None, 7, b"a")
_BAD_FLAGS: tuple[Any, ...] = (0, 1, None, "live")
_BAD_VALUES: tuple[Any, ...] = (2**63, {1}, object(), datetime(2024, 1, 1), {1: "a"}, "\ud800", 1j)
_BAD_PAYLOADS: tuple[Any, ...] = ([1], "text", 5, {1})
_BAD_ENTRIES: tuple[Any, ...] = ({"n": 1}, {"id": ""}, {"id": 7}, {"id": "a\0b"})
_BAD_WHENS: tuple[Any, ...] = (True, 1.5, "2024-01-01", datetime(2024, 1, 1), *NO_MILLIS)
_BAD_CANDLES: tuple[Any, ...] = (
    candle(0, timestamp=START + 1),
    candle(0, high=float("nan")),
    candle(0, low=11.5),
    candle(0, volume=-1.0),
    {"timestamp": START},
    "text",
    None,
)
_BAD_WINDOWS: tuple[tuple[Any, ...], ...] = (
    (-1, START),
    (1.5, START),
    (None, START),
    (1, START + 1),
    (1, None),
    (1, START, True),
    *((1, instant) for instant in NO_MILLIS),
)


class Refusals(Suite):
    """Bad input is a typed error of reads, writes and removals, also in a backend that keeps nothing."""

    @for_each()
    async def test_an_unusable_part_of_a_context_is_refused(self, tmp_path: Path, subject: Subject) -> None:
        """A name that is no usable str, and a flag that is no bool, are an InvalidKeyError of every call."""
        unusable = [(position, value) for position in subject.flag_positions for value in _BAD_FLAGS]
        unusable += [
            (position, value)
            for position in subject.name_positions
            for value in _BAD_NAMES
            if not (value == "" and position in subject.optional_positions)
            and not (is_list(subject) and position >= len(subject.context))
        ]
        async with self.open(tmp_path) as persist:
            for position, value in unusable:
                parts = subject.with_part(position, value)
                await _is_refused(subject.read(persist, parts), InvalidKeyError)
                await _is_refused(subject.write(persist, parts, {"n": 1}), InvalidKeyError)
                if is_removable(subject):
                    await _is_refused(subject.remove(persist, parts), InvalidKeyError)
                if tells_presence(subject):
                    await _is_refused(subject.was_written(persist, parts), InvalidKeyError)

    @for_each(keeps_payloads)
    async def test_an_unusable_payload_is_refused(self, tmp_path: Path, subject: Subject) -> None:
        """A value without an exact form is an InvalidPayloadError wherever it is; so is what is no mapping."""
        async with self.open(tmp_path) as persist:
            for value in _BAD_VALUES:
                for payload in ({"good": 1, "bad": value}, {"inner": [{"bad": [value]}]}):
                    await _is_refused(subject.write(persist, subject.sample, payload), InvalidPayloadError)
            for payload in _BAD_PAYLOADS if is_single_payload(subject) else ():
                await _is_refused(subject.write(persist, subject.sample, payload), InvalidPayloadError)

    @for_each(is_list)
    async def test_an_unusable_entry_is_refused(self, tmp_path: Path, subject: Subject) -> None:
        """One without a usable id is an InvalidKeyError, and one that is no mapping an InvalidPayloadError."""
        async with self.open(tmp_path) as persist:
            for entry in _BAD_ENTRIES:
                entries = [{"id": "good"}, entry]
                await _is_refused(subject.write_entries(persist, subject.sample, entries), InvalidKeyError)
            for entries in ([{"id": "good"}, "text"], [{"id": "bad", "n": {1}}], None, 5):
                await _is_refused(subject.write_entries(persist, subject.sample, entries), InvalidPayloadError)

    @for_each(is_timed)
    async def test_an_unusable_when_is_refused(self, tmp_path: Path, subject: Subject) -> None:
        """A `when` that is no instant in ms is an InvalidWhenError of writes, reads and lists."""
        async with self.open(tmp_path) as persist:
            for when in (None, *_BAD_WHENS):
                await _is_refused(subject.write(persist, subject.sample, {"n": 1}, when), InvalidWhenError)
                if when is None and may_omit_when(subject):
                    continue
                await _is_refused(subject.read(persist, subject.sample, when=when), InvalidWhenError)
                if is_listed_at_when(subject):
                    await _is_refused(subject.keys(persist, subject.sample, when=when), InvalidWhenError)
                if tells_presence(subject):
                    await _is_refused(subject.was_written(persist, subject.sample, when=when), InvalidWhenError)

    @requires(CANDLE)
    async def test_an_unusable_candle_or_window_is_refused(self, tmp_path: Path) -> None:
        """A candle that cannot be real is an InvalidPayloadError, and a window that is none an InvalidKeyError."""
        bad: Any
        async with self.open(tmp_path) as persist:
            adapter: Any = await persist.candle("BTCUSDT", "1m", "binance")
            for bad in _BAD_CANDLES:
                await _is_refused(adapter.write_candles_data([candle(1), bad]), InvalidPayloadError)
            for window in _BAD_WINDOWS:
                await _is_refused(adapter.read_candles_data(*window), InvalidKeyError)
            daily = await persist.candle("BTCUSDT", "1d", "binance")
            await _is_refused(daily.read_candles_data(1, START + DAY // 2), InvalidKeyError)
            for interval in ("7m", "", None, 1):
                bad = interval
                await _is_refused(_read_candle(persist, bad), InvalidKeyError)


async def _read_candle(persist: Any, interval: Any) -> Any:
    adapter = await persist.candle("BTCUSDT", interval, "binance")
    return await adapter.read_candles_data(1, START)


async def _is_refused(call: Awaitable[Any], error: type[BacktestPersistError]) -> None:
    with pytest.raises(error):
        await call
