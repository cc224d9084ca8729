"""The commands and their arguments."""

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter
from cyclopts.validators import Number

from backtest_persist import __version__
from backtest_persist.backends.json.layout import LAYOUTS
from backtest_persist.cli.initiate import initiate
from backtest_persist.cli.migrate import migrate
from backtest_persist.mode import Mode

__all__ = ("app",)

app = App(
    name="backtest-persist",
    help="Persistence for trading-strategy runners: MongoDB as the source of truth, Redis in front.",
    version=__version__,
    suppress_keyboard_interrupt=False,
)
app.command(migrate)
app.command(initiate)

Flag = Annotated[bool, Parameter(negative=())]
Count = Annotated[int | None, Parameter(validator=Number(gte=1))]


@app.command
async def demo(
    *,
    mode: Mode = Mode.BACKTEST,
    symbol: Literal["AAPL", "FB", "GOOG", "IBM", "MSFT"] = "AAPL",
    data_dir: Path | None = None,
    stop_after: Count = None,
    bars: Count = None,
    backend: Literal["mongo", "json", "dummy"] = "mongo",
    servers: Literal["embedded", "env"] = "embedded",
    json: Flag = False,
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
        Keep the state here, of the embedded servers or as JSON files; a second run resumes where the first one stopped.
    stop_after
        Exit hard, as if killed, after that many bars of this run.
    bars
        Take only the first bars of the sample; a later run with more of them goes on from there.
    backend
        What stands behind the strategy: MongoDB and Redis, JSON files, or nothing.
    servers
        Private servers for this run, or those of the CC_* settings.
    json
        Print the result as JSON on standard output.

    """
    from backtest_persist.demo import run  # needs the extra demo

    return await run(
        mode=mode,
        symbol=symbol,
        data_dir=data_dir,
        stop_after=stop_after,
        limit=bars,
        backend=backend,
        servers=servers,
        as_json=json,
    )


@app.command
async def import_dump(
    directory: Path,
    /,
    *,
    dry_run: Flag = False,
    exchange: Annotated[tuple[str, ...], Parameter(negative=())] = (),
    json: Flag = False,
) -> int:
    """Store a dump directory, this package's or the TypeScript framework's, in the MongoDB of the CC_* settings.

    What is stored already is never touched, so an import can be run again, or resumed. Exits with 3 when files were
    skipped; the report says which, and why.

    Parameters
    ----------
    directory
        The dump: the directory that holds data/, memory/, state/ and session/.
    dry_run
        Read and check everything, write nothing.
    exchange
        The name of an exchange that holds an underscore; may be given several times. Directories of the original join
        names with underscores, and this says where one ends.
    json
        Print the whole report as JSON on standard output.

    """
    from backtest_persist.cli.dump import import_

    return await import_(directory, dry_run=dry_run, exchanges=exchange, as_json=json)


@app.command
async def export_dump(directory: Path, /, *, json: Flag = False) -> int:
    """Write all that the MongoDB of the CC_* settings holds into a dump directory, as JSON files.

    The files lie where the TypeScript framework keeps its own. Exits with 3 when documents were skipped.

    Parameters
    ----------
    directory
        The directory to write to; it has to be empty, or not to exist yet.
    json
        Print the whole report as JSON on standard output.

    """
    from backtest_persist.cli.dump import export

    return await export(directory, as_json=json)


@app.command
async def doctor(*, json: Flag = False) -> int:
    """Examine the servers of the CC_* settings: one line for each check, with what to do; writes nothing.

    Reachability, versions, replica set, write concern, rights, indexes, clocks, latencies, and a sample of the ids in
    Redis. Exits with 1 when there is a problem, and with 0 when there are warnings at most.

    Parameters
    ----------
    json
        Print the findings as JSON on standard output.

    """
    from backtest_persist.cli import operations

    return await operations.doctor(as_json=json)


@app.command
async def verify(*, fix: Flag = False, json: Flag = False) -> int:
    """Compare every id in Redis with MongoDB, and every document with Redis.

    Exits with 3 when something was found and not fixed.

    Parameters
    ----------
    fix
        Set or remove wrong ids, and add missing ones. Documents are never touched.
    json
        Print the counts as JSON on standard output.

    """
    from backtest_persist.cli import operations

    return await operations.verify_cache(fix=fix, as_json=json)


def _check_domain(_: object, name: str) -> None:
    if name not in LAYOUTS:
        raise ValueError(f"The domains are {', '.join(LAYOUTS)}.")


@app.command
async def rebuild_cache(
    *,
    domain: Annotated[tuple[Annotated[str, Parameter(validator=_check_domain)], ...], Parameter(negative=())] = (),
    json: Flag = False,
) -> int:
    """Set the ids of all documents of MongoDB in Redis; other keys are left alone.

    Candles are left out when CC_CANDLE_CACHE is off, unless --domain candle asks for them.

    Parameters
    ----------
    domain
        Only this domain; may be given several times.
    json
        Print the counts as JSON on standard output.

    """
    from backtest_persist.cli import operations

    return await operations.rebuild_cache(domains=domain, as_json=json)
