"""``verify`` and ``rebuild-cache``: the commands that compare Redis with MongoDB and set its ids."""

import dataclasses
from typing import Annotated

from cyclopts import Parameter
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from backtest_persist import operations
from backtest_persist.cli.command import INCOMPLETE, Flag, open_container, print_json
from backtest_persist.cli.progress import Bar, show_progress
from backtest_persist.container import Container
from backtest_persist.operations import Rebuilt, Verified, rebuild
from backtest_persist.operations.domains import domain_services

__all__ = ("rebuild_cache", "verify")

_COLUMNS = ("right", "stale", "foreign", "missing", "fixed")


def _check_domain(_: object, name: str) -> None:
    names = [domain.name for domain in domain_services(Container())]
    if name not in names:
        raise ValueError(f"The domains are {', '.join(names)}.")


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
    async with open_container() as container:
        with show_progress("Fixing" if fix else "Verifying") as progress:
            report = await operations.verify(container, fix=fix, progress=Bar(progress, "ids"))
    if json:
        print_json({"wrong": report.wrong, **dataclasses.asdict(report)})
    else:
        _show_verified(report)
    return INCOMPLETE if report.wrong else 0


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
    async with open_container() as container:
        with show_progress("Rebuilding") as progress:
            report = await rebuild(container, domains=domain, progress=Bar(progress, "ids"))
    if json:
        print_json(dataclasses.asdict(report))
    else:
        _show_rebuilt(report)
    return 0


def _show_verified(report: Verified) -> None:
    console = Console()
    table = Table("domain", *_COLUMNS, title="Redis against MongoDB")
    rows = {name: [getattr(counts, column) for column in _COLUMNS] for name, counts in report.domains.items()}
    totals = _add_rows(table, rows)
    console.print(table)
    checked = sum(totals[:-1])
    console.print(f"{checked:,} ids in {report.seconds:,.1f} s, {checked / report.seconds:,.0f} ids/s.")
    for name, ids in report.ignored.items():
        console.print(f"{escape(name)} belongs to no domain of this version; keys left alone: {ids:,}.", soft_wrap=True)
    for name, why in report.unreadable.items():
        console.print(f"{escape(name)} cannot be read, and lists leave it out: {escape(why)}", soft_wrap=True)
    if report.wrong:
        console.print("Reads never use a wrong id, and correct those that they meet; --fix corrects all of them now.")


def _show_rebuilt(report: Rebuilt) -> None:
    console = Console()
    table = Table("domain", "ids", title="Redis filled from MongoDB")
    (ids,) = _add_rows(table, {name: [ids] for name, ids in report.domains.items()})
    console.print(table)
    console.print(f"{ids:,} ids in {report.seconds:,.1f} s, {ids / report.seconds:,.0f} ids/s.")


def _add_rows(table: Table, rows: dict[str, list[int]]) -> list[int]:
    """Add the rows that are not all zero, and a row of totals; returns the totals."""
    for column in table.columns[1:]:
        column.justify = "right"
    for name, numbers in rows.items():
        if any(numbers):
            table.add_row(name, *(f"{number:,}" for number in numbers))
    totals = [sum(numbers) for numbers in zip(*rows.values(), strict=True)]
    table.add_section()
    table.add_row("all", *(f"{number:,}" for number in totals))
    return totals
