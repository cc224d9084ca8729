"""The demo: private servers, a backtesting exchange, and a strategy on a `Run` that is killed and goes on.

Needs the extra ``demo``. It prints nothing: an `Observer` is told of the progress, and the command line shows the
`Result`.
"""

# pyright: reportMissingTypeStubs=false

import random
import time
from asyncio import TaskGroup
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

from backtest_persist import Mode, Registry, SettingsError, embedded, ioc, persist, setup
from backtest_persist.demo.bars import Sample, load, millis
from backtest_persist.demo.child import Child
from backtest_persist.demo.replay import Observer, account, open_run, replay
from backtest_persist.demo.report import Backend, Result, count_domains, count_files
from backtest_persist.demo.strategy import STRATEGY, Session, Signal, closed_signals

__all__ = ("Observer", "Options", "run")


@dataclass(frozen=True)
class Options:
    """The options of the demo."""

    mode: Mode = Mode.BACKTEST
    symbol: str = "AAPL"
    data_dir: Path | None = None
    limit: int | None = None
    """The number of bars of the sample to take; None for all."""
    backend: Backend = "mongo"
    servers: Literal["embedded", "env"] = "embedded"
    kill_after: int | None = None
    """After how many bars a run that begins is killed; 0 for never, None for a random number."""


async def run(options: Options, observer: Observer) -> Result:
    """Run the demo, or resume it where the session in the data directory ends.

    The first bars of a new run are the work of a `Child`, which is killed; then the run goes on here. Meanwhile this
    process makes the same run without a kill, in memory, so that the results can be compared.

    `SettingsError` for options that exclude each other, and for a session of another version of the sample.
    """
    backend, data_dir, mode = options.backend, options.data_dir, options.mode
    if data_dir is not None and (backend == "dummy" or (backend == "mongo" and options.servers == "env")):
        place = "--backend dummy keeps nothing" if backend == "dummy" else "--servers env keeps it where CC_* says"
        raise SettingsError(f"--data-dir says where the state is kept, but {place}; leave one of them out.")
    directory = settings = None
    async with AsyncExitStack() as stack:
        child = None
        if backend != "dummy" and options.kill_after != 0:
            child = await stack.enter_async_context(Child())  # it imports what it needs while the servers start
        if backend == "mongo":
            settings = await stack.enter_async_context(embedded(data_dir)) if options.servers == "embedded" else None
            setup(settings)
            await stack.enter_async_context(ioc)
        elif backend == "json":
            directory = data_dir or Path(stack.enter_context(TemporaryDirectory(prefix="backtest-persist-")))
            persist.use_json(directory)
        else:
            persist.use_dummy()

        sample = load(options.symbol)
        total = min(options.limit or len(sample.events), len(sample.events))
        killed_after = expected = None
        is_new = await _is_new(mode, sample, data_dir)
        if child is not None and is_new and total > 1:
            last = options.kill_after or random.randrange(total // 2, total * 3 // 4 + 1)
            if last >= total:
                raise SettingsError(f"--kill-after {last} is not within the run, which has {total:,} bars.")
            observer.started(0, total)
            async with TaskGroup() as group:  # the child computes on another core
                without_kill = group.create_task(_run_in_memory(mode, sample, total))
                await child.begin(mode, options.symbol, total, directory, settings)
                killed_after = await child.kill_after(last, observer)
            if killed_after is not None:
                expected = without_kill.result()
                observer.killed(killed_after)

        async with open_run(persist, mode, sample) as run:
            _check(run.bars, run.last_when, sample, data_dir)
            resumed_from, total = run.bars, max(run.bars, total)
            observer.started(resumed_from, total)
            started = time.perf_counter()
            if resumed_from < total:
                await replay(run, sample, total, observer)
                await run.flush()
            seconds = time.perf_counter() - started
            found = run.session, await closed_signals(run)
        return Result(
            symbol=options.symbol,
            mode=mode,
            frame=sample.frame,
            bars=run.bars,
            total_bars=total,
            killed_after=killed_after,
            resumed_from=resumed_from,
            is_same=None if expected is None else found == expected,
            widened=sample.widened,
            first_close=sample.events[0].bar.close,
            last_close=sample.events[total - 1].bar.close,
            backend=backend,
            temporary=data_dir is None and (backend == "json" or options.servers == "embedded"),
            data_dir=data_dir,
            session=found[0],
            trades=found[1],
            domains=await count_domains(ioc) if backend == "mongo" else [],
            files=await count_files(ioc, directory) if directory else [],
            seconds=seconds,
        )


async def _is_new(mode: Mode, sample: Sample, data_dir: Path | None) -> bool:
    symbol = sample.pair.base_symbol
    session = await persist.session(STRATEGY, account(mode), sample.frame, symbol, mode)
    stored = await session.read_session_data()
    if stored is not None and "data" not in stored:
        raise SettingsError(f"The session in {_place(data_dir)} was made by an older version of the demo; use another.")
    return stored is None


async def _run_in_memory(mode: Mode, sample: Sample, total: int) -> tuple[Session, list[Signal]]:
    registry = Registry()
    registry.use_dummy()
    async with open_run(registry, mode, sample) as run:
        trades = await replay(run, sample, total)
        return run.session, trades


def _check(bars: int, last_when: int | None, sample: Sample, data_dir: Path | None) -> None:
    """Refuse a session that was made from other bars than these."""
    if bars and (bars > len(sample.events) or millis(sample.events[bars - 1].when) != last_when):
        raise SettingsError(
            f"The session in {_place(data_dir)} was made with another version of the sample; use another."
        )


def _place(data_dir: Path | None) -> str:
    return f"--data-dir {data_dir}" if data_dir else "this database"
