"""Units of work on JSON files, and processes that are killed amid them."""

import asyncio
import os
import shutil
import signal
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from backtest_persist import JsonBackend, Mode
from backtest_persist.core.unit_of_work import UnitOfWork
from backtest_persist.run.candles import unit_over
from tests.support.json_backend import CANDLE, LATE, candles_from_start, collect, open_dump

__all__ = (
    "STEPS",
    "Snapshot",
    "commit",
    "commit_all",
    "prepare",
    "read_bars",
    "run_bars",
    "snapshot",
    "unit_of",
    "write_all",
)

STEPS = ("open", "write", "fsync", "rename", "link", "unlink", "mkdir", "utime")
"""The system calls of writers of files, by their names in `os`."""

Snapshot = Mapping[str, Any]


def unit_of(backend: JsonBackend) -> UnitOfWork:
    """Return a new unit of work over the db services of a backend."""
    return unit_over(backend)


async def prepare(directory: Path) -> None:
    """Store what the unit of `write_all` replaces, removes and claims."""
    persist = open_dump(directory)
    await (await persist.state("s", "b")).write_state_data({"n": 1}, LATE)
    await (await persist.storage(True)).write_storage_data([{"id": "old", "n": 1}, {"id": "kept", "n": 1}])
    measure = await persist.measure("m")
    await measure.write_measure_data({"n": 1}, "gone", LATE)
    interval = await persist.interval("i")
    await interval.write_interval_data({"n": 1}, "free", LATE)
    await interval.remove_interval_data("free")
    await (await persist.candle("BTC", "1m", "x")).write_candles_data([CANDLE])


async def write_all(backend: Mapping[str, Any], ioc: Any) -> None:
    """Write to seven domains, in every way that a change of a unit can be."""
    adapters: Any = {name: factory.func for name, factory in backend.items()}
    await adapters["state"]("s", "b", ioc=ioc).write_state_data({"n": 2}, LATE + 1)
    await adapters["signal"]("A", "my_trend", "x", ioc=ioc).write_signal_data({"n": 2})
    entries = [{"id": "new", "n": 2}, {"id": "old", "n": 2}, {"id": "newer", "n": 2}]
    await adapters["storage"](True, ioc=ioc).write_storage_data(entries)
    await adapters["log"](ioc=ioc).write_log_data([{"id": "a"}])
    await adapters["measure"]("m", ioc=ioc).remove_measure_data("gone")
    assert await adapters["interval"]("i", ioc=ioc).claim_interval_data({"n": 2}, "free", LATE)
    await adapters["candle"]("BTC", "1m", "x", ioc=ioc).write_candles_data(candles_from_start(2))


async def snapshot(directory: Path) -> Snapshot:
    """Read, as another process would, all that `prepare` and `write_all` write."""
    persist = open_dump(directory)
    state, measure = await persist.state("s", "b"), await persist.measure("m")
    return {
        "state": await state.read_state_data(),
        "state before": await state.read_state_data(when=LATE),
        "signal": await (await persist.signal("A", "my_trend", "x")).read_signal_data(),
        "storage": await (await persist.storage(True)).read_storage_data(),
        "log": await (await persist.log()).read_log_data(),
        "measure": await measure.read_measure_data("gone"),
        "interval": await collect((await persist.interval("i")).list_interval_data()),
        "candles": await (await persist.candle("BTC", "1m", "x")).read_candles_data(2, 1_600_000_020_000),
    }


async def commit(backend: JsonBackend, unit: UnitOfWork) -> None:
    """Store what a unit of work has written."""
    await backend.committer().commit(unit.layers[-1].parts())


async def commit_all(directory: Path, before: Callable[[], None] = lambda: None) -> None:
    """Commit the unit of `write_all`; `before` is called when all is written, and nothing stored."""
    backend = JsonBackend(directory)
    unit = unit_of(backend)
    await write_all(backend, unit)
    before()
    await commit(backend, unit)


def kill_at(cut: int) -> None:
    """Kill this process at its `cut`-th system call from now on."""
    left = cut

    def cutting(real: Any) -> Any:
        def call(*args: Any, **options: Any) -> Any:
            nonlocal left
            left -= 1
            if not left:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **options)

        return call

    for name in STEPS:
        setattr(os, name, cutting(getattr(os, name)))


async def run_bars(directory: Path, count: int, before: Callable[[], None] = lambda: None) -> None:
    """Run a strategy up to its bar `count`; `before` is called before each bar that it does."""
    async with open_dump(directory).run(
        strategy="trend", exchange="x", symbol="A", frame="f", mode=Mode.BACKTEST, commit_every=1
    ) as run:
        for n in range(1, count + 1):
            if run.seen(LATE + n):
                continue
            before()
            async with run.bar(LATE + n) as bar:
                cash = bar.session["cash"] = bar.session.get("cash", 100) + n
                await bar.storage.write_storage_data([{"id": f"trade-{n}", "cash": cash}, {"id": "last", "cash": cash}])
                await bar.signal.write_signal_data({"id": bar.new_id(), "cash": cash})
                assert await bar.interval("once").claim_interval_data({"cash": cash}, str(n))


async def read_bars(directory: Path) -> list[Any]:
    """Read, as another process would, what `run_bars` writes."""
    persist = open_dump(directory)
    return [
        await (await persist.session("trend", "x", "f", "A", True)).read_session_data(),
        await (await persist.storage(True)).read_storage_data(),
        await (await persist.signal("A", "trend", "x")).read_signal_data(),
        await collect((await persist.interval("once")).list_interval_data()),
    ]


def main(template: Path, root: Path, what: str, step: int) -> None:
    """Copy a dump to directories, and kill a process that uses each, `step` system calls later each time.

    `what` it does is to ``commit`` the unit of `write_all`, to ``read`` all values, or to ``run`` the third bar of a
    strategy. The last one ends by itself.
    """
    os.fsync = lambda fd: None  # what was written to files survives a process, if not the machine
    for cut in range(1, 1000, step):
        directory = root / str(cut)
        shutil.copytree(template, directory)
        child = os.fork()
        if not child:
            if what == "commit":
                asyncio.run(commit_all(directory, partial(kill_at, cut)))
            elif what == "run":
                asyncio.run(run_bars(directory, 3, partial(kill_at, cut)))
            else:
                kill_at(cut)
                asyncio.run(snapshot(directory))
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if status == 0:
            break
        assert os.WTERMSIG(status) == signal.SIGKILL, status


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]))
