"""``demo``: runs the demo, shows its progress and prints its report."""

# pyright: reportMissingTypeStubs=false

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter
from cyclopts.validators import Number

from backtest_persist.cli.command import Flag
from backtest_persist.mode import Mode

__all__ = ("demo",)

PositiveInt = Annotated[int | None, Parameter(validator=Number(gte=1))]
Count = Annotated[int | None, Parameter(validator=Number(gte=0))]


async def demo(
    *,
    mode: Mode = Mode.BACKTEST,
    symbol: Literal["AAPL", "FB", "GOOG", "IBM", "MSFT"] = "AAPL",
    data_dir: Path | None = None,
    kill_after: Count = None,
    stop_after: PositiveInt = None,
    bars: PositiveInt = None,
    backend: Literal["mongo", "json", "dummy"] = "mongo",
    servers: Literal["embedded", "env"] = "embedded",
    json: Flag = False,
) -> int:
    """Run a moving-average crossover through basana on daily bars, its state in all domains; kill it, and go on.

    Parameters
    ----------
    mode
        All three take the same path; paper and live replay the bars with backtest=False, stored one by one, and no
        order leaves this machine.
    symbol
        A stock of the sample.
    data_dir
        Keep the state here, of the embedded servers or as JSON files; a second run resumes where the first one stopped.
    kill_after
        Begin the run in a child process, and kill that (kill -9) after this many bars; 0 for never, a random number by
        default. The result is compared with that of the same run in memory, without a kill.
    stop_after
        Exit hard, as if killed, after that many bars of this run; then no child is killed.
    bars
        Take only the first bars of the sample; a later run with more of them goes on from there.
    backend
        The backend behind the strategy: MongoDB and Redis, JSON files, or nothing.
    servers
        Private servers for this run, or those of the CC_* settings.
    json
        Print the result as JSON on standard output.

    """
    from backtest_persist.cli.demo_display import Display
    from backtest_persist.cli.demo_report import show, show_json
    from backtest_persist.demo import Options, run  # needs the extra demo

    options = Options(
        mode=mode,
        symbol=symbol,
        data_dir=data_dir,
        limit=bars,
        backend=backend,
        servers=servers,
        kill_after=kill_after if stop_after is None else 0,
    )
    with Display(f"{symbol}, {mode}", stop_after) as display:
        result = await run(options, display)
    (show_json if json else show)(result)
    return 1 if result.is_same is False else 0
