"""``candles``: the commands on series of candles."""

from cyclopts import App

from backtest_persist.cli.candles.exporting import export_candles
from backtest_persist.cli.candles.filling import fill_candles
from backtest_persist.cli.candles.importing import import_candles
from backtest_persist.cli.candles.series import find_gaps, list_series

__all__ = ("candles",)

candles = App(name="candles", help="Series of candles: import, export, fill from an exchange, list, find gaps.")
candles.command(import_candles, name="import")
candles.command(export_candles, name="export")
candles.command(list_series, name="ls")
candles.command(find_gaps, name="gaps")
candles.command(fill_candles, name="fill")
