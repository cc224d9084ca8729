"""What the demo prints: a progress bar, then what is stored where, and what came of it."""

import json
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Literal

from anyio.to_thread import run_sync
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from backtest_persist import Container, Mode
from backtest_persist.demo.strategy import CASH, Session, Signal, percent
from backtest_persist.operations.transfer.scan import scan

__all__ = ("Backend", "Domain", "Result", "count_domains", "count_files", "progress", "show", "show_json")

Backend = Literal["mongo", "json", "dummy"]

FAMILIES = (
    ("signal", "schedule", "risk", "partial", "breakeven", "recent", "state", "session"),
    ("measure", "interval", "memory"),
    ("storage", "notification", "log"),
    ("candle",),
)
WIDTH = 100
SHOWN_TRADES = 10


@dataclass(frozen=True)
class Domain:
    """What is stored of one domain, and what this process did with it."""

    documents: int
    ids: int
    reads: int
    writes: int
    lookups: int
    hits: int


@dataclass
class Result:
    """What came of a run."""

    symbol: str
    mode: Mode
    frame: str
    total_bars: int
    resumed_from: int
    widened: int
    first_close: Decimal
    last_close: Decimal
    backend: Backend
    temporary: bool
    """Whether the state is gone with this process."""
    data_dir: Path | None
    session: Session
    trades: list[Signal]
    domains: dict[str, Domain]
    """What MongoDB holds; empty with another backend."""
    files: dict[str, int]
    """How many JSON files there are; empty with another backend."""
    seconds: float

    @property
    def bars(self) -> int:
        """Bars of this process."""
        return self.session.bars - self.resumed_from


async def count_domains(container: Container) -> dict[str, Domain]:
    """Count the documents and ids of the whole database, and the reads and writes of this process."""
    domains: dict[str, Domain] = {}
    for name in (name for family in FAMILIES for name in family):
        db, cache = getattr(container, f"{name}_db_service"), getattr(container, f"{name}_cache_service")
        s = db.stats
        domains[name] = Domain(await db.count(), await cache.size(), s.reads, s.writes, s.lookups, s.hits)
    return domains


async def count_files(directory: Path) -> dict[str, int]:
    """Count the values of a dump."""
    found = (await run_sync(scan, directory)).found
    return {name: len(found[name]) for family in FAMILIES for name in family}


class Speed(ProgressColumn):
    """Bars per second."""

    def render(self, task: Task) -> Text:
        """Show the speed, once there is one."""
        return Text(f"{task.speed:,.0f} bars/s" if task.speed else "", style="progress.data.speed")


def progress() -> Progress:
    """A progress bar on standard error, so that standard output is the report alone."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("bars"),
        Speed(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )


def show(result: Result) -> None:
    """Print the report."""
    console = Console()
    if not console.is_terminal or console.width > WIDTH:
        console = Console(width=WIDTH)
    if result.backend != "dummy":
        console.print(_domains(result) if result.backend == "mongo" else _files(result))
    console.print(_trades(result), "", _account(result), sep="\n")
    console.print(*_footnotes(result), sep="\n", style="dim", soft_wrap=True, markup=False, highlight=False)


def show_json(result: Result) -> None:
    """Print the result as one JSON document; money is text, as it is exact."""
    session = result.session
    document = {
        "symbol": result.symbol,
        "mode": result.mode,
        "backend": result.backend,
        "frame": result.frame,
        "bars": session.bars,
        "resumedFrom": result.resumed_from,
        "complete": session.bars == result.total_bars,
        "balance": session.equity,
        "trades": [trade.model_dump(mode="json", by_alias=True) for trade in result.trades],
        "domains": {name: vars(domain) for name, domain in result.domains.items()}
        or {name: {"files": files} for name, files in result.files.items()},
        "seconds": round(result.seconds, 3),
        "eventsPerSecond": round(result.bars / result.seconds, 1) if result.bars else None,
    }
    print(json.dumps(document, indent=2, default=str))


def _table(result: Result) -> Table:
    title = f"{result.symbol}, {result.mode}: {result.session.bars:,} of {result.total_bars:,} bars"
    return Table(title=title, box=box.SIMPLE_HEAD, width=WIDTH)


def _files(result: Result) -> Table:
    table = _table(result)
    table.add_column("domain")
    table.add_column("JSON files", justify="right")
    for family in FAMILIES:
        for name in family:
            table.add_row(name, f"{result.files[name]:,}", end_section=name == family[-1])
    table.add_row("all fifteen", f"{sum(result.files.values()):,}", style="bold")
    return table


def _domains(result: Result) -> Table:
    table = _table(result)
    table.add_column("domain")
    for column in ("documents in MongoDB", "ids in Redis", "reads", "writes", "cache hit rate"):
        table.add_column(column, justify="right")
    for family in FAMILIES:
        for name in family:
            d = result.domains[name]
            rate = f"{d.hits / d.lookups:.1%}" if d.lookups else "-"
            table.add_row(
                name, *(f"{n:,}" for n in (d.documents, d.ids, d.reads, d.writes)), rate, end_section=name == family[-1]
            )
    all_ = result.domains.values()
    lookups, hits = sum(d.lookups for d in all_), sum(d.hits for d in all_)
    sums = (sum(getattr(d, name) for d in all_) for name in ("documents", "ids", "reads", "writes"))
    table.add_row("all fifteen", *(f"{n:,}" for n in sums), f"{hits / lookups:.1%}" if lookups else "-", style="bold")
    return table


def _trades(result: Result) -> Table:
    shown = result.trades[-SHOWN_TRADES:]
    title = "1 trade" if len(result.trades) == 1 else f"{len(result.trades)} trades"
    if len(shown) < len(result.trades):
        title += f", the last {len(shown)}"
    table = Table(title=title, box=box.SIMPLE_HEAD, width=WIDTH)
    for column in ("bought", "sold"):
        table.add_column(column, no_wrap=True)
    for column in ("shares", "entry", "exit", "profit", "%"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("why sold", no_wrap=True)
    for trade in shown:
        price = trade.price_close or trade.price_open
        table.add_row(
            f"{trade.opened_at:%Y-%m-%d}",
            f"{trade.closed_at:%Y-%m-%d}",
            f"{trade.amount:,}",
            f"{trade.price_open:,}",
            f"{price:,}",
            f"{trade.profit or 0:+,}",
            f"{percent(price, trade.price_open):+}",
            trade.why_closed,
        )
    return table


def _account(result: Result) -> Table:
    session, trades = result.session, result.trades
    wins = sum((trade.profit or 0) > 0 for trade in trades)
    table = Table.grid(padding=(0, 3))
    table.add_column(style="bold")
    table.add_column(justify="right")
    table.add_column()
    share = f"{wins} won, {len(trades) - wins} lost" if trades else ""
    table.add_row("trades", f"{len(trades)}", share)
    held = f"of it {session.shares:,} shares of {result.symbol}" if session.shares else "all of it in cash"
    table.add_row("final balance", f"{session.equity:,.2f}", held)
    table.add_row("return", f"{percent(session.equity, CASH):+,} %", f"from {CASH:,.2f}")
    hold = percent(result.last_close, result.first_close)
    table.add_row("buy and hold", f"{hold:+,} %", "the stock itself, dividends included")
    table.add_row("largest drawdown", f"{session.drawdown:,} %", "")
    if result.bars:
        operations = sum(d.reads + d.writes for d in result.domains.values())
        took = f"{result.bars:,} bars in {result.seconds:,.1f} s"
        rate = f"; {operations / result.seconds:,.0f} reads and writes per second" if operations else ""
        table.add_row("events per second", f"{result.bars / result.seconds:,.0f}", f"{took}{rate}")
    return table


def _footnotes(result: Result) -> list[str]:
    notes: list[str] = []
    if result.backend == "mongo":
        notes.append("Documents and ids: of the whole database. Reads, writes and cache hits: of this process.")
    if result.backend == "dummy":
        notes.append("Backend dummy: every read found nothing, so the strategy remembered nothing between bars.")
    notes.append("Prices: adjusted for splits and dividends (adj_close), in dollars of the sample's last day.")
    if result.widened:
        notes.append(f"{result.widened} bars of the sample have a high or low inside the body: widened to hold it.")
    if result.mode is not Mode.BACKTEST:
        notes.append(f"Mode {result.mode}: the bars of the sample were replayed; no order left this machine.")
    if result.data_dir is not None:
        data_dir = str(result.data_dir.resolve())
        notes.append(f"The state is in {data_dir}. To look at it, in python -m asyncio:")
        notes.append("  from backtest_persist import *")
        if result.backend == "mongo":
            notes.append(f"  servers = embedded({data_dir!r}); setup(await servers.__aenter__())")
        else:
            notes.append(f"  persist.use_json({data_dir!r})")
        notes.append(f"  await (await persist.storage({result.mode.backtest})).read_storage_data()")
    elif result.temporary and result.backend != "dummy":
        gone = "The servers and the state are" if result.backend == "mongo" else "The files are"
        notes.append(f"{gone} gone; --data-dir DIR keeps the state.")
    return notes
