"""``import-dump`` and ``export-dump``: the commands that move values between a directory of JSON files and MongoDB."""

import dataclasses
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from backtest_persist.cli.command import INCOMPLETE, Flag, open_container, print_json
from backtest_persist.cli.progress import Bar, show_progress
from backtest_persist.operations.transfer import exporting, importing
from backtest_persist.operations.transfer.report import Exported, Imported, Skipped

__all__ = ("export_dump", "import_dump")

SHOWN = 20
"""The number of files, lines or directories that a report names."""


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
    async with open_container() as container:
        with show_progress("Reading" if dry_run else "Importing") as progress:
            report = await importing.import_dump(
                container, directory, dry_run=dry_run, exchanges=exchange, progress=Bar(progress, "files")
            )
    if json:
        print_json(dataclasses.asdict(report))
    else:
        _show_import(report, dry_run=dry_run)
    return INCOMPLETE if report.skipped else 0


async def export_dump(
    directory: Path, /, *, candles: Literal["auto", "files", "series"] = "auto", json: Flag = False
) -> int:
    """Write all that the MongoDB of the CC_* settings holds into a dump directory, as JSON files.

    The files lie where the TypeScript framework keeps its own. Exits with 3 when documents were skipped.

    Parameters
    ----------
    directory
        The directory to write to; it has to be empty, or not to exist yet.
    candles
        Write a file for each candle, which the framework and use_json read, or a compressed file for each month of a
        series, which only import-dump reads. Auto writes files for up to 100,000 candles.
    json
        Print the whole report as JSON on standard output.

    """
    async with open_container() as container:
        with show_progress("Exporting") as progress:
            report = await exporting.export_dump(
                container, directory, candles=candles, progress=Bar(progress, "documents")
            )
    if json:
        print_json(dataclasses.asdict(report))
    else:
        _show_export(report, directory)
        _show_candles(report, candles)
    return INCOMPLETE if report.skipped else 0


def _show_import(report: Imported, *, dry_run: bool) -> None:
    console = Console()
    new = "would be stored" if dry_run else "stored"
    table = Table("domain", *(("files", new, "there already", "skipped")), title="Dry run" if dry_run else "Import")
    rows = [(name, counts) for name, counts in report.domains.items() if counts.files]
    for column in table.columns[1:]:
        column.justify = "right"
    for name, counts in rows:
        numbers = (counts.files, counts.new, counts.same, counts.skipped)
        table.add_row(name, *(f"{number:,}" for number in numbers))
    totals = [sum(getattr(counts, name) for _, counts in rows) for name in ("files", "new", "same", "skipped")]
    table.add_section()
    table.add_row("all", *(f"{number:,}" for number in totals))
    console.print(table)
    rate = sum(totals[1:]) / report.seconds
    console.print(f"{totals[0]:,} files in {report.seconds:,.1f} s, {rate:,.0f} values/s.")
    for name, files in report.ignored.items():
        console.print(f"{escape(name)}/ belongs to no domain; files left out: {files:,}.", soft_wrap=True)
    if report.ignored_fields:
        names = escape(", ".join(report.ignored_fields))
        console.print(f"Fields of candles that are not stored: {names}.", soft_wrap=True)
    if report.assumed:
        console.print("\nDirectories that can be read in several ways, and how they were read (see --exchange):")
    for name, reading in list(report.assumed.items())[:SHOWN]:
        console.print(f"  {escape(name)}: {escape(reading)}", soft_wrap=True)
    if len(report.assumed) > SHOWN:
        console.print(f"  {len(report.assumed) - SHOWN:,} more; --json names them all.")
    nouns = ("file", "files") if all(map(_is_file, report.skipped)) else ("line", "files or lines")
    _show_skipped(console, report.skipped, *nouns)
    if dry_run:
        console.print("Nothing was written (--dry-run).")


def _show_export(report: Exported, directory: Path) -> None:
    console = Console()
    table = Table("domain", "values", title="Export")
    table.columns[1].justify = "right"
    for name, values in report.domains.items():
        if values:
            table.add_row(name, f"{values:,}")
    total = sum(report.domains.values())
    table.add_section()
    table.add_row("all", f"{total:,}")
    console.print(table)
    files = total - report.domains.get("candle", 0) + report.series_files if report.candles == "series" else total
    seconds = f"{report.seconds:,.1f} s"
    console.print(f"{total:,} values in {files:,} files in {seconds}, in {escape(str(directory))}.", soft_wrap=True)
    for name, documents in report.ignored.items():
        text = f"{escape(name)} belongs to no domain of this version; documents left behind: {documents:,}."
        console.print(text, soft_wrap=True)
    _show_skipped(console, report.skipped, "document", "documents")


def _show_candles(report: Exported, asked: str) -> None:
    """Say in which form candles were written and why, where the other form is worth knowing."""
    count, console = report.domains.get("candle", 0), Console()
    if report.candles == "series":
        why = "" if asked == "series" else f", as there are more than {exporting.CANDLE_FILES:,}"
        console.print(
            f"Candles are in series files{why}: import-dump reads them, the TypeScript framework and use_json do not. "
            "For these export with --candles files, which takes longer.",
            soft_wrap=True,
        )
    elif count > exporting.CANDLE_FILES:
        console.print(
            f"Each of {count:,} candles is a file; --candles series writes one for each month of a series.",
            soft_wrap=True,
        )
    elif count and asked == "auto":
        console.print(
            f"Each candle is a file, as there are no more than {exporting.CANDLE_FILES:,}; --candles series writes one "
            "for each month of a series.",
            soft_wrap=True,
        )


def _noun(skipped: Sequence[Skipped]) -> str:
    found = set(map(_is_file, skipped))
    return "files or lines" if len(found) > 1 else "lines" if False in found else "files"


def _is_file(entry: Skipped) -> bool:
    return not entry.path.rpartition(":")[2].isdecimal()


def _show_skipped(console: Console, skipped: Sequence[Skipped], one: str, several: str) -> None:
    if not skipped:
        return
    words = f"{one} was" if len(skipped) == 1 else f"{several} were"
    console.print(f"\n{len(skipped):,} {words} skipped:")
    for entry in skipped[:SHOWN]:
        console.print(f"  {escape(entry.path)}: {escape(entry.reason)}", soft_wrap=True)
    if len(skipped) > SHOWN:
        directories = Counter(Path(entry.path).parent for entry in skipped[SHOWN:])
        for directory, count in directories.most_common(SHOWN):
            console.print(f"  {escape(str(directory))}: {count:,} more", soft_wrap=True)
        console.print("  --json names them all.")
