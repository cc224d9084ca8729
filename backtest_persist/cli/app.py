"""The commands and their arguments."""

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter
from cyclopts.validators import Number

from backtest_persist import __version__
from backtest_persist.cli.initiate import initiate
from backtest_persist.cli.migrate import migrate
from backtest_persist.persist.mode import Mode

__all__ = ("app",)

app = App(
    name="backtest-persist",
    help="Persistence for trading-strategy runners: MongoDB as the source of truth, Redis in front.",
    version=__version__,
    suppress_keyboard_interrupt=False,
)
app.command(migrate)
app.command(initiate)

Count = Annotated[int | None, Parameter(validator=Number(gte=1))]


@app.command
async def demo(
    *,
    mode: Mode = Mode.BACKTEST,
    symbol: Literal["AAPL", "FB", "GOOG", "IBM", "MSFT"] = "AAPL",
    data_dir: Path | None = None,
    stop_after: Count = None,
    bars: Count = None,
    servers: Literal["embedded", "env"] = "embedded",
    json: Annotated[bool, Parameter(negative=())] = False,
) -> int:
    """Run a moving-average crossover through basana on daily bars, its state in all fifteen domains.

    Parameters
    ----------
    mode
        All three take the same path; paper and live replay the bars with backtest=False, and no order leaves
        this machine.
    symbol
        A stock of the sample.
    data_dir
        Keep the state of the embedded servers here; a second run resumes where the first one stopped.
    stop_after
        Exit hard, as if killed, after that many bars of this run.
    bars
        Take only the first bars of the sample; a later run with more of them goes on from there.
    servers
        Private servers for this run, or those of the CC_* settings.
    json
        Print the result as JSON on standard output.

    """
    from backtest_persist.cli.demo import run  # needs the extra

    return await run(
        mode=mode,
        symbol=symbol,
        data_dir=data_dir,
        stop_after=stop_after,
        limit=bars,
        servers=servers,
        as_json=json,
    )
