"""``candles import``: the command that stores files of candles as a series."""

import asyncio
import dataclasses
import sys
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.markup import escape

from backtest_persist import operations
from backtest_persist.cli.candles.times import parse_instant, parse_length, shown_time
from backtest_persist.cli.command import INCOMPLETE, Flag, open_container, print_json
from backtest_persist.cli.progress import Bar, show_byte_progress
from backtest_persist.operations import CandlesImported

__all__ = ("import_candles",)

SHOWN = 20
"""The number of rows that a report names."""


async def import_candles(
    file: Path,
    /,
    *files: Path,
    symbol: str,
    interval: str,
    exchange: str,
    unit: Literal["s", "ms", "us", "ns"] | None = None,
    columns: str | None = None,
    tz: str | None = None,
    date_order: Literal["dmy", "mdy"] | None = None,
    decimal: Literal[".", ","] | None = None,
    no_volume: Flag = False,
    allow_outliers: Flag = False,
    session_length: str | None = None,
    as_of: str | None = None,
    replace: Flag = False,
    dry_run: Flag = False,
    json: Flag = False,
) -> int:
    """Store files of candles, such as downloads of exchanges or exports of charting programs, as one series.

    The layout and the unit of times are detected and printed; a file that can be read in two ways is refused, with the
    option that decides. What is stored already is kept, so an import can be run again, or resumed. Exits with 3 when
    rows were skipped, or are stored with other numbers; the report says which, and why.

    Parameters
    ----------
    file
        A file of CSV or JSON (also as .zip or .gz), Parquet or feather.
    files
        Further files of the same series, which are imported in this order.
    symbol
        The symbol of the series.
    interval
        Its interval: 1m 3m 5m 15m 30m 1h 2h 4h 6h 8h 1d.
    exchange
        The name of its exchange.
    unit
        The unit of times that are numbers.
    columns
        The names of the columns in their order, such as timestamp,open,high,low,close,volume; - for what is not stored.
    tz
        The zone of times that have none: a name such as America/New_York, or an offset such as +02:00.
    date_order
        Whether 02.03.2024 begins with the day or the month.
    decimal
        What separates the decimals of a number.
    no_volume
        Store 0 as the volume.
    allow_outliers
        Store rows with a price that is 100,000 times off those around it, too.
    session_length
        How long a session lasts, such as 6h30m or 24h, where days do not begin at 00:00 UTC: each is stored under the
        UTC day in which it closes.
    as_of
        When the exchange was asked, in ISO 8601 with a zone: what had not closed then is not stored. By default, the
        last candle is left out if it had not closed when the file was last modified.
    replace
        Where the file differs from what is stored, delete what is stored in its range first. The file is read as a
        whole before, and nothing is deleted if a row of it cannot be stored.
    dry_run
        Read and check everything, write nothing.
    json
        Print the whole report as JSON on standard output; of several files, a list of reports, also of those before an
        error.

    """
    length = None if session_length is None else parse_length(session_length, "--session-length")
    asked = None if as_of is None else parse_instant(as_of, "--as-of")
    reports: list[CandlesImported] = []
    async with open_container() as container, _printed(reports, json=json and bool(files)):
        for path in (file, *files):
            with show_byte_progress(f"{'Reading' if dry_run else 'Importing'} {path.name}") as progress:
                bar = Bar(progress, "bytes")
                try:
                    report = await operations.import_candles(
                        container,
                        path,
                        symbol,
                        interval,
                        exchange,
                        unit=unit,
                        columns=None if columns is None else columns.split(","),
                        tz=tz,
                        date_order=date_order,
                        decimal=decimal,
                        no_volume=no_volume,
                        allow_outliers=allow_outliers,
                        session_length=length,
                        as_of=asked,
                        replace=replace,
                        dry_run=dry_run,
                        progress=bar,
                    )
                except asyncio.CancelledError:
                    progress.stop()
                    print(
                        f"Stopped at {bar.share:.0%} of {path}. Run the same command again to go on; what is stored is "
                        "not stored twice.",
                        file=sys.stderr,
                    )
                    raise
            reports.append(report)
            if not json:
                _show(report, has_as_of=asked is not None, dry_run=dry_run)
    if json and not files:
        print_json(_plain(reports[0]))
    return 0 if all(report.is_complete for report in reports) else INCOMPLETE


@asynccontextmanager
async def _printed(reports: Sequence[CandlesImported], *, json: bool) -> AsyncGenerator[None]:
    """Print reports as JSON at the end, also those before an error."""
    try:
        yield
    finally:
        if json:
            print_json([_plain(report) for report in reports])


def _plain(report: CandlesImported) -> dict[str, Any]:
    plain = dataclasses.asdict(report)
    for name in ("different", "open", "skipped"):
        plain[name] = [row._asdict() for row in getattr(report, name)]
    return plain


def _show(report: CandlesImported, *, has_as_of: bool, dry_run: bool) -> None:
    console = Console(highlight=False)

    def show(text: str) -> None:
        console.print(escape(text), soft_wrap=True)

    show(f"{report.file}: {report.layout}.")
    new = "would be stored" if dry_run else "stored"
    kept = f"{report.same:,} there already"
    rate = f"{report.rows / report.seconds:,.0f} rows/s"
    show(f"{report.rows:,} rows in {report.seconds:,.1f} s, {rate}; {report.new:,} {new}, {kept}.")
    if report.first is not None and report.last is not None:
        show(f"They reach from {shown_time(report.first)} to {shown_time(report.last)}, in UTC.")
    if report.ignored:
        show(f"Columns that are not stored: {', '.join(report.ignored)}.")
    if report.rounded:
        show(f"{report.rounded:,} have numbers of more digits than a float holds; the nearest floats are stored.")
    if report.widened:
        show(f"{report.widened:,} have a high or low that missed the body by a rounding error, and was set to it.")
    if report.open:
        count, first = len(report.open), shown_time(min(row.timestamp for row in report.open))
        when = "at --as-of" if has_as_of else "when the file was written (see --as-of)"
        show(f"Not closed {when}, and not stored: {count:,}, from {first} on.")
    if report.different:
        show(f"\nStored with other numbers, which were kept: {len(report.different):,}")
        _show_rows([f"{report.noun} {row.line:,}: {shown_time(row.timestamp)}" for row in report.different], show)
        show("  If the file is right, --replace deletes what is stored in its range and stores the file.")
    if report.skipped:
        show(f"\nSkipped rows: {len(report.skipped):,}")
        _show_rows([f"{report.noun} {row.line:,}: {row.reason}" for row in report.skipped], show)
    if dry_run:
        show("Nothing was written (--dry-run).")


def _show_rows(rows: Sequence[str], show: Any) -> None:
    for row in rows[:SHOWN]:
        show(f"  {row}")
    if len(rows) > SHOWN:
        show(f"  {len(rows) - SHOWN:,} more; --json names them all.")
