"""``candles``: the commands on series of candles."""

from cyclopts import App

from backtest_persist.cli.candles.filling import fill_candles
from backtest_persist.cli.candles.importing import import_candles

__all__ = ("candles",)

candles = App(name="candles", help="Series of candles: import, export, fill from an exchange, list, find gaps.")
candles.command(import_candles, name="import")
candles.command(fill_candles, name="fill")
