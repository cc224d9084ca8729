"""``candles``: the commands on series of candles."""

from cyclopts import App

__all__ = ("candles",)

candles = App(name="candles", help="Series of candles: import, export, fill from an exchange, list, find gaps.")
