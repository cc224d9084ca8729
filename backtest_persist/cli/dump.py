"""``backtest-persist import-dump`` and ``export-dump``: between a directory of JSON files and MongoDB."""

import dataclasses
import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from backtest_persist.cli.progress import Bar, show_progress
from backtest_persist.container import Container
from backtest_persist.operations.transfer.dump import Exported, Imported, export_dump, import_dump
from backtest_persist.operations.transfer.scan import Skipped

__all__ = ("INCOMPLETE", "export", "import_")

INCOMPLETE = 3
"""The exit status when all went well, but something was skipped."""
SHOWN = 20


async def import_(directory: Path, *, dry_run: bool, exchanges: Sequence[str], as_json: bool) -> int:
    """Import a dump and print the report; returns the exit status."""
    container = Container()
    try:
        with show_progress("Reading" if dry_run else "Importing") as bar:
            report = await import_dump(
                container, directory, dry_run=dry_run, exchanges=exchanges, progress=Bar(bar, "files")
            )
    finally:
        await container.close()
    if as_json:
        _print_json(report)
    else:
        _show_import(report, dry_run=dry_run)
    return INCOMPLETE if report.skipped else 0


async def export(directory: Path, *, as_json: bool) -> int:
    """Export to a dump and print the report; returns the exit status."""
    container = Container()
    try:
        with show_progress("Exporting") as bar:
            report = await export_dump(container, directory, progress=Bar(bar, "documents"))
    finally:
        await container.close()
    if as_json:
        _print_json(report)
    else:
        _show_export(report, directory)
    return INCOMPLETE if report.skipped else 0


def _print_json(report: Imported | Exported) -> None:
    json.dump(dataclasses.asdict(report), sys.stdout, indent=2)
    print()


def _show_import(report: Imported, *, dry_run: bool) -> None:
    console = Console()
    new = "would be stored" if dry_run else "stored"
    table = Table("domain", *(("files", new, "there already", "skipped")), title="Dry run" if dry_run else "Import")
    rows = [(name, count) for name, count in report.domains.items() if count.files]
    for column in table.columns[1:]:
        column.justify = "right"
    for name, count in rows:
        table.add_row(name, *(f"{number:,}" for number in (count.files, count.new, count.same, count.skipped)))
    total = [sum(getattr(count, name) for _, count in rows) for name in ("files", "new", "same", "skipped")]
    table.add_section()
    table.add_row("all", *(f"{number:,}" for number in total))
    console.print(table)
    console.print(f"{total[0]:,} files in {report.seconds:,.1f} s, {total[0] / report.seconds:,.0f} files/s.")
    for name, files in report.ignored.items():
        console.print(f"{escape(name)}/ belongs to no domain; files left out: {files:,}.", soft_wrap=True)
    if report.assumed:
        console.print("\nDirectories that can be read in several ways, and how they were read (see --exchange):")
    for name, read in list(report.assumed.items())[:SHOWN]:
        console.print(f"  {escape(name)}: {escape(read)}", soft_wrap=True)
    if len(report.assumed) > SHOWN:
        console.print(f"  {len(report.assumed) - SHOWN:,} more; --json names them all.")
    _show_skipped(console, report.skipped, "files")
    if dry_run:
        console.print("Nothing was written (--dry-run).")


def _show_export(report: Exported, directory: Path) -> None:
    console = Console()
    table = Table("domain", "files", title="Export")
    table.columns[1].justify = "right"
    for name, files in report.domains.items():
        if files:
            table.add_row(name, f"{files:,}")
    total = sum(report.domains.values())
    table.add_section()
    table.add_row("all", f"{total:,}")
    console.print(table)
    console.print(f"{total:,} files in {report.seconds:,.1f} s, in {escape(str(directory))}.", soft_wrap=True)
    _show_skipped(console, report.skipped, "documents")


def _show_skipped(console: Console, skipped: Sequence[Skipped], noun: str) -> None:
    if not skipped:
        return
    console.print(f"\n{len(skipped):,} {noun} were skipped:")
    for entry in skipped[:SHOWN]:
        console.print(f"  {escape(entry.path)}: {escape(entry.reason)}", soft_wrap=True)
    if len(skipped) > SHOWN:
        top: Counter[Any] = Counter(Path(entry.path).parent for entry in skipped[SHOWN:])
        for parent, count in top.most_common(SHOWN):
            console.print(f"  {escape(str(parent))}: {count:,} more", soft_wrap=True)
        console.print("  --json names them all.")
