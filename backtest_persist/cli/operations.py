"""``backtest-persist doctor``, ``verify`` and ``rebuild-cache``: what is wrong, and Redis true to MongoDB again."""

import dataclasses
import json
import sys
from collections import Counter
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from backtest_persist.cli.dump import INCOMPLETE
from backtest_persist.cli.progress import Bar, show_progress
from backtest_persist.container import Container
from backtest_persist.operations import Diagnosis, Level, Rebuilt, Verified, examine, rebuild, verify

__all__ = ("doctor", "rebuild_cache", "verify_cache")

_COLOURS = {Level.OK: "green", Level.WARNING: "yellow", Level.PROBLEM: "bold red"}
_COLUMNS = ("right", "stale", "foreign", "missing", "fixed")


async def doctor(*, as_json: bool) -> int:
    """Examine the servers and print the findings; returns the exit status."""
    container = Container()
    try:
        diagnosis = await examine(container)
    finally:
        await container.close()
    if as_json:
        _print_json({"level": diagnosis.level, **dataclasses.asdict(diagnosis)})
    else:
        _show_diagnosis(diagnosis)
    return 1 if diagnosis.level is Level.PROBLEM else 0


async def verify_cache(*, fix: bool, as_json: bool) -> int:
    """Compare Redis with MongoDB and print the counts; returns the exit status."""
    container = Container()
    try:
        with show_progress("Fixing" if fix else "Verifying") as bar:
            report = await verify(container, fix=fix, progress=Bar(bar, "ids"))
    finally:
        await container.close()
    if as_json:
        _print_json({"wrong": report.wrong, **dataclasses.asdict(report)})
    else:
        _show_verified(report)
    return INCOMPLETE if report.wrong else 0


async def rebuild_cache(*, domains: Sequence[str], as_json: bool) -> int:
    """Fill Redis from MongoDB and print the counts; returns the exit status."""
    container = Container()
    try:
        with show_progress("Rebuilding") as bar:
            report = await rebuild(container, domains=domains, progress=Bar(bar, "ids"))
    finally:
        await container.close()
    if as_json:
        _print_json(dataclasses.asdict(report))
    else:
        _show_rebuilt(report)
    return 0


def _print_json(report: Any) -> None:
    json.dump(report, sys.stdout, indent=2)
    print()


def _show_diagnosis(diagnosis: Diagnosis) -> None:
    console = Console(highlight=False)
    width = max(len(finding.check) for finding in diagnosis.findings)
    for finding in diagnosis.findings:
        level = f"[{_COLOURS[finding.level]}]{finding.level:8}[/]"
        console.print(f"{level} {finding.check:{width}}  {escape(finding.text)}", soft_wrap=True)
        if finding.advice:
            console.print(f"{'':8} {'':{width}}  -> {escape(finding.advice)}", soft_wrap=True)
    levels = Counter(finding.level for finding in diagnosis.findings)
    console.print(", ".join(f"{level}: {levels[level]}" for level in Level))


def _show_verified(report: Verified) -> None:
    console = Console()
    table = Table("domain", *_COLUMNS, title="Redis against MongoDB")
    rows = {name: [getattr(count, column) for column in _COLUMNS] for name, count in report.domains.items()}
    totals = _fill(table, rows)
    console.print(table)
    checked = sum(totals[:-1])
    console.print(f"{checked:,} ids in {report.seconds:,.1f} s, {checked / report.seconds:,.0f} ids/s.")
    if report.wrong:
        console.print("Reads go round all of this and repair what they meet; --fix puts it right now.")


def _show_rebuilt(report: Rebuilt) -> None:
    console = Console()
    table = Table("domain", "ids", title="Redis filled from MongoDB")
    (ids,) = _fill(table, {name: [ids] for name, ids in report.domains.items()})
    console.print(table)
    console.print(f"{ids:,} ids in {report.seconds:,.1f} s, {ids / report.seconds:,.0f} ids/s.")


def _fill(table: Table, rows: dict[str, list[int]]) -> list[int]:
    """Add the rows that say something, and their totals, which are returned."""
    for column in table.columns[1:]:
        column.justify = "right"
    for name, numbers in rows.items():
        if any(numbers):
            table.add_row(name, *(f"{number:,}" for number in numbers))
    totals = [sum(numbers) for numbers in zip(*rows.values(), strict=True)]
    table.add_section()
    table.add_row("all", *(f"{number:,}" for number in totals))
    return totals
