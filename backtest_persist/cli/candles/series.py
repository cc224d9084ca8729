"""``candles ls`` and ``candles gaps``: the commands that show which series are stored, and what is missing in them."""

import dataclasses
from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from backtest_persist.cli.candles.times import parse_period, shown_time
from backtest_persist.cli.command import Flag, open_container, print_json
from backtest_persist.operations import CandleGaps, SeriesSummary, find_candle_gaps

__all__ = ("find_gaps", "list_series")


async def list_series(*, json: Flag = False) -> None:
    """List the series of candles that the MongoDB of the CC_* settings holds, with what is missing in them.

    Missing are the candles between the first and the last one that are not stored. Times are in UTC.

    Parameters
    ----------
    json
        Print the list as JSON on standard output, with times in ms.

    """
    async with open_container() as container:
        found = await container.candle_db_service.list_series()
    if json:
        print_json([dataclasses.asdict(summary) for summary in found])
    else:
        _show_series(found)


async def find_gaps(
    symbol: str,
    interval: str,
    exchange: str,
    /,
    *,
    since: str | None = None,
    until: str | None = None,
    json: Flag = False,
) -> None:
    """List the gaps of a series: the first missing time of each, and the time after the last one, in UTC.

    Parameters
    ----------
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
    json
        Print the list as JSON on standard output, with times in ms.

    """
    bounds = parse_period(since, until)
    async with open_container() as container:
        report = await find_candle_gaps(container, symbol, interval, exchange, *bounds)
    if json:
        print_json({**dataclasses.asdict(report), "gaps": [gap._asdict() for gap in report.gaps]})
    else:
        _show_gaps(report)


def _show_series(found: Sequence[SeriesSummary]) -> None:
    console = Console(highlight=False)
    if not found:
        console.print("No candles are stored.")
        return
    table = Table("exchange", "series", "first", "last", "candles", "missing", box=None, padding=(0, 1, 0, 0))
    for column in table.columns[:2]:
        column.overflow = "fold"
    for column in table.columns[4:]:
        column.justify = "right"
    for one in found:
        missing = "?" if one.missing is None else f"{one.missing:,} in {one.gaps:,}" if one.missing else "0"
        names = escape(one.exchange_name), escape(f"{one.symbol} {one.interval}")
        table.add_row(*names, shown_time(one.first), shown_time(one.last), f"{one.count:,}", missing)
    console.print(table)
    count, gaps = sum(one.count for one in found), sum(one.gaps or 0 for one in found)
    missing = sum(one.missing or 0 for one in found)
    console.print(f"\n{len(found):,} series, {count:,} candles; {missing:,} are missing, in {_gaps(gaps)}.")
    for one in found:
        if one.misaligned:
            name = escape(f"{one.exchange_name} {one.symbol} {one.interval}")
            text = f"{name}: {one.misaligned:,} more are stored at times at which no candle begins."
            console.print(text, soft_wrap=True)


def _show_gaps(report: CandleGaps) -> None:
    print(f"From {shown_time(report.since)} to {shown_time(report.until)} (exclusive), in UTC:")
    if report.gaps:
        print(f"{'from':<19}  {'to (exclusive)':<19}  {'candles':>15}")
    for gap in report.gaps:
        print(f"{shown_time(gap.start):<19}  {shown_time(gap.end):<19}  {gap.missing:>15,}")
    print(f"{report.missing:,} candles are missing, in {_gaps(len(report.gaps))}.")


def _gaps(count: int) -> str:
    return f"{count:,} gap{'' if count == 1 else 's'}"
