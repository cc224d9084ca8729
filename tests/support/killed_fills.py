"""Processes that fill a series until they are killed.

As a program this module is a host: for each line of its input it forks a process that fills a series, and prints its
pid. Forking spares the imports.
"""

import asyncio
import json
import os
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager

from backtest_persist import Container, Settings
from backtest_persist.operations.candles.filling import fill_candles
from tests.support.exchange_server import open_exchange
from tests.support.processes import fork_for_lines, settings_environment, start_python

__all__ = ("Start", "killed_fills")

Start = Callable[[int, int], Awaitable[int]]
"""Starts a process that fills the series of minutes from a time on, up to another one, and returns its pid."""


@asynccontextmanager
async def killed_fills(settings: Settings, url: str) -> AsyncGenerator[Start]:
    """Run a host of processes on the servers of the settings, which ask the exchange at `url`."""
    process = await start_python(
        *("-m", "tests.support.killed_fills"), stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdin is not None
    assert process.stdout is not None
    requests, answers = process.stdin, process.stdout

    async def start(since: int, until: int) -> int:
        requests.write(f"{json.dumps([settings_environment(settings), url, since, until])}\n".encode())
        async with asyncio.timeout(30):
            return int(await answers.readline())

    try:
        yield start
    finally:
        requests.close()
        async with asyncio.timeout(10):
            await process.wait()


async def _fill(environment: Mapping[str, str], url: str, since: int, until: int) -> None:
    os.environ.update(environment)
    async with Container(Settings()) as container, open_exchange(url) as exchange:
        await fill_candles(container, exchange, "BTCUSDT", "1m", since, until)


if __name__ == "__main__":
    fork_for_lines(_fill)
