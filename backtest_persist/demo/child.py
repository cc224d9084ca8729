"""The child process of the demo, which begins a run and is killed in the middle of it."""

import asyncio
import json
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from contextlib import aclosing, suppress
from decimal import Decimal
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from backtest_persist import BacktestPersistError, Mode, Settings, ioc, persist, setup
from backtest_persist.demo.bars import load
from backtest_persist.demo.replay import Observer, open_run, replay
from backtest_persist.demo.strategy import Signal

__all__ = ("Child", "main")


class Child:
    """A process that begins a run, within an ``async with`` block."""

    def __init__(self) -> None:
        self._process: Process

    async def __aenter__(self) -> Self:
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", "from backtest_persist.demo.child import main; main()"),
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            stdin=PIPE,
            stdout=PIPE,
            start_new_session=True,  # Ctrl-C is for its parent
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._kill()

    async def begin(
        self, mode: Mode, symbol: str, total: int, directory: Path | None, settings: Settings | None
    ) -> None:
        """Let it begin a run of so many bars, on JSON files in a directory, or on MongoDB.

        The servers are those of `settings`, or of the environment.
        """
        work: dict[str, Any] = {"mode": mode, "symbol": symbol, "total": total, "environment": {}}
        if directory is not None:
            work["directory"] = str(directory)
        if settings is not None and settings.redis_url is not None:
            work["environment"] = {
                "CC_MONGO_CONNECTION_STRING": settings.mongo_connection_string.get_secret_value(),
                "CC_REDIS_URL": settings.redis_url.get_secret_value(),
            }
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(work).encode() + b"\n")
        await self._process.stdin.drain()

    async def kill_after(self, bars: int, observer: Observer) -> int | None:
        """Kill it when so many bars have ended, whatever it is doing then.

        Returns how many had ended; None if it was not killed, because it has met an error or the end of the run.
        """
        assert self._process.stdout is not None
        ended = 0
        async for line in self._process.stdout:
            message = json.loads(line)
            if "trade" in message:
                observer.traded(Signal.model_validate(message["trade"]))
            else:
                ended = message["bars"]
                observer.ended(ended, Decimal(message["equity"]))
                if ended == bars:
                    self._process.kill()
        return ended if await self._process.wait() == -signal.SIGKILL else None

    async def _kill(self) -> None:
        with suppress(ProcessLookupError):
            self._process.kill()
        await self._process.wait()


class _Messages:
    """Tells the parent of the progress, a line of JSON each."""

    def started(self, bars: int, total: int) -> None: ...
    def killed(self, bars: int) -> None: ...

    def ended(self, bars: int, equity: Decimal) -> None:
        _send({"bars": bars, "equity": str(equity)})

    def traded(self, signal: Signal) -> None:
        _send({"trade": signal.model_dump(mode="json", by_alias=True)})


def _send(message: dict[str, Any]) -> None:
    print(json.dumps(message), flush=True)


def main() -> None:
    """Carry out the work that the parent describes on standard input."""
    line = sys.stdin.readline()
    if not line:
        return
    work = json.loads(line)
    os.environ.update(work["environment"])
    with suppress(BacktestPersistError, BrokenPipeError):  # the parent meets the error itself, or has ended
        asyncio.run(_run(Mode(work["mode"]), work["symbol"], work["total"], work.get("directory")))


async def _run(mode: Mode, symbol: str, total: int, directory: str | None) -> None:
    sample = load(symbol)
    if directory is None:
        setup()
    else:
        persist.use_json(directory)
    async with aclosing(ioc), open_run(persist, mode, sample) as run:
        await replay(run, sample, total, _Messages())
