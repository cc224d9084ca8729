"""``candles export``: the command that writes a series to a file."""

import dataclasses
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.markup import escape

from backtest_persist import operations
from backtest_persist.cli.candles.times import parse_period, shown_time
from backtest_persist.cli.command import INCOMPLETE, Flag, open_container, print_json
from backtest_persist.cli.progress import Bar, show_progress
from backtest_persist.operations import CandlesExported

__all__ = ("export_candles",)

SHOWN = 20
"""The number of candles that a report names."""


async def export_candles(
    file: Path,
    /,
    *,
    symbol: str,
    interval: str,
    exchange: str,
    since: str | None = None,
    until: str | None = None,
    format: Literal["csv", "parquet", "feather"] | None = None,
    force: Flag = False,
    json: Flag = False,
) -> int:
    """Write a series of candles to a file, which candles import, pandas, polars and freqtrade read.

    Exits with 3 when candles were skipped, such as those that another program has stored at times of no candle.

    Parameters
    ----------
    file
        The file to write: its name ends in .csv, .csv.gz, .parquet or .feather, unless a format is given. It gets its
        name when it is complete.
    symbol
        The symbol of the series.
    interval
        Its interval: 1m 3m 5m 15m 30m 1h 2h 4h 6h 8h 1d.
    exchange
        The name of its exchange.
    since
        Where to begin, such as 2024-05-01 or 2024-05-01T12:00Z; by default with the first candle that is stored.
    until
        Where to end, exclusive; by default after the last candle that is stored.
    format
        CSV with times in ms, or Parquet or feather with the columns of freqtrade, for which pyarrow or polars is
        needed.
    force
        Replace a file that exists.
    json
        Print the whole report as JSON on standard output, with times in ms.

    """
    bounds = parse_period(since, until)
    async with open_container() as container:
        with show_progress("Exporting") as progress:
            report = await operations.export_candles(
                container,
                file,
                symbol,
                interval,
                exchange,
                *bounds,
                format=format,
                force=force,
                progress=Bar(progress, "candles"),
            )
    if json:
        print_json({**dataclasses.asdict(report), "skipped": [candle._asdict() for candle in report.skipped]})
    else:
        _show(report)
    return INCOMPLETE if report.skipped else 0


def _show(report: CandlesExported) -> None:
    console = Console(highlight=False)

    def show(text: str) -> None:
        console.print(escape(text), soft_wrap=True)

    size = f"{report.bytes:,} bytes of {report.format}"
    show(f"{report.file}: {report.rows:,} candles, {size}, in {report.seconds:,.1f} s.")
    if report.first is not None and report.last is not None:
        show(f"They reach from {shown_time(report.first)} to {shown_time(report.last)}, in UTC.")
    if report.skipped:
        count = len(report.skipped)
        show(f"\n{count:,} stored {'candle was' if count == 1 else 'candles were'} skipped:")
    for candle in report.skipped[:SHOWN]:
        show(f"  {shown_time(candle.timestamp)}: {candle.reason}")
    if len(report.skipped) > SHOWN:
        show(f"  {len(report.skipped) - SHOWN:,} more; --json names them all.")
