"""Candles that a run writes: read at once, stored with their bar, and compared with what others have stored."""

import logging

import pytest

from backtest_persist import Container, Mode, Registry
from backtest_persist.testing.subjects import MINUTE, START, candle


@pytest.fixture(scope="session")
def driver() -> str:
    """These tests are not about drivers."""
    return "motor"


async def test_candles_written_bar_by_bar_are_read_once(container: Container) -> None:
    """Each bar sees its own candle and those before it; what a commit has stored is not asked for window by window."""
    db = container.candle_db_service
    run = Registry(container).run(
        strategy="trend", exchange="binance", symbol="BTC", frame="2024", mode=Mode.BACKTEST, commit_every=5
    )
    async with run:
        for number in range(40):
            async with run.bar(START + (number + 1) * MINUTE) as bar:
                await bar.candle("1m").write_candles_data([candle(number)])
                expected = [candle(n) for n in range(max(0, number - 9), number + 1)]
                assert await bar.candles("1m", 10) == expected
                columns = await bar.candles("1m", 10, as_columns=True)
                assert columns["volume"].tolist() == [row["volume"] for row in expected]
    assert await db.find_data("BTC", "1m", "binance", START, 40) == [candle(number) for number in range(40)]
    assert db.stats.reads < 40


async def test_a_candle_that_is_stored_with_other_numbers_is_kept_and_told(
    container: Container, caplog: pytest.LogCaptureFixture
) -> None:
    """The log says so once the bar is stored; the next window has the stored one."""
    db = container.candle_db_service
    await db.create_many("BTC", "1m", "binance", [candle(1, volume=99.0)])
    run = Registry(container).run(strategy="trend", exchange="binance", symbol="BTC", frame="2024", mode=Mode.LIVE)
    async with run:
        with caplog.at_level(logging.WARNING, "backtest_persist"):
            async with run.bar(START + 3 * MINUTE) as bar:
                await bar.candle("1m").write_candles_data([candle(0), candle(1), candle(2)])
        (line,) = [vars(record) for record in caplog.records if record.levelno == logging.WARNING]
        assert line["event"] == "candles.not_as_given"
        assert (line["bp_different"], line["bp_first_different"]) == (1, START + MINUTE)
        async with run.bar(START + 4 * MINUTE) as bar:
            assert await bar.candles("1m", 3) == [candle(0), candle(1, volume=99.0), candle(2)]


async def test_runs_of_one_loop_share_the_memory(container: Container) -> None:
    """What one of them has read the others need not read; the last one to leave forgets all."""
    db, persist = container.candle_db_service, Registry(container)
    await db.create_many("BTC", "1m", "binance", [candle(n) for n in range(50)])

    async def reads(strategy: str) -> int:
        before = db.stats.reads
        run = persist.run(strategy=strategy, exchange="binance", symbol="BTC", frame="2024", mode=Mode.BACKTEST)
        async with run, run.bar(START + 40 * MINUTE) as bar:
            assert await bar.candles("1m", 20) == [candle(n) for n in range(20, 40)]
        return db.stats.reads - before

    async with persist.run(strategy="first", exchange="binance", symbol="BTC", frame="2024", mode=Mode.BACKTEST):
        assert await reads("second") > 0
        assert await reads("third") == 0
    assert await reads("fourth") > 0
