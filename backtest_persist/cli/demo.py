"""``demo``: runs the demo, shows its progress and prints its report."""

# pyright: reportMissingTypeStubs=false

import os
import sys
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Annotated, Literal, Self

from cyclopts import Parameter
from cyclopts.validators import Number
from rich.progress import Progress

from backtest_persist.cli.command import Flag
from backtest_persist.cli.progress import Bar, show_progress
from backtest_persist.mode import Mode

if TYPE_CHECKING:
    from backtest_persist import Run
    from backtest_persist.demo.strategy import Session

__all__ = ("demo",)

PositiveInt = Annotated[int | None, Parameter(validator=Number(gte=1))]


async def demo(
    *,
    mode: Mode = Mode.BACKTEST,
    symbol: Literal["AAPL", "FB", "GOOG", "IBM", "MSFT"] = "AAPL",
    data_dir: Path | None = None,
    stop_after: PositiveInt = None,
    bars: PositiveInt = None,
    backend: Literal["mongo", "json", "dummy"] = "mongo",
    servers: Literal["embedded", "env"] = "embedded",
    json: Flag = False,
) -> int:
    """Run a moving-average crossover through basana on daily bars, its state in all domains.

    Parameters
    ----------
    mode
        All three take the same path; paper and live replay the bars with backtest=False, and no order leaves
        this machine.
    symbol
        A stock of the sample.
    data_dir
        Keep the state here, of the embedded servers or as JSON files; a second run resumes where the first one stopped.
    stop_after
        Exit hard, as if killed, after that many bars of this run.
    bars
        Take only the first bars of the sample; a later run with more of them goes on from there.
    backend
        The backend behind the strategy: MongoDB and Redis, JSON files, or nothing.
    servers
        Private servers for this run, or those of the CC_* settings.
    json
        Print the result as JSON on standard output.

    """
    from backtest_persist.cli.demo_report import show, show_json
    from backtest_persist.demo import run  # needs the extra demo

    with _Display(stop_after) as display:
        result = await run(
            mode=mode,
            symbol=symbol,
            data_dir=data_dir,
            limit=bars,
            backend=backend,
            servers=servers,
            observer=display,
        )
    (show_json if json else show)(result)
    return 0


class _Display:
    """Shows the run on standard error, and ends this process after so many of its bars."""

    def __init__(self, stop_after: int | None) -> None:
        self._stop_after = stop_after
        self._run: Run[Session]
        self._resumed_from = self._total = 0
        self._progress: Progress | None = None
        self._bar: Bar | None = None

    def started(self, run: "Run[Session]", total: int) -> None:
        name = f"{run.context.symbol}, {run.context.mode}"
        self._run = run
        self._resumed_from = run.bars
        self._total = total
        if run.bars >= total:
            _print(f"{name}: this run is complete, nothing is done twice.")
            return
        if run.bars:
            _print(f"{name}: resuming after bar {run.bars:,}; {total - run.bars:,} to go.")
        else:
            _print(f"{name}: {total:,} daily bars through basana.")
        self._progress = show_progress(name)
        self._bar = Bar(self._progress, "bars")
        self._bar.begin(total)
        self._bar.advance(run.bars)
        self._progress.start()

    def ended(self) -> None:
        bars = self._run.bars
        if self._bar is not None:
            self._bar.advance(1)
        if self._stop_after is not None and bars == self._resumed_from + self._stop_after:
            self.stop()
            _print(f"Stopped hard after {self._stop_after:,} bars, {bars:,} of {self._total:,} in all.")
            os._exit(0)

    def stop(self) -> None:
        if self._progress is not None:
            self._progress.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()


def _print(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
