"""The writer: another process on the store of a test, which acknowledges its writes and may be killed at any instant.

It runs one of the programs below, and acknowledges a write that has returned by a line on its standard output. The test
talks to it through a `Writer`.
"""

import asyncio
import importlib
import importlib.util
import inspect
import os
import signal
import sys
import tempfile
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path
from typing import IO, Any

from backtest_persist.mode import Mode
from backtest_persist.registry import Registry
from backtest_persist.run.run import Run
from backtest_persist.testing.subjects import MINUTE, START, Subject, candle, is_append_only
from backtest_persist.testing.suite import Suite

__all__ = ("BULK", "Writer", "bulk_entries", "main", "open_run", "repeated", "running")

BULK = 1500
"""How many entries `bulk_entries` returns."""

_COPIES = 300  # so that half a value is seen to be one
_WAIT_SECONDS = 120.0  # only a store that hangs takes that long


class Writer:
    """A running writer, as its test sees it."""

    def __init__(self, process: asyncio.subprocess.Process, errors: IO[bytes]) -> None:
        self._process = process
        self._errors = errors
        self.acknowledged: list[str] = []
        """The lines that were received, in order."""

    async def wait_for_acknowledgements(self, number: int = 1) -> None:
        """Wait until so many lines were received in all; fails when the process ends before."""
        while len(self.acknowledged) < number:
            line = await self._read_line()
            assert line, f"the writer has ended too early:\n{await self._wait_for_end()}"
            self.acknowledged.append(line)

    async def wait_for_exit(self) -> None:
        """Wait until the process ends by itself; fails when it ends with an error."""
        problems = await self._wait_for_end()
        assert self._process.returncode == 0, f"the writer has failed:\n{problems}"

    async def wait_for_suicide(self) -> None:
        """Wait until the process has killed itself, as some programs do."""
        problems = await self._wait_for_end()
        assert self._process.returncode == -signal.SIGKILL, f"the writer was to be killed, but has failed:\n{problems}"

    async def wait_until(self, seen: Callable[[], Awaitable[bool]]) -> None:
        """Wait until something can be seen of a write, or the process has ended."""
        try:
            async with asyncio.timeout(_WAIT_SECONDS):
                while self._process.returncode is None and not await seen():  # noqa: ASYNC110  # a store has no event
                    await asyncio.sleep(0)
        except TimeoutError:
            raise AssertionError(f"the writer goes on, but nothing new was read for {_WAIT_SECONDS} s") from None

    async def kill(self, by: signal.Signals = signal.SIGKILL) -> None:
        """Kill the process and wait for its end; it may have ended by itself, but not with an error."""
        problems = await self.stop(by)
        assert self._process.returncode in (0, -by), f"the writer has failed:\n{problems}"

    async def stop(self, by: signal.Signals = signal.SIGKILL) -> str:
        """Kill the process and wait for its end; returns what it has written to its standard error."""
        if self._process.returncode is None:
            self._process.send_signal(by)
        return await self._wait_for_end()

    async def _wait_for_end(self) -> str:
        while line := await self._read_line():
            self.acknowledged.append(line)
        async with asyncio.timeout(_WAIT_SECONDS):
            await self._process.wait()
        self._errors.seek(0)
        return self._errors.read().decode(errors="replace")

    async def _read_line(self) -> str:
        assert self._process.stdout is not None
        async with asyncio.timeout(_WAIT_SECONDS):
            return (await self._process.stdout.readline()).decode().strip()


@asynccontextmanager
async def running(suite: Suite, place: Path, program: str, subjects: Sequence[Subject]) -> AsyncGenerator[Writer]:
    """Run a program on some domains in another process, on the store of a suite at a place; kill it at the end."""
    of = type(suite)
    assert "<locals>" not in of.__qualname__, (
        f"{of.__qualname__} has to be at the top level, for another process to see"
    )
    names = [subject.name for subject in subjects]
    arguments = (of.__module__, inspect.getfile(of), of.__qualname__, str(place), program, *names)
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


def bulk_entries() -> list[dict[str, Any]]:
    """Return the entries that the programs for lists write."""
    return [{"id": f"e-{n}", "n": n, "copies": [n] * 10} for n in range(BULK)]


def repeated(number: int) -> dict[str, Any]:
    """Return a payload that repeats its number, so that half of it can be told from all of it."""
    return {"n": number, "copies": [number] * _COPIES}


# --- in the other process ---


def main() -> None:
    """Run the program that the arguments name: module, file, class, place, program, domains."""
    module, file, qualname, place, program, *names = sys.argv[1:]
    of: Any = _import(module, file)
    for name in qualname.split("."):
        of = getattr(of, name)
    suite: Suite = of()
    subjects = [subject for name in names for subject in suite.subjects if subject.name == name]
    asyncio.run(_run(suite, Path(place), _PROGRAMS[program], subjects))


def _import(name: str, file: str) -> Any:
    """Import the module of a test by its name, or by its file where pytest has not made it importable."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        spec = importlib.util.spec_from_file_location(name, file)
        if error.name is None or not f"{name}.".startswith(f"{error.name}.") or spec is None or spec.loader is None:
            raise
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module


Program = Callable[[Registry, Sequence[Subject]], Awaitable[None]]


async def _run(suite: Suite, place: Path, program: Program, subjects: Sequence[Subject]) -> None:
    async with suite.open(place) as persist:
        await program(persist, subjects)


def _acknowledge(what: str) -> None:
    os.write(1, f"{what}\n".encode())  # one call: a line is written entirely or not at all


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


async def _write_each(persist: Registry, subjects: Sequence[Subject]) -> None:
    """Write into each domain, and end."""
    for subject in subjects:
        await subject.write(persist, subject.sample, {"n": 2})
        _acknowledge(subject.name)


async def _write_each_and_die(persist: Registry, subjects: Sequence[Subject]) -> None:
    """Write into each domain, and die at once."""
    for subject in subjects:
        await subject.write(persist, subject.sample, {"n": 2})
    _die()


async def _die_between_writes(persist: Registry, subjects: Sequence[Subject]) -> None:
    """Write two values, overwrite the first, and die before the second is overwritten."""
    for subject in subjects:
        await subject.write(persist, subject.sample, {"n": 1})
        await subject.write(persist, subject.numbered(2), {"n": 1})
        await subject.write(persist, subject.sample, {"n": 2})
        _die()
        await subject.write(persist, subject.numbered(2), {"n": 2})


async def _die_while_entries_are_checked(persist: Registry, subjects: Sequence[Subject]) -> None:
    """Write one entry, then pass entries of which one ends the process."""

    def entries() -> Iterator[dict[str, Any]]:
        yield from bulk_entries()[:50]
        _die()

    for subject in subjects:
        await subject.write_entries(persist, subject.sample, [{"id": "before"}])
        await subject.write_entries(persist, subject.sample, entries())


async def _write_bulk(persist: Registry, subjects: Sequence[Subject]) -> None:
    """Write many entries in one call, and end."""
    for subject in subjects:
        await subject.adapter(persist, subject.sample)
        _acknowledge("begin")
        await subject.write_entries(persist, subject.sample, bulk_entries())
        _acknowledge("end")


async def _count(persist: Registry, subjects: Sequence[Subject]) -> None:
    """Write 1, 2, 3, … into each domain, until the process is killed."""
    for number in count(1):
        for subject in subjects:
            await _write_number(subject, persist, number)
            _acknowledge(subject.name)


def open_run(persist: Registry, mode: Mode) -> Run[dict[str, Any]]:
    """Return the run of the tests."""
    return persist.run(strategy="strategy", exchange="exchange", symbol="symbol", frame="frame", mode=mode)


async def _run_bars(persist: Registry, subjects: Sequence[Subject]) -> None:
    """Write 1, 2, 3, … into each domain, each number in a bar, until the process is killed."""
    async with open_run(persist, Mode.LIVE) as run:
        for number in count(1):
            async with run.bar(START + number * MINUTE) as bar:
                bar.session["n"] = number
                for subject in subjects:
                    await _write_number(subject, persist, number)
            _acknowledge("bar")


async def _write_number(subject: Subject, persist: Registry, number: int) -> None:
    payload, parts = repeated(number), subject.sample
    match subject.kind:
        case "list" if is_append_only(subject):
            await subject.write_entries(persist, parts, [{"id": str(number), **payload}])
        case "list":
            await subject.write_entries(persist, parts, [{"id": name, **payload} for name in "abc"])
        case "candles":
            await subject.write_entries(persist, parts, [candle(2 * number - 2), candle(2 * number - 1)])
        case "removable" if number % 2 == 0:
            await subject.remove(persist, parts)
        case _:
            await subject.write(persist, parts, payload)


_PROGRAMS: dict[str, Program] = {
    "write each": _write_each,
    "write each and die": _write_each_and_die,
    "die between writes": _die_between_writes,
    "die while entries are checked": _die_while_entries_are_checked,
    "write bulk": _write_bulk,
    "count": _count,
    "run bars": _run_bars,
}
