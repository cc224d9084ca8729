"""The contracts: what strategy code may call, and all that another backend has to provide.

A backend is one adapter class for each domain, and a `Backend` that maps the names of the domains to them. The package
brings three: MongoDB with Redis in front, JSON files, and a dummy. To bring your own, write the classes from this file,
put them behind the registry with ``persist.use({"signal": MySignal, …})`` (or one of them with
``persist.signal.use(MySignal)``), and run the conformance suite of `backtest_persist.testing` against them. What the
suite checks is stated here:

Context
    The arguments of an adapter's constructor, and the key, id or timestamp that a method takes, name one value. Two
    contexts never share one, whatever characters their names hold: ``:``, ``/``, ``..``, ``%``, ``_``, glob characters,
    line breaks, emoji, thousands of characters, upper and lower case. A name that is no str, is empty, or holds NUL or
    a lone surrogate is an `InvalidKeyError`, raised no later than by the first read or write. Paper and live trading
    are ``backtest=False``; the registry, which takes a `Mode` as well, passes the bool.
Payload
    A payload goes in as a mapping, a pydantic model or a dataclass, or None where the method says so, and comes back as
    plain data that equals it: dict, list, str, int (64 bit), float (NaN and infinities included), bool, None, bytes,
    Decimal, UUID, and datetime (aware, in UTC, whole ms). What cannot come back exactly is an `InvalidPayloadError`,
    raised before anything is stored. A payload is copied when the call is made; what the caller changes later changes
    nothing stored. What a read returns belongs to the caller.
When nothing is stored
    A read says so with None, ``{}`` or ``[]``, as its docstring tells; that is never an error.
Order
    Lists are whole, without a cap, and oldest first: an entry keeps the place of its first write, also when it is
    written again, or removed and revived. Entries of one call keep their order.
Atomicity
    A read sees a value entirely or not at all, also after the writer was killed at any instant. A method that takes
    many entries checks all of them before it stores the first; each is then stored atomically, and a crash may leave
    only some of them.
Durability
    A write that has returned is seen by every later read, from any instance, task or process, and outlives the process
    that made it. Of two writes of one context that do not overlap, the later one wins; of two that do, either.
Instant
    A `when`, a `timestamp`, or a bound of a window: a timezone-aware datetime, or an int in ms since the epoch, UTC. A
    naive datetime, a float, a bool, a str, and an int that cannot be ms are refused, because a value that was written
    with a wrong unit would be seen too early, or never: from 10**14 on it looks like microseconds or nanoseconds, and
    between 0 and 10**11 like seconds, unless ``CC_ALLOW_EARLY_TIMES`` admits the years 1970 to 1973. 0 and negative
    ints are instants.
When
    `when` is an instant of simulation time. What is no instant, or None where a time is required, is an
    `InvalidWhenError`. A read that is
    given `when` behaves as if a value that was written with a later `when` did not exist: it does not fall back to an
    older value, because only the latest is kept. A read without `when` sees every value. A write with an earlier `when`
    overwrites, so that a backtest can start over.
Errors
    All are subclasses of `BacktestPersistError`. After an error of bad input nothing was stored.

Instances are cheap, hold no value, and may be built many times for one context, in several tasks and event loops.
"""

from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from datetime import date, datetime
from typing import Any, Literal, Protocol, TypedDict, runtime_checkable

from pydantic import BaseModel

__all__ = (
    "Adapter",
    "Backend",
    "Bound",
    "BreakevenAdapter",
    "CandleAdapter",
    "CandleColumns",
    "CandleData",
    "CandleInterval",
    "CandlesInput",
    "DictionaryAdapter",
    "IntervalAdapter",
    "LogAdapter",
    "MeasureAdapter",
    "MemoryAdapter",
    "NotificationAdapter",
    "PartialAdapter",
    "Payload",
    "PayloadInput",
    "RecentAdapter",
    "RiskAdapter",
    "ScheduleAdapter",
    "SessionAdapter",
    "SignalAdapter",
    "StateAdapter",
    "StorageAdapter",
    "StrategyAdapter",
    "When",
)

When = datetime | int
"""An instant in simulation time: a timezone-aware datetime, or an int in ms since the epoch."""

Bound = datetime | int | date | str
"""An end of a range: an instant, a date, which is the beginning of its UTC day, or either in ISO format."""

Payload = dict[str, Any]
"""A stored payload, as plain data."""

PayloadInput = Mapping[str, Any] | BaseModel
"""A payload as it may be written."""

CandlesInput = Any
"""Candles as they may be written. Names of fields and columns may be capitalised.

- rows: mappings, pydantic models, dataclasses, named tuples, ``[ms, open, high, low, close, volume]`` as ccxt gives
  them, klines of Binance of twelve fields
- columns: a mapping of names to lists or arrays, as `CandleColumns.read_candle_columns` gives them
- frames: of pandas (with a column called timestamp, open time, datetime, date or time, or an index that is called so or
  holds dates or datetimes), of polars, or anything that exports an Arrow stream (``__arrow_c_stream__``)

The opening time is an instant or its ms as digits. For an interval of a day it may be a date, or a naive datetime at
midnight, which mean that UTC day. Numbers are of any type that is a number, or its digits as str.
"""

CandleInterval = Literal["1m", "3m", "5m", "15m", "30m", "1h", "2h", "4h", "6h", "8h", "1d"]


class CandleData(TypedDict):
    """One candle: its opening time in ms UTC, prices, and volume."""

    timestamp: int
    open: float
    high: float
    low: float
    close: float
    volume: float


@runtime_checkable
class Adapter(Protocol):
    """The part that all adapters have in common; no adapter has to be closed."""

    async def wait_for_init(self, initial: bool) -> None:
        """Get ready to read and write; the registry awaits it once for each instance, with `initial` True.

        With `initial` True it verifies what the store needs (indexes, directories); with False it may do nothing.
        It is idempotent, stores nothing that a reader could see, and after a failure may be called again.
        """
        ...


@runtime_checkable
class BreakevenAdapter(Adapter, Protocol):
    """Keeps the breakeven mark of a signal, for the signals of a symbol, a strategy and an exchange."""

    async def read_breakeven_data(self, signal_id: str, when: When) -> Payload:
        """Return what is known of the signal; {} when nothing is stored, or when it was written with a later `when`."""
        ...

    async def write_breakeven_data(self, data: PayloadInput, signal_id: str, when: When) -> None:
        """Replace all that is known of the signal, atomically; nothing is merged. An earlier `when` overwrites."""
        ...


@runtime_checkable
class CandleAdapter(Adapter, Protocol):
    """Keeps the candles of one symbol, interval and exchange; a stored candle never changes."""

    async def read_candles_data(
        self, limit: int, since_timestamp: When, until_timestamp: When | None = None
    ) -> list[CandleData] | None:
        """Return the window of `limit` candles from `since_timestamp` on, oldest first; None when any is missing.

        The window holds the opening times ``since_timestamp + n * interval`` (ms UTC) for n from 0 to limit - 1; a
        `limit` of 0 is ``[]``. A candle that closes after `until_timestamp` (ms UTC) counts as missing: its prices lie
        in the future. Raises `InvalidKeyError` for a limit that is negative or no int, and for a start that is not a
        multiple of the interval.
        """
        ...

    async def read_last_candles(self, limit: int, until: When | None = None) -> list[CandleData]:
        """Return the last `limit` stored candles that have closed by `until`, oldest first.

        By default that is now. Missing ones are passed over, such as those of days without a session or minutes without
        a trade; with fewer stored ones there are fewer. `InvalidKeyError` as for a window.
        """
        ...

    async def write_candles_data(self, candles: CandlesInput, *, as_of: When | None = None) -> None:
        """Store candles, each atomically; a stored one stays as it was first written.

        Those that had not closed at `as_of`, which is when the exchange was asked, are skipped, because they may have
        changed afterwards; the default, and the latest that counts, is now by this machine's clock.
        `InvalidPayloadError`, before anything is stored, when one is not real: a timestamp that is no multiple of the
        interval, a number that is missing or not finite, a high or a low inside the body, a negative volume, or
        different candles of one time. A high or low that misses the body by 1e-9 of the price at most is set to it.
        A candle with a price that is 10^5 times off most of the call, which is in another unit, is skipped.
        """
        ...


@runtime_checkable
class CandleColumns(Protocol):
    """An addition that an adapter of candles may offer; those of MongoDB and of JSON files do."""

    async def read_candle_columns(
        self, limit: int, since_timestamp: When, until_timestamp: When | None = None
    ) -> dict[str, Any] | None:
        """Read the same window as numpy arrays by field: `timestamp` int64 (ms UTC), the others float64."""
        ...


@runtime_checkable
class DictionaryAdapter(Adapter, Protocol):
    """Keeps a dictionary of a signal."""

    async def read_dictionary_data(self, *, when: When | None = None) -> Payload | None:
        """Return the payload; None when nothing is stored, when None is, or when it was written with a later `when`."""
        ...

    async def write_dictionary_data(self, data: PayloadInput | None, when: When) -> None:
        """Replace the payload atomically; nothing is merged. An earlier `when` overwrites."""
        ...

    async def dispose(self) -> None:
        """Say that the caller is done with this context: what is stored stays, and the instance can still be used."""
        ...


@runtime_checkable
class IntervalAdapter(Adapter, Protocol):
    """Keeps the markers of one bucket, of what is done once per interval; a removed one leaves a tombstone."""

    async def read_interval_data(self, key: str, *, when: When | None = None) -> Payload | None:
        """Return the marker; None when nothing is stored, when it is removed, or was written with a later `when`."""
        ...

    def list_interval_data(self, *, when: When | None = None) -> AsyncIterator[str]:
        """Iterate over the keys of the bucket, oldest first, without the removed and those later than `when`."""
        ...

    async def write_interval_data(self, data: PayloadInput | None, key: str, when: When) -> None:
        """Replace the marker atomically; a removed one is revived in its old place. An earlier `when` overwrites.

        None is a marker like any other: listed, and read as None. A payload with ``removed: true`` is a tombstone.
        """
        ...

    async def claim_interval_data(self, data: PayloadInput, key: str, when: When) -> bool:
        """Write the marker, atomically, unless one is stored that is not removed; return whether this call wrote it.

        Of any number of calls for one key, of any task or process, exactly one returns True, until the marker is
        removed; then one can claim it again. `when` decides nothing: a marker of a later one is in the way as well.
        None and a payload with ``removed: true`` are an `InvalidPayloadError`.
        """
        ...

    async def remove_interval_data(self, key: str) -> None:
        """Remove the marker from reads and lists, whatever its `when`; nothing happens when none is stored."""
        ...


@runtime_checkable
class LogAdapter(Adapter, Protocol):
    """Keeps the log of decisions, of all runs and modes: append-only."""

    async def read_log_data(self) -> list[Payload]:
        """Return the payloads of all entries, oldest first; [] when there are none."""
        ...

    async def write_log_data(self, entries: Iterable[PayloadInput]) -> None:
        """Append entries, each under its own ``id``, in order; one whose id exists is skipped, also within one call.

        An entry whose ``id`` is missing or unusable is an `InvalidKeyError`, and none of the call is stored.
        """
        ...


@runtime_checkable
class MeasureAdapter(Adapter, Protocol):
    """Keeps the answers of outside services, by bucket; exempt from look-ahead protection.

    A removed answer leaves a tombstone.
    """

    async def read_measure_data(self, key: str) -> Payload | None:
        """Return the answer; None when nothing is stored, or when it is removed."""
        ...

    def list_measure_data(self) -> AsyncIterator[str]:
        """Iterate over the keys of the bucket, oldest first, without the removed."""
        ...

    async def write_measure_data(self, data: PayloadInput | None, key: str, when: When) -> None:
        """Replace the answer atomically; a removed one is revived in its old place. `when` is checked, not stored.

        None is an answer like any other: listed, and read as None. A payload with ``removed: true`` is a tombstone.
        """
        ...

    async def remove_measure_data(self, key: str) -> None:
        """Remove the answer from reads and lists; nothing happens when none is stored."""
        ...


@runtime_checkable
class MemoryAdapter(Adapter, Protocol):
    """Keeps what a strategy remembers about a signal, in a bucket. A removed memory leaves a tombstone."""

    async def read_memory_data(self, memory_id: str, *, when: When | None = None) -> Payload | None:
        """Return the memory; None when nothing is stored, when it is removed, or was written with a later `when`."""
        ...

    async def has_memory_data(self, memory_id: str, *, when: When | None = None) -> bool:
        """Whether a memory is stored, a removed one included; False when it was written with a later `when`."""
        ...

    def list_memory_data(self, *, when: When | None = None) -> AsyncIterator[tuple[str, Payload | None]]:
        """Iterate over (memory_id, data), oldest first, without the removed and those later than `when`."""
        ...

    async def write_memory_data(self, data: PayloadInput | None, memory_id: str, when: When) -> None:
        """Replace the memory atomically; a removed one is revived in its old place. An earlier `when` overwrites.

        None is a memory like any other: listed, and read as None. A payload with ``removed: true`` is a tombstone.
        """
        ...

    async def remove_memory_data(self, memory_id: str) -> None:
        """Remove the memory from reads and lists, whatever its `when`; nothing happens when none is stored."""
        ...

    async def dispose(self) -> None:
        """Say that the caller is done with this context: what is stored stays, and the instance can still be used."""
        ...


@runtime_checkable
class NotificationAdapter(Adapter, Protocol):
    """Keeps the notifications of a mode."""

    async def read_notification_data(self) -> list[Payload]:
        """Return the payloads of all notifications of the mode, oldest first; [] when there are none."""
        ...

    async def write_notification_data(self, notifications: Iterable[PayloadInput]) -> None:
        """Write notifications, each under its own ``id``; those of the store that are not among them stay.

        One whose id exists is replaced in its place; of two with one id the later wins. An entry whose ``id`` is
        missing or unusable is an `InvalidKeyError`, and none of the call is stored.
        """
        ...


@runtime_checkable
class PartialAdapter(Adapter, Protocol):
    """Keeps the levels a signal has passed, for the signals of a symbol, a strategy and an exchange."""

    async def read_partial_data(self, signal_id: str, when: When) -> Payload:
        """Return what is known of the signal; {} when nothing is stored, or when it was written with a later `when`."""
        ...

    async def write_partial_data(self, data: PayloadInput, signal_id: str, when: When) -> None:
        """Replace all that is known of the signal, atomically; nothing is merged. An earlier `when` overwrites."""
        ...


@runtime_checkable
class RecentAdapter(Adapter, Protocol):
    """Keeps the latest public signal of a symbol, strategy, exchange, frame and mode.

    Live trading has no frame: `frame_name` is then empty.
    """

    async def read_recent_data(self, *, when: When | None = None) -> Payload | None:
        """Return the payload; None when nothing is stored, when None is, or when it was written with a later `when`."""
        ...

    async def write_recent_data(self, row: PayloadInput | None, when: When) -> None:
        """Replace the payload atomically; nothing is merged. An earlier `when` overwrites."""
        ...


@runtime_checkable
class RiskAdapter(Adapter, Protocol):
    """Keeps the open positions under a risk profile."""

    async def read_position_data(self, when: When) -> list[Any]:
        """Return the positions; [] when nothing is stored, or when they were written with a later `when`."""
        ...

    async def write_position_data(self, positions: Sequence[Any], when: When) -> None:
        """Replace the whole list atomically. An earlier `when` overwrites.

        Positions are payload values of any shape; anything but a list or tuple is an `InvalidPayloadError`.
        """
        ...


@runtime_checkable
class ScheduleAdapter(Adapter, Protocol):
    """Keeps the pending signal of a symbol, a strategy and an exchange across restarts."""

    async def read_schedule_data(self) -> Payload | None:
        """Return the payload; None when nothing is stored, or when None is: nothing is open."""
        ...

    async def write_schedule_data(self, row: PayloadInput | None) -> None:
        """Replace the payload atomically; None says that nothing is open any more."""
        ...


@runtime_checkable
class SessionAdapter(Adapter, Protocol):
    """Keeps the state of a run: of a strategy, exchange, frame, symbol and mode.

    Live trading has no frame: `frame_name` is then empty.
    """

    async def read_session_data(self, *, when: When | None = None) -> Payload | None:
        """Return the payload; None when nothing is stored, when None is, or when it was written with a later `when`."""
        ...

    async def write_session_data(self, data: PayloadInput | None, when: When) -> None:
        """Replace the payload atomically; nothing is merged. An earlier `when` overwrites."""
        ...

    async def dispose(self) -> None:
        """Say that the caller is done with this context: what is stored stays, and the instance can still be used."""
        ...


@runtime_checkable
class SignalAdapter(Adapter, Protocol):
    """Keeps the open signal of a symbol, a strategy and an exchange across restarts."""

    async def read_signal_data(self) -> Payload | None:
        """Return the payload; None when nothing is stored, or when None is: nothing is open."""
        ...

    async def write_signal_data(self, row: PayloadInput | None) -> None:
        """Replace the payload atomically; None says that nothing is open any more."""
        ...


@runtime_checkable
class StateAdapter(Adapter, Protocol):
    """Keeps the state of a signal in a bucket."""

    async def read_state_data(self, *, when: When | None = None) -> Payload | None:
        """Return the payload; None when nothing is stored, when None is, or when it was written with a later `when`."""
        ...

    async def write_state_data(self, data: PayloadInput | None, when: When) -> None:
        """Replace the payload atomically; nothing is merged. An earlier `when` overwrites."""
        ...

    async def dispose(self) -> None:
        """Say that the caller is done with this context: what is stored stays, and the instance can still be used."""
        ...


@runtime_checkable
class StorageAdapter(Adapter, Protocol):
    """Keeps all signals of a mode, open and closed."""

    async def read_storage_data(self) -> list[Payload]:
        """Return the payloads of all signals of the mode, oldest first; [] when there are none."""
        ...

    async def write_storage_data(self, signals: Iterable[PayloadInput]) -> None:
        """Write signals, each under its own ``id``; those of the store that are not among them stay.

        One whose id exists is replaced in its place; of two with one id the later wins. An entry whose ``id`` is
        missing or unusable is an `InvalidKeyError`, and none of the call is stored.
        """
        ...


@runtime_checkable
class StrategyAdapter(Adapter, Protocol):
    """Keeps the deferred state of a strategy across restarts: queued commits and actions of the user."""

    async def read_strategy_data(self) -> Payload | None:
        """Return the payload; None when nothing is stored, or when None is: nothing is deferred."""
        ...

    async def write_strategy_data(self, row: PayloadInput | None) -> None:
        """Replace the payload atomically; None says that nothing is deferred any more."""
        ...


Backend = Mapping[str, Callable[..., Adapter]]
"""A backend, as `Registry.use` takes it: by the name of each domain, a callable that builds an adapter of it.

It is called with the arguments of the adapter's context, by position, and does no I/O. A domain that is left out cannot
be used: a request for an adapter of it is a `SettingsError` that names it.
"""
