"""Candles in and out: files of the trade, exchanges, and what is stored of each series."""
