"""The display of the demo while it runs: its progress, its equity and its last trades, on standard error."""

import os
import sys
from collections import deque
from decimal import Decimal
from types import TracebackType
from typing import Self

from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from backtest_persist.cli.progress import Bar, show_progress
from backtest_persist.demo.strategy import Signal, percent

__all__ = ("Display", "sparkline")

BLOCKS = "▁▂▃▄▅▆▇█"
EQUITY_WIDTH = 60
SHOWN_TRADES = 5


class Display:
    """Shows a run, and ends this process after so many of its bars; implements `demo.Observer`."""

    def __init__(self, name: str, stop_after: int | None) -> None:
        self._name = name
        self._stop_after = stop_after
        self._resumed_from = self._bars = self._total = 0
        self._equity: list[float] = []
        self._trades: deque[Signal] = deque(maxlen=SHOWN_TRADES)
        self._progress = show_progress(name)
        self._bar = Bar(self._progress, "bars")
        self._live = Live(console=self._progress.console, get_renderable=self._render, refresh_per_second=8)

    def started(self, bars: int, total: int) -> None:
        """Show that a run begins or goes on."""
        if bars >= total:
            self._print(f"{self._name}: this run is complete, nothing is done twice.")
            return
        if bars:
            self._print(f"{self._name}: resuming after bar {bars:,}; {total - bars:,} to go.")
        else:
            self._print(f"{self._name}: {total:,} daily bars through basana.")
        self._resumed_from = bars
        self._total = total
        del self._equity[bars:]
        self._bar.begin(total)
        self._set(bars)
        if not self._live.is_started:
            self._live.start()

    def ended(self, bars: int, equity: Decimal) -> None:
        """Show one bar more."""
        self._equity.append(float(equity))
        self._set(bars)
        if self._stop_after is not None and bars == self._resumed_from + self._stop_after:
            self.stop()
            self._print(f"Stopped hard after {self._stop_after:,} bars, {bars:,} of {self._total:,} in all.")
            os._exit(0)

    def traded(self, signal: Signal) -> None:
        """Show a trade; one of a bar that is done again is shown once."""
        if signal.id not in {trade.id for trade in self._trades}:
            self._trades.append(signal)

    def killed(self, bars: int) -> None:
        """Show that the child was killed."""
        self._print(f"{self._name}: killed (kill -9) after bar {bars:,}.")

    def stop(self) -> None:
        """Leave what is shown on the screen."""
        self._live.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def _set(self, bars: int) -> None:
        self._bar.advance(bars - self._bars)
        self._bars = bars

    def _print(self, line: str) -> None:
        if self._live.is_started and self._progress.console.is_terminal:
            self._progress.console.print(line, highlight=False)  # above the display
        else:
            print(line, file=sys.stderr, flush=True)

    def _render(self) -> RenderableType:
        if not self._progress.console.is_terminal or not self._equity:
            return self._progress
        equity = Text.assemble("equity ", (sparkline(self._equity, EQUITY_WIDTH), "green"), f" {self._equity[-1]:,.2f}")
        return Group(self._progress, equity, self._table())

    def _table(self) -> Table:
        table = Table.grid(padding=(0, 2))
        table.add_column()
        for _ in range(3):
            table.add_column(justify="right")
        table.add_column()
        for trade in self._trades:
            price, profit = trade.price_close or trade.price_open, trade.profit or Decimal(0)
            table.add_row(
                f"{trade.opened_at:%Y-%m-%d} to {trade.closed_at:%Y-%m-%d}",
                f"{trade.amount:,} shares",
                Text(f"{profit:+,}", "green" if profit > 0 else "red"),
                f"{percent(price, trade.price_open):+} %",
                trade.why_closed,
            )
        return table


def sparkline(values: list[float], width: int) -> str:
    """Draw values as blocks, the last value of each of at most `width` equal parts."""
    count = min(width, len(values))
    shown = [values[len(values) * (part + 1) // count - 1] for part in range(count)]
    low, high = min(shown), max(shown)
    scale = (len(BLOCKS) - 1) / (high - low) if high > low else 0.0
    return "".join(BLOCKS[round((value - low) * scale)] for value in shown)
