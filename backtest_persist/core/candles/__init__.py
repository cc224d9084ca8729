"""Series of candles: input, checks, the store that each backend provides, reports, columns, and longer intervals."""
