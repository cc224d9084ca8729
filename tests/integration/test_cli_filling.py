"""The command `candles fill`: what it prints and how it exits."""

import asyncio
import json
import re
import signal
from pathlib import Path
from typing import Any

import pytest

from backtest_persist import Container, Settings
from backtest_persist.operations import fill_candles
from tests.support.exchange_server import DAY, LISTED, MINUTE, ExchangeServer, open_exchange
from tests.support.processes import run_cli, settings_environment, start_python
from tests.support.stopwatch import HANG

PROGRAM = """
import sys
import ccxt.async_support as ccxt
from backtest_persist.cli import main
from backtest_persist.operations import fill_candles
from tests.support.exchange_server import connect
binance, url = ccxt.binance, sys.argv.pop(1)
ccxt.binance = lambda config: connect(binance(config), url)
main()
"""
"""The command line, with the Binance of ccxt on a server of the tests."""


@pytest.fixture(scope="session")
def driver() -> str:
    """One driver: these tests are about the command line."""
    return "motor"


class Command:
    """`candles fill` of the series of minutes of BTCUSDT."""

    def __init__(self, settings: Settings, server: ExchangeServer) -> None:
        self.environment = {**settings_environment(settings), "COLUMNS": "200", "NO_COLOR": "1", "NO_PROXY": "*"}
        self.server = server

    async def start(self, *options: str) -> asyncio.subprocess.Process:
        """Start it."""
        command = ("candles", "fill", "binance", "BTCUSDT", "1m", *options)
        pipes: dict[str, Any] = {"stdout": asyncio.subprocess.PIPE, "stderr": asyncio.subprocess.PIPE}
        return await start_python("-c", PROGRAM, self.server.url, *command, environment=self.environment, **pipes)

    async def run(self, *options: str) -> tuple[int | None, str, str]:
        """Run it to its end; returns its status and what it has printed."""
        return await end(await self.start(*options))


async def end(process: asyncio.subprocess.Process) -> tuple[int | None, str, str]:
    """Wait for the end of a process; returns its status and what it has printed."""
    async with asyncio.timeout(HANG):
        output, errors = await process.communicate()
    assert b"release all resources" not in errors
    assert b"Traceback" not in errors
    return process.returncode, output.decode(), errors.decode()


async def test_a_series_is_filled(settings: Settings) -> None:
    """The report tells what was asked for, what is new and missing on the exchange; 3 means that some is left."""
    hole, bad = (LISTED + 5 * MINUTE, LISTED + 8 * MINUTE), LISTED + 50 * MINUTE
    async with ExchangeServer(holes=[hole]) as server:
        command = Command(settings, server)
        bounds = ("--since", "2022-12-31", "--until", "2023-01-01T20:00Z")
        status, shown, _ = await command.run(*bounds, "--dry-run")
        assert status == 0
        assert shown.splitlines() == [
            "BTCUSDT 1m binance, 2022-12-31 00:00 to 2023-01-01 20:00 UTC",
            "2,640 candles to ask for, in 1 gap.",
            "  2022-12-31 00:00 to 2023-01-01 20:00: 2,640",
            "They take 3 requests or more.",
            "Nothing was fetched or written (--dry-run).",
        ]
        server.changed[bad] = [5.0, 4.0, 6.0, 5.0, 1.0]
        server.faults.append("503")
        status, shown, errors = await command.run(*bounds)
        assert status == 3
        assert "2,640 candles were asked for, 1,196 are new. 3 requests (1 repeated), " in shown
        assert "The exchange does not have 1,443, in 2 gaps; --ask-again asks for them again." in shown
        assert "Cannot be real, and not stored: 1\n  2023-01-01 00:50: high is below" in shown
        assert "Still missing: 1\n  2023-01-01 00:50 to 2023-01-01 00:51: 1" in shown
        assert "Again in 0.5 s: server error: ExchangeNotAvailable" in errors
        assert "Filling BTCUSDT 1m" in errors  # the progress bar

        del server.changed[bad]
        status, shown, _ = await command.run(*bounds, "--json")
        report = json.loads(shown)
        assert (status, report["new"], report["requests"]) == (0, 1, 1)
        assert report["missing"] == [[LISTED - DAY, LISTED], list(hole)]


async def test_a_fill_that_is_interrupted_goes_on(settings: Settings, container: Container) -> None:
    """After Ctrl-C pages are stored whole, one line says to run it again, and the next fill asks for the rest alone."""
    until = LISTED + 20_000 * MINUTE
    async with ExchangeServer() as server, open_exchange(server.url) as exchange:
        process = await Command(settings, server).start("--since", str(LISTED), "--until", str(until))
        async with asyncio.timeout(HANG):
            while len(server.asked) < 4:
                await asyncio.sleep(0.002)
        process.send_signal(signal.SIGINT)
        status, shown, errors = await end(process)
        assert (status, shown) == (130, "")
        assert "Stopped. What was fetched is stored; run the same command again to go on." in errors
        count = await container.candle_db_service.count()
        assert count % 1000 == 0
        assert count >= 3000
        asked = len(server.asked)
        report = await fill_candles(container, exchange, "BTCUSDT", "1m", LISTED, until)
        assert report.new == 20_000 - count
        assert len(server.asked) - asked <= 21 - count // 1000


async def test_an_exchange_without_any_candle(settings: Settings) -> None:
    """The report says that nothing counts as missing, and 3 is the status."""
    async with ExchangeServer() as server:
        server.faults.extend(["empty"] * 30)
        status, shown, errors = await Command(settings, server).run("--since", "2023-01-01", "--until", "2023-01-02")
        assert status == 3
        assert "Still missing: 1,440\nThe exchange has not given any candle, so that nothing counts" in shown
        assert "The exchange does not have" not in shown
        assert "Again in 1.0 s: it has not given any candle yet" in errors


async def test_errors_are_one_line(settings: Settings, tmp_path: Path) -> None:
    """A refusal says what to do, with 1; a wrong argument ends with 2, and names what is near."""
    async with ExchangeServer() as server:
        command = Command(settings, server)
        server.faults.append("451")
        status, shown, errors = await command.run("--since", str(LISTED), "--until", str(LISTED + DAY))
        assert (status, shown) == (1, "")
        assert errors.splitlines()[-1].startswith("backtest-persist: binance does not serve the location")
    wrong = await run_cli("candles", "fill", "binanc", "A", "1m", "--since", "1d", settings=settings, cwd=tmp_path)
    assert wrong.returncode == 2
    assert re.search(r"no exchange 'binanc'\. Did you\s+mean binance", re.sub(r"[│\n]", "", wrong.stderr))
    program = "import sys; from backtest_persist.cli import app, main; 1 / ('ccxt' not in sys.modules)"
    program += "; sys.modules['ccxt'] = None; main()"
    arguments = ("candles", "fill", "binance", "BTCUSDT", "1m", "--since", "1d")
    process = await start_python(
        "-c", program, *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    status, _, errors = await end(process)
    assert status == 2
    assert 'ccxt is not installed; run: pip install "backtest-persist[ccxt]"' in errors
