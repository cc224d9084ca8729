"""``candles fill``: the command that completes a series from an exchange."""

import asyncio
import dataclasses
import sys
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from difflib import get_close_matches
from importlib import import_module
from typing import Annotated, Any

from cyclopts import Parameter
from rich.console import Console
from rich.markup import escape

from backtest_persist import operations
from backtest_persist.cli.candles.times import parse_instant, parse_length, shown_time
from backtest_persist.cli.command import INCOMPLETE, Flag, open_container, print_json
from backtest_persist.cli.progress import Bar, show_progress
from backtest_persist.contracts import CandleInterval
from backtest_persist.operations import CandlesFilled
from backtest_persist.operations.candles.filling import RETRY_SECONDS
from backtest_persist.operations.candles.ranges import Range, count_candles

__all__ = ("fill_candles",)

SHOWN = 20
"""The number of gaps or candles that a report names."""


class _FillBar(Bar):
    def wait(self, seconds: float, why: str) -> None:
        """Show a pause before a request is made again."""
        self.progress.console.print(escape(f"Again in {seconds:,.1f} s: {why}"), soft_wrap=True, highlight=False)


def _check_exchange(_: object, id: str) -> None:
    ids: list[str] = import_module("ccxt.async_support").exchanges
    if id not in ids:
        near = get_close_matches(id.lower(), ids, 3)
        hint = f"Did you mean {' or '.join(near)}?" if near else f"It has {len(ids)}, such as binance, kraken and okx."
        raise ValueError(f"ccxt has no exchange {id!r:.40}. {hint}")


async def fill_candles(
    exchange: Annotated[str, Parameter(validator=_check_exchange)],
    symbol: str,
    interval: CandleInterval,
    /,
    *,
    since: str,
    until: str | None = None,
    exchange_name: str | None = None,
    ccxt_symbols: Flag = False,
    session_length: str | None = None,
    allow_outliers: Flag = False,
    no_volume: Flag = False,
    ask_again: Flag = False,
    retry_seconds: float = RETRY_SECONDS,
    dry_run: Flag = False,
    json: Flag = False,
) -> int:
    """Complete a series from an exchange: only what is missing is asked for.

    What was fetched is stored at once, so after Ctrl-C, a kill or an error the same command goes on from there. What
    the exchange does not have is remembered. Exits with 3 when gaps are left that this does not explain.

    Parameters
    ----------
    exchange
        The name of the exchange in ccxt, such as binance.
    symbol
        The symbol, as the exchange (BTCUSDT) or ccxt (BTC/USDT) spells it.
    interval
        The interval of the candles.
    since
        Where to begin, such as 2024-05-01, 2024-05-01T12:00Z, or 30d (ago).
    until
        Where to end, exclusive. The default is now.
    exchange_name
        The name under which the series is stored. The default is that of ccxt.
    ccxt_symbols
        Store the series under the symbol of ccxt. The default is that of the exchange, as TypeScript bots store it.
    session_length
        For days that do not open at 00:00 UTC: the time from the opening of a session to its close, such as 24h or
        6h30m. They are stored under the UTC day in which they close.
    allow_outliers
        Store also candles with a price in another unit than those around it.
    no_volume
        Store 0 as the volume where the exchange gives none.
    ask_again
        Ask again for what the exchange did not have before.
    retry_seconds
        For how long to ask an exchange again that does not answer.
    dry_run
        Only show the gaps and how many requests they take.
    json
        Print the whole report as JSON on standard output.

    """
    bounds = parse_instant(since, "--since"), None if until is None else parse_instant(until, "--until")
    async with open_container() as container, _open_exchange(exchange) as opened:
        with show_progress(f"Filling {symbol} {interval}") as progress:
            try:
                report = await operations.fill_candles(
                    container,
                    opened,
                    symbol,
                    interval,
                    *bounds,
                    exchange_name=exchange_name,
                    ccxt_symbols=ccxt_symbols,
                    session_length=None if session_length is None else parse_length(session_length, "--session-length"),
                    allow_outliers=allow_outliers,
                    no_volume=no_volume,
                    ask_again=ask_again,
                    retry_seconds=retry_seconds,
                    dry_run=dry_run,
                    progress=_FillBar(progress, "candles"),
                )
            except asyncio.CancelledError:
                progress.stop()
                print("Stopped. What was fetched is stored; run the same command again to go on.", file=sys.stderr)
                raise
    if json:
        print_json(dataclasses.asdict(report))
    else:
        _show(report, dry_run=dry_run)
    return 0 if report.is_complete else INCOMPLETE


@asynccontextmanager
async def _open_exchange(id: str) -> AsyncGenerator[Any]:
    """Yield an exchange of ccxt, which goes through the proxies of the environment, and close it."""
    exchange = getattr(import_module("ccxt.async_support"), id)({"aiohttp_trust_env": True})
    try:
        yield exchange
    finally:
        # ccxt 4.5 asks for several markets at once; when one request fails, the others go on and open a new session
        left = [task for task in asyncio.all_tasks() if _name_of(task).startswith(f"{type(exchange).__name__}.")]
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        await exchange.close()


def _name_of(task: asyncio.Task[Any]) -> str:
    return getattr(task.get_coro(), "__qualname__", "")


def _show(report: CandlesFilled, *, dry_run: bool) -> None:
    console = Console(highlight=False)

    def show(text: str) -> None:
        console.print(escape(text), soft_wrap=True)

    step = report.step
    name = f"{report.symbol} {report.interval} {report.exchange_name}"
    show(f"{name}, {shown_time(report.since)} to {shown_time(report.until)} UTC")
    if dry_run:
        show(f"{report.asked:,} candles to ask for, in {_counted(len(report.gaps), 'gap')}.")
        _show_ranges(report.gaps, step, show)
        if report.gaps:
            show(f"They take {_counted(report.planned, 'request')} or more.")
        show("Nothing was fetched or written (--dry-run).")
        return
    if not report.gaps:
        show("There is nothing to ask for.")
    else:
        repeated = f" ({report.retries:,} repeated)" if report.retries else ""
        requests = f"{_counted(report.requests, 'request')}{repeated}, {report.seconds:,.1f} s"
        show(f"{report.asked:,} candles were asked for, {report.new:,} are new. {requests}.")
    if report.missing:
        count, gaps = count_candles(report.missing, step), _counted(len(report.missing), "gap")
        show(f"The exchange does not have {count:,}, in {gaps}; --ask-again asks for them again.")
    if report.late:
        show(f"It does not have {count_candles(report.late, step):,} of the last hours yet; run this again later.")
    if report.different:
        show(f"\nStored with other numbers than the exchange gives, and kept: {len(report.different):,}")
        _show_lines([shown_time(at) for at in report.different], show)
    if report.invalid:
        show(f"\nCannot be real, and not stored: {len(report.invalid):,}")
        _show_lines([f"{shown_time(at)}: {problem}" for at, problem in report.invalid], show)
    if report.outliers:
        show(f"\nPrice in another unit than others, stored only with --allow-outliers: {len(report.outliers):,}")
        _show_lines([shown_time(at) for at in report.outliers], show)
    if report.remaining:
        show(f"\nStill missing: {count_candles(report.remaining, step):,}")
        if report.remaining == report.gaps and not report.invalid and not report.outliers:
            show(
                "The exchange has not given any candle, so that nothing counts as missing on it; run this again later."
            )
        _show_ranges(report.remaining, step, show)


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _show_ranges(ranges: Sequence[Range], step: int, show: Any) -> None:
    lines = [
        f"{shown_time(start)} to {shown_time(end)}: {count_candles([(start, end)], step):,}" for start, end in ranges
    ]
    _show_lines(lines, show)


def _show_lines(lines: Sequence[str], show: Any) -> None:
    for line in lines[:SHOWN]:
        show(f"  {line}")
    if len(lines) > SHOWN:
        show(f"  {len(lines) - SHOWN:,} more; --json names them all.")
