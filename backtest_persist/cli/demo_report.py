"""The report of the demo, as tables or as JSON on standard output."""

import json
from dataclasses import fields

from rich import box
from rich.console import Console
from rich.table import Table

from backtest_persist import Mode
from backtest_persist.demo.report import DomainCounts, Result
from backtest_persist.demo.strategy import CASH, percent

__all__ = ("show", "show_json")

WIDTH = 80
SHOWN_TRADES = 10


def show(result: Result) -> None:
    """Print the report."""
    console = Console()
    if not console.is_terminal or console.width > WIDTH:
        console = Console(width=WIDTH)
    if result.backend != "dummy":
        console.print(_domains(result) if result.backend == "mongo" else _files(result))
    console.print(_trades(result), "", _account(result), sep="\n")
    for note in _footnotes(result):
        code = note.startswith("  ")  # which is copied, and so stays on one line
        console.print(note, style="dim", soft_wrap=code, markup=False, highlight=False)


def show_json(result: Result) -> None:
    """Print the result as one JSON document; amounts of money are text, which keeps them exact."""
    session = result.session
    document = {
        "symbol": result.symbol,
        "mode": result.mode,
        "backend": result.backend,
        "frame": result.frame,
        "bars": result.bars,
        "killedAfter": result.killed_after,
        "resumedFrom": result.resumed_from,
        "sameAsWithoutKill": result.is_same,
        "complete": result.bars == result.total_bars,
        "balance": session.equity,
        "trades": [trade.model_dump(mode="json", by_alias=True) for trade in result.trades],
        "domains": {name: vars(counts) for family in result.domains for name, counts in family.items()}
        or {name: {"files": files} for family in result.files for name, files in family.items()},
        "seconds": round(result.seconds, 3),
        "eventsPerSecond": round(result.new_bars / result.seconds, 1) if result.new_bars else None,
    }
    print(json.dumps(document, indent=2, default=str))


def _table(result: Result) -> Table:
    title = f"{result.symbol}, {result.mode}: {result.bars:,} of {result.total_bars:,} bars"
    return Table(title=title, box=box.SIMPLE_HEAD, width=WIDTH)


def _files(result: Result) -> Table:
    table = _table(result)
    table.add_column("domain")
    table.add_column("JSON files", justify="right")
    for family in result.files:
        for name, files in family.items():
            table.add_row(name, f"{files:,}")
        table.add_section()
    table.add_row("all", f"{sum(sum(family.values()) for family in result.files):,}", style="bold")
    return table


def _domains(result: Result) -> Table:
    table = _table(result)
    table.add_column("domain")
    for column in ("documents", "ids in Redis", "reads", "writes", "cache hit rate"):
        table.add_column(column, justify="right")
    for family in result.domains:
        for name, counts in family.items():
            table.add_row(name, *_row(counts))
        table.add_section()
    table.add_row("all", *_row(_total(result)), style="bold")
    return table


def _row(counts: DomainCounts) -> list[str]:
    numbers = (counts.documents, counts.ids, counts.reads, counts.writes)
    return [*(f"{number:,}" for number in numbers), f"{counts.hits / counts.lookups:.1%}" if counts.lookups else "-"]


def _total(result: Result) -> DomainCounts:
    counts = [vars(counts) for family in result.domains for counts in family.values()]
    return DomainCounts(**{field.name: sum(each[field.name] for each in counts) for field in fields(DomainCounts)})


def _trades(result: Result) -> Table:
    shown = result.trades[-SHOWN_TRADES:]
    title = "1 trade" if len(result.trades) == 1 else f"{len(result.trades)} trades"
    if len(shown) < len(result.trades):
        title += f", the last {len(shown)}"
    table = Table(title=title, box=box.SIMPLE_HEAD, width=WIDTH, padding=0, show_edge=False)
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
    outcomes = f"{wins} won, {len(trades) - wins} lost" if trades else ""
    table.add_row("trades", f"{len(trades)}", outcomes)
    assets = f"of it {session.shares:,} shares of {result.symbol}" if session.shares else "all of it in cash"
    table.add_row("final balance", f"{session.equity:,.2f}", assets)
    table.add_row("return", f"{percent(session.equity, CASH):+,} %", f"from {CASH:,.2f}")
    change = percent(result.last_close, result.first_close)
    table.add_row("buy and hold", f"{change:+,} %", "the stock itself, dividends included")
    table.add_row("largest drawdown", f"{session.drawdown:,} %", "")
    if result.killed_after is not None:
        table.add_row("killed after", f"bar {result.killed_after:,}", f"resumed after bar {result.resumed_from:,}")
        table.add_row("without a kill", "the same" if result.is_same else "NOT THE SAME", "trades and balance")
    if result.new_bars:
        total = _total(result)
        operations = total.reads + total.writes
        duration = f"{result.new_bars:,} bars in {result.seconds:,.1f} s"
        rate = f"; {operations / result.seconds:,.0f} reads and writes/s" if operations else ""
        table.add_row("events per second", f"{result.new_bars / result.seconds:,.0f}", f"{duration}{rate}")
    return table


def _footnotes(result: Result) -> list[str]:
    notes: list[str] = []
    if result.backend == "mongo":
        notes.append("Documents and ids: of the whole database. Reads, writes and cache hits: of this process.")
    if result.backend == "dummy":
        notes.append("Backend dummy: nothing was stored; what the strategy needs was in the session, in memory.")
    notes.append("Prices: adjusted for splits and dividends (adj_close), in dollars of the sample's last day.")
    if result.widened:
        notes.append(f"{result.widened} bars of the sample had a high or low inside the body, and were widened.")
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
        subject = "The servers and the state are" if result.backend == "mongo" else "The files are"
        notes.append(f"{subject} gone; --data-dir DIR keeps the state.")
    return notes
