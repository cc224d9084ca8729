"""A strategy that writes in many domains, and processes that run it until they are killed.

As a program this module is a host: for each line of its input it forks a process that runs the strategy, and it prints
what happens. Forking spares the imports, so that many of them can be killed in little time.
"""

import asyncio
import json
import os
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any

from backtest_persist import BacktestPersistError, Container, Mode, Registry, Settings, StoreUnavailableError
from backtest_persist.backends.mongo import MongoBackend
from backtest_persist.run.run import Run
from backtest_persist.testing.subjects import MINUTE, START, candle
from tests.support.processes import fork_for_lines, settings_environment, start_python

__all__ = ("Host", "check", "contents", "host", "play", "run_of")

_STRATEGY, _EXCHANGE, _FRAME = "killed", "binance", "2024"
_WHEN = START + MINUTE


def run_of(persist: Registry, symbol: str, mode: Mode, **options: Any) -> Run[dict[str, Any]]:
    """Return the run of a symbol; in a backtest four bars are stored together."""
    every = 4 if mode is Mode.BACKTEST else None
    return persist.run(
        strategy=_STRATEGY, exchange=_EXCHANGE, symbol=symbol, frame=_FRAME, mode=mode, commit_every=every, **options
    )


async def play(run: Run[dict[str, Any]], stop: int) -> None:
    """Do all bars before that number that have not been done; each notes whether all that it has read was right."""
    symbol = run.context.symbol
    for n in range(run.bars, stop):
        async with run.bar(_WHEN + n * MINUTE) as bar:
            window = await bar.candles("1m", 3)
            expected = [START + k * MINUTE for k in range(max(n - 3, 0), n)]
            is_right = [row["timestamp"] for row in window] == expected
            total = bar.session["total"] = bar.session.get("total", 0) + (n * 7919) % 101
            id = bar.new_id()
            claimed = await bar.interval(symbol).claim_interval_data({"n": n}, str(n))
            trade = {"id": id, "n": n, "total": total, "symbol": symbol, "sound": claimed and is_right}
            await bar.signal.write_signal_data(trade if n % 3 else None)
            await bar.storage.write_storage_data([trade])
            await bar.log.write_log_data([{**trade, "id": bar.new_id("log")}])
            await bar.risk(symbol).write_position_data([n, total])
            await bar.state(id, "b").write_state_data(trade)
            await bar.measure(symbol).write_measure_data(trade, str(n))
            if n:
                await bar.measure(symbol).remove_measure_data(str(n - 1))
            await bar.candle("1m").write_candles_data([candle(n)])


async def contents(container: Container, symbol: str, mode: Mode) -> dict[str, Any]:
    """Return what is stored of a run: the documents of all domains, without ids and dates."""
    found: dict[str, Any] = {}
    database = container.mongo_service.database
    of_domain: dict[str, dict[str, Any]] = {
        "candle": {"symbol": symbol},
        "interval": {"bucket": symbol},
        "log": {"payload.symbol": symbol},
        "measure": {"bucket": symbol},
        "risk": {"riskName": symbol},
        "session": {"symbol": symbol, "backtest": mode.backtest},
        "signal": {"symbol": symbol},
        "state": {"payload.symbol": symbol},
        "storage": {"payload.symbol": symbol},
    }
    for name, query in of_domain.items():
        service: Any = getattr(container, f"{name}_db_service")
        cursor = database[service.collection].find(query, {"_id": 0, "__v": 0}, sort=[("_id", 1)])
        documents = await cursor.to_list(None)
        for document in documents:
            del document["createDate"], document["updatedDate"]
        found[name] = documents
    return found


async def check(container: Container, symbol: str, mode: Mode) -> int:
    """Return how many bars of a run are stored; one of which a part is stored is an AssertionError."""
    found = await contents(container, symbol, mode)
    session: dict[str, Any] = found["session"][0]["payload"] if found["session"] else {"bars": 0}
    bars: int = session["bars"]
    counts = {name: len(found[name]) for name in ("candle", "interval", "log", "measure", "state", "storage")}
    assert counts == dict.fromkeys(counts, bars), f"{session}: {counts}"
    trades = [entry["payload"] for entry in found["storage"]]
    assert [(trade["n"], trade["sound"]) for trade in trades] == [(n, True) for n in range(bars)]
    assert [entry["removed"] for entry in found["measure"]] == [True] * (bars - 1) + [False] * min(bars, 1)
    if trades:
        assert session["data"] == {"total": trades[-1]["total"]}
        assert found["signal"][0]["payload"] == (trades[-1] if (bars - 1) % 3 else None)
        assert found["risk"][0]["positions"] == [bars - 1, trades[-1]["total"]]
    return bars


# --- processes ---


class Host:
    """The process that forks those that run the strategy; see the module."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def start(self, settings: Settings, symbol: str, mode: Mode, lease_seconds: float = 15) -> int:
        """Start a process that does bars without end on the servers of the settings, and return its pid."""
        assert self._process.stdin is not None
        order = [settings_environment(settings), symbol, mode, lease_seconds]
        self._process.stdin.write(f"{json.dumps(order)}\n".encode())
        return int(await self._line(str.isdigit))

    async def says(self, *texts: str) -> None:
        """Wait until one of the processes prints "running", as it has the lease, or the name of its error."""
        await self._line(texts.__contains__)

    async def _line(self, is_wanted: Callable[[str], bool]) -> str:
        assert self._process.stdout is not None
        async with asyncio.timeout(30):
            while not is_wanted(line := (await self._process.stdout.readline()).decode().strip()):
                assert line, "the host has ended"
        return line


@asynccontextmanager
async def host() -> AsyncGenerator[Host]:
    """Run a host."""
    process = await start_python(
        *("-m", "tests.support.killed_runs"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        yield Host(process)
    finally:
        if process.stdin is not None:
            process.stdin.close()
        async with asyncio.timeout(10):
            await process.wait()


async def _strategy(environment: Mapping[str, str], symbol: str, mode: str, lease_seconds: float) -> None:
    os.environ.update(environment)
    defaults: Any = MongoBackend.lease.__kwdefaults__
    defaults["duration"] = lease_seconds
    async with Container(Settings()) as container:
        try:
            async with run_of(Registry(container), symbol, Mode(mode), lease_wait=10) as run:
                print("running", flush=True)
                while True:
                    with suppress(StoreUnavailableError):  # the bar is done again
                        await play(run, 1_000_000)
        except BacktestPersistError as error:
            print(type(error).__name__, flush=True)


if __name__ == "__main__":
    fork_for_lines(_strategy)
