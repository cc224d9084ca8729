"""What is stored: one module per domain, each read from top to bottom.

A module holds, in this order: the context (the unique index), the row (one document), the cache service (context key
to ``_id``, in Redis), the db service (MongoDB) and the persist adapter that strategy code calls.

**The latest value of a context**

- `signal`: the open signal of a symbol, a strategy and an exchange
- `schedule`: the signal that waits for its price
- `risk`: the positions under a risk profile
- `partial`: the profit and loss levels a signal has passed
- `breakeven`: whether the stop of a signal stands at its entry price
- `recent`: the latest public signal, per mode
- `state`: the free state of a signal
- `session`: the free state of a strategy's run, per mode

**Keyed entries with tombstones**

- `measure`: cached answers of outside services
- `interval`: markers of what was done once per interval
- `memory`: what a strategy remembers about a signal

**Lists**

- `storage`: all signals, per mode
- `notification`: what happened, per mode
- `log`: decisions, append-only

**An immutable series**

- `candle`: OHLCV candles
"""
