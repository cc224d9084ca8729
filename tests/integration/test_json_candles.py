"""Candles in files: the db service answers windows, gaps and single candles as it does on MongoDB."""

from pathlib import Path
from typing import Any

import pytest

from backtest_persist import InvalidKeyError, InvalidPayloadError
from backtest_persist.backends.json import candles
from backtest_persist.domains.candle import CandleDbService
from tests.support.dumps import ORIGINAL, write_dump
from tests.support.json_backend import CANDLE, candles_from_start, open_dump

START, MINUTE = int(CANDLE["timestamp"]), 60_000
SERIES = ("A", "1m", "x")


async def service(directory: Path) -> CandleDbService:
    adapter: Any = await open_dump(directory).candle(*SERIES)
    return adapter.db


async def test_the_first_candle_of_a_time_is_kept(tmp_path: Path) -> None:
    """Creating returns what is stored, and counts what is new."""
    db = await service(tmp_path)
    row = await db.create(*SERIES, CANDLE)
    assert row.data() == CANDLE
    assert await db.create(*SERIES, {**CANDLE, "close": 9.5}) == row
    assert await db.create_many(*SERIES, [*candles_from_start(3), CANDLE]) == 2
    assert await db.create_many(*SERIES, [{**CANDLE, "close": 9.5}]) == 0
    assert await db.find_by_context(*SERIES, START) == row
    assert await db.has_candle(*SERIES, START + 2 * MINUTE)
    assert not await db.has_candle(*SERIES, START + 3 * MINUTE)
    with pytest.raises(InvalidPayloadError, match="high is below"):
        await db.create_many(*SERIES, [candles_from_start(4)[3], {**CANDLE, "high": 1.0}])
    assert not await db.has_candle(*SERIES, START + 3 * MINUTE)


@pytest.mark.parametrize("max_missing", [0, 1, 100])
async def test_a_window_is_what_is_stored_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, max_missing: int
) -> None:
    """Candles are found by name or by a list of the directory, whichever is chosen, in their order."""
    monkeypatch.setattr(candles, "_MAX_MISSING", max_missing)
    db, given = await service(tmp_path), candles_from_start(20)
    stored = [given[n] for n in (0, 3, 4, 5, 15, 19)]
    await db.create_many(*SERIES, stored)
    assert await db.find_data(*SERIES, START, 20) == stored
    assert [row.data() for row in await db.find_range(*SERIES, START - 5 * MINUTE, 10)] == stored[:3]
    assert await db.find_data(*SERIES, START + 1, 3) == [stored[1]]
    assert await db.find_data(*SERIES, START, 0) == []
    assert (await db.find_columns(*SERIES, START, 20))["timestamp"].tolist() == [c["timestamp"] for c in stored]


async def test_gaps_are_found_by_the_names_of_files(tmp_path: Path) -> None:
    """They begin at the first missing candle, and end with the bounds or before the next candle."""
    db, given = await service(tmp_path), candles_from_start(10)
    assert await db.find_gaps(*SERIES, START, START + 2 * MINUTE) == [(START, START + 2 * MINUTE)]
    await db.create_many(*SERIES, [given[n] for n in (1, 2, 5)])
    assert await db.find_gaps(*SERIES, START - 1, START + 7 * MINUTE) == [
        (START, START + MINUTE),
        (START + 3 * MINUTE, START + 5 * MINUTE),
        (START + 6 * MINUTE, START + 7 * MINUTE),
    ]
    assert await db.find_gaps(*SERIES, START + MINUTE, START + 3 * MINUTE) == []
    assert await db.find_gaps(*SERIES, START + MINUTE, START) == []


async def test_candles_that_the_framework_nests_are_part_of_a_window(tmp_path: Path) -> None:
    """Also where the directory is listed."""
    write_dump(tmp_path, ORIGINAL)
    adapter: Any = await open_dump(tmp_path).candle("BTC/USDT:USDT", "1m", "binance")
    series = ("BTC/USDT:USDT", "1m", "binance")
    await adapter.write_candles_data([candles_from_start(500)[499]])
    assert [row.timestamp for row in await adapter.db.find_range(*series, START, 500)] == [START, START + 499 * MINUTE]
    assert await adapter.db.find_gaps(*series, START, START + 500 * MINUTE) == [(START + MINUTE, START + 499 * MINUTE)]


@pytest.mark.parametrize("series", [("", "1m", "x"), ("A", "7m", "x"), ("A", "1m", "a\0")])
async def test_a_series_that_cannot_be_is_refused(tmp_path: Path, series: tuple[str, str, str]) -> None:
    """Every method refuses it before it looks at a file."""
    db = await service(tmp_path)
    for call in (
        db.find_by_context(*series, START),
        db.find_data(*series, START, 1),
        db.find_gaps(*series, START, START),
        db.create_many(*series, []),
    ):
        with pytest.raises(InvalidKeyError):
            await call
