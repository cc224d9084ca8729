"""Candle chunks: what is kept as plain data beside columns, and for how long."""

import pytest

from backtest_persist.contracts import CandleData
from backtest_persist.core.candles.ohlcv import candle_columns
from backtest_persist.run import candle_chunks
from backtest_persist.run.candle_chunks import CandleChunks, rows_of

MINUTE = 60_000


def candle(number: int) -> CandleData:
    return {
        "timestamp": number * MINUTE,
        "open": 1.0,
        "high": 2.0,
        "low": 1.0,
        "close": 1.5,
        "volume": float(number),
    }


def test_chunks_that_are_read_as_plain_data_take_half_of_the_bytes_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A chunk that is read often is kept so in place of an older one, and its bytes count until it is evicted."""
    monkeypatch.setattr(candle_chunks, "SLOTS", 16)
    monkeypatch.setattr(candle_chunks, "_ROW_READS", 2)
    chunks = CandleChunks(30_000)  # a chunk takes 2816, and 7168 more as plain data
    series = chunks.series("BTCUSDT", "1m", "binance")

    def kept_as_rows() -> list[int]:
        assert chunks.nbytes == sum(chunk.nbytes for chunk in series.chunks.values()) <= 30_000
        return [index for index, chunk in series.chunks.items() if chunk.rows is not None]

    for first in (0, 5, 20):  # those before are evicted
        series.add(candle_columns([candle(number) for number in range(first * 16, (first + 4) * 16)]))
        assert kept_as_rows() == []
        for index in range(first, first + 4):
            newest = index * 16 + 12
            for _ in range(3):
                parts = series.last(newest * MINUTE, 8)
                chunks.touch(parts[0][0])
                assert rows_of(parts) == [candle(number) for number in range(newest - 7, newest + 1)]
        assert kept_as_rows() == [first + 2, first + 3]
        # others take the place of all of them
        series.add(candle_columns([candle(number) for number in range((first + 100) * 16, (first + 110) * 16)]))
        assert kept_as_rows() == []
