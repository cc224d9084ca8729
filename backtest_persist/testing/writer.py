"""The writer: another process on the store of a test; it tells what it has written, and may be killed at any instant.

What it does is one of the programs below. It acknowledges a write, once that has returned, by a line on its standard
output. The test knows it as a `Writer`.
"""

import asyncio
import importlib
import importlib.util
import inspect
import os
import signal
import sys
import tempfile
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path
from typing import IO, Any

from backtest_persist.registry import Registry
from backtest_persist.testing.domains import DOMAINS, EARLY, SIGNAL, candle
from backtest_persist.testing.suite import Suite

__all__ = ("BULK", "COPIES", "OTHER", "Writer", "bulk", "main", "running")

BULK = 1500
"""How many entries the program ``bulk`` writes in one call."""
COPIES = 300
"""How often a value repeats its number, so that half a value is seen to be one."""
OTHER = SIGNAL.numbered(2)

_WAIT_SECONDS = 120.0  # only a store that hangs takes that long


class Writer:
    """A running writer, as its test sees it."""

    def __init__(self, process: asyncio.subprocess.Process, errors: IO[bytes]) -> None:
        self._process = process
        self._errors = errors
        self.acknowledged: list[str] = []
        """What it has told, in order."""

    async def acknowledges(self, number: int = 1) -> None:
        """Wait until it has told so many things in all; fails when it ends before."""
        while len(self.acknowledged) < number:
            line = await self._line()
            assert line, f"the writer has ended too early:\n{await self._end()}"
            self.acknowledged.append(line)

    async def ends(self) -> None:
        """Wait until it has ended by itself and without an error."""
        problems = await self._end()
        assert self._process.returncode == 0, f"the writer has failed:\n{problems}"

    async def is_killed(self) -> None:
        """Wait until it is dead; killing itself is part of the program."""
        problems = await self._end()
        assert self._process.returncode == -signal.SIGKILL, f"the writer was to be killed, but has failed:\n{problems}"

    async def sees(self, seen: Callable[[], Awaitable[bool]]) -> None:
        """Wait until something can be seen of what it does, or it has ended."""
        async with asyncio.timeout(_WAIT_SECONDS):
            while self._process.returncode is None and not await seen():  # noqa: ASYNC110  # a store has no event
                await asyncio.sleep(0)

    async def kill(self, by: signal.Signals = signal.SIGKILL) -> None:
        """Kill it and wait until it is dead; what it has told before counts. It may have ended, but not failed."""
        problems = await self.stop(by)
        assert self._process.returncode in (0, -by), f"the writer has failed:\n{problems}"

    async def stop(self, by: signal.Signals = signal.SIGKILL) -> str:
        """Kill it and wait until it is dead; returns what it has written to its standard error."""
        if self._process.returncode is None:
            self._process.send_signal(by)
        return await self._end()

    async def _end(self) -> str:
        while line := await self._line():
            self.acknowledged.append(line)
        async with asyncio.timeout(_WAIT_SECONDS):
            await self._process.wait()
        self._errors.seek(0)
        return self._errors.read().decode(errors="replace")

    async def _line(self) -> str:
        assert self._process.stdout is not None
        async with asyncio.timeout(_WAIT_SECONDS):
            return (await self._process.stdout.readline()).decode().strip()


@asynccontextmanager
async def running(suite: Suite, place: Path, program: str) -> AsyncGenerator[Writer]:
    """Run a program in another process, on the store that the class of a test has at a place; at the end it is dead."""
    of = type(suite)
    assert "<locals>" not in of.__qualname__, (
        f"{of.__qualname__} has to be at the top level, for another process to see"
    )
    arguments = (of.__module__, inspect.getfile(of), of.__qualname__, str(place), program)
    code = f"from {__name__} import main; main()"  # not -m, which finds the module imported by its own package
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, map(os.path.abspath, sys.path)))}
    with tempfile.TemporaryFile() as errors:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", code, *arguments),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=errors,
            env=environment,
        )
        writer = Writer(process, errors)
        try:
            yield writer
        finally:
            await writer.stop()


# --- in the other process ---


def main() -> None:
    """Run the program that the arguments name: module, file, class, place, program."""
    module, file, qualname, place, program = sys.argv[1:]
    of: Any = _import(module, file)
    for name in qualname.split("."):
        of = getattr(of, name)
    asyncio.run(_run(of(), Path(place), _PROGRAMS[program]))


def _import(name: str, file: str) -> Any:
    """The module of a test: by its name, or by its file where pytest has not made it importable."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        spec = importlib.util.spec_from_file_location(name, file)
        if error.name is None or not f"{name}.".startswith(f"{error.name}.") or spec is None or spec.loader is None:
            raise
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module


async def _run(suite: Suite, place: Path, program: Callable[[Registry], Awaitable[None]]) -> None:
    async with suite.open(place) as persist:
        await program(persist)


def _acknowledge(what: str) -> None:
    os.write(1, f"{what}\n".encode())  # one call: a line is told entirely or not at all


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


async def _everywhere(persist: Registry) -> None:
    """Write into every domain, and end."""
    for domain in DOMAINS:
        await domain.write(persist, domain.sample, {"n": 2})
        _acknowledge(domain.name)


async def _everywhere_killed(persist: Registry) -> None:
    """Write into every domain, and die at once."""
    for domain in DOMAINS:
        await domain.write(persist, domain.sample, {"n": 2})
    _die()


async def _between(persist: Registry) -> None:
    """Write two values, overwrite the first, and die before the second is overwritten."""
    await SIGNAL.write(persist, SIGNAL.sample, {"n": 1})
    await SIGNAL.write(persist, OTHER, {"n": 1})
    await SIGNAL.write(persist, SIGNAL.sample, {"n": 2})
    _die()
    await SIGNAL.write(persist, OTHER, {"n": 2})


async def _checking(persist: Registry) -> None:
    """Hand over entries that end with the death of the process."""

    def entries() -> Iterator[dict[str, Any]]:
        yield from bulk()[:50]
        _die()

    storage, log = await persist.storage(True), await persist.log()
    await log.write_log_data([{"id": "before"}])
    await storage.write_storage_data(entries())


async def _bulk(persist: Registry) -> None:
    """Write many entries in one call, and end."""
    log = await persist.log()
    _acknowledge("begin")
    await log.write_log_data(bulk())
    _acknowledge("end")


async def _counting(persist: Registry) -> None:
    """Count in five domains, until somebody kills this."""
    state, log, measure = await persist.state("s", "b"), await persist.log(), await persist.measure("b")
    series, storage = await persist.candle("BTCUSDT", "1m", "binance"), await persist.storage(False)
    for n in count(1):
        await state.write_state_data({"n": n, "copies": [n] * COPIES}, EARLY)
        _acknowledge("state")
        await log.write_log_data([{"id": str(n), "n": n, "copies": [n] * COPIES}])
        _acknowledge("log")
        if n % 2:
            await measure.write_measure_data({"n": n, "copies": [n] * COPIES}, "k", EARLY)
        else:
            await measure.remove_measure_data("k")
        _acknowledge("measure")
        await series.write_candles_data([candle(2 * n - 2), candle(2 * n - 1)])
        _acknowledge("candle")
        await storage.write_storage_data([{"id": name, "n": n, "copies": [n] * COPIES} for name in "abc"])
        _acknowledge("storage")


def bulk() -> list[dict[str, Any]]:
    """The entries of the programs ``bulk`` and ``checking``."""
    return [{"id": f"e-{n}", "n": n, "copies": [n] * 10} for n in range(BULK)]


_PROGRAMS = {
    "everywhere": _everywhere,
    "everywhere killed": _everywhere_killed,
    "between": _between,
    "checking": _checking,
    "bulk": _bulk,
    "counting": _counting,
}
