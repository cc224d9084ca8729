"""Frames: candles and rows for pandas, polars and Arrow, each of which is imported when it is needed."""
