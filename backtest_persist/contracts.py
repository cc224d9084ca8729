"""The fifteen contracts: what strategy code may call, and all that another backend has to provide.

Every method is asynchronous. After a write has returned, the very next read sees it. A payload goes in as a mapping
or a pydantic model and comes back as plain data. `when` is an instant of simulation time, a timezone-aware datetime or
an int in ms UTC: a read that is given one behaves as if anything written with a later `when` did not exist, and a
write with an earlier one overwrites.
"""

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Literal, Protocol, TypedDict, runtime_checkable

from pydantic import BaseModel

__all__ = (
    "CandleData",
    "CandleInterval",
    "Payload",
    "PayloadInput",
    "PersistBreakevenInstance",
    "PersistCandleInstance",
    "PersistInstance",
    "PersistIntervalInstance",
    "PersistLogInstance",
    "PersistMeasureInstance",
    "PersistMemoryInstance",
    "PersistNotificationInstance",
    "PersistPartialInstance",
    "PersistRecentInstance",
    "PersistRiskInstance",
    "PersistScheduleInstance",
    "PersistSessionInstance",
    "PersistSignalInstance",
    "PersistStateInstance",
    "PersistStorageInstance",
    "When",
)

When = datetime | int
Payload = dict[str, Any]
PayloadInput = Mapping[str, Any] | BaseModel
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
class PersistInstance(Protocol):
    """What all adapters have."""

    async def wait_for_init(self, initial: bool) -> None:
        """Get ready; idempotent, and may be called again after a failure."""
        ...


@runtime_checkable
class PersistBreakevenInstance(PersistInstance, Protocol):
    """Keeps the breakeven mark of a signal, for the signals of a symbol, a strategy and an exchange."""

    async def read_breakeven_data(self, signal_id: str, when: When) -> Payload:
        """What was known of the signal at `when` (aware datetime, or ms UTC); {} when absent or later than that."""
        ...

    async def write_breakeven_data(self, data: PayloadInput, signal_id: str, when: When) -> None:
        """Replace what is known of the signal; an earlier `when` overwrites, so a backtest can start over."""
        ...


@runtime_checkable
class PersistCandleInstance(PersistInstance, Protocol):
    """Keeps the candles of one symbol, interval and exchange."""

    async def read_candles_data(
        self, limit: int, since_timestamp: int, until_timestamp: int | None = None
    ) -> list[CandleData] | None:
        """The window of `limit` candles from `since_timestamp` (ms UTC) on, or None when any of them is missing.

        A candle that closes after `until_timestamp` (ms UTC) counts as missing: its prices lie in the future.
        Raises `InvalidKeyError` for a negative limit, or a start that is not a multiple of the interval.
        """
        ...

    async def write_candles_data(self, candles: Sequence[PayloadInput]) -> None:
        """Store candles; those that have not closed yet by this machine's clock are skipped."""
        ...


@runtime_checkable
class PersistIntervalInstance(PersistInstance, Protocol):
    """Keeps the markers of one bucket."""

    async def read_interval_data(self, key: str, *, when: When | None = None) -> Payload | None:
        """The marker, or None when absent, removed, or not yet written at `when` (aware datetime, or ms UTC)."""
        ...

    def list_interval_data(self, *, when: When | None = None) -> AsyncIterator[str]:
        """Iterate over the keys of the bucket, oldest first, without what is removed or later than `when`."""
        ...

    async def write_interval_data(self, data: PayloadInput | None, key: str, when: When) -> None:
        """Replace the marker; revives a removed one. An earlier `when` overwrites."""
        ...

    async def remove_interval_data(self, key: str) -> None:
        """Remove the marker from reads and lists; nothing happens when it is absent."""
        ...


@runtime_checkable
class PersistLogInstance(PersistInstance, Protocol):
    """Keeps the log of decisions."""

    async def read_log_data(self) -> list[Payload]:
        """The payloads of all entries, oldest first."""
        ...

    async def write_log_data(self, entries: Iterable[PayloadInput]) -> None:
        """Append entries, each with an ``id``; one that exists is left as it is."""
        ...


@runtime_checkable
class PersistMeasureInstance(PersistInstance, Protocol):
    """Keeps the cached answers of one bucket; exempt from look-ahead protection."""

    async def read_measure_data(self, key: str) -> Payload | None:
        """The answer, or None when absent or removed."""
        ...

    def list_measure_data(self) -> AsyncIterator[str]:
        """Iterate over the keys of the bucket, oldest first, without what is removed."""
        ...

    async def write_measure_data(self, data: PayloadInput | None, key: str, when: When) -> None:
        """Replace the answer; revives a removed one. `when` is checked, but not stored."""
        ...

    async def remove_measure_data(self, key: str) -> None:
        """Remove the answer from reads and lists; nothing happens when it is absent."""
        ...


@runtime_checkable
class PersistMemoryInstance(PersistInstance, Protocol):
    """Keeps what a strategy remembers about a signal."""

    async def read_memory_data(self, memory_id: str, *, when: When | None = None) -> Payload | None:
        """The memory, or None when absent, removed, or not yet written at `when` (aware datetime, or ms UTC)."""
        ...

    async def has_memory_data(self, memory_id: str, *, when: When | None = None) -> bool:
        """Whether the memory was ever written (by `when`); a removed one counts."""
        ...

    def list_memory_data(self, *, when: When | None = None) -> AsyncIterator[tuple[str, Payload | None]]:
        """Iterate over (memory_id, data), oldest first, without what is removed or later than `when`."""
        ...

    async def write_memory_data(self, data: PayloadInput | None, memory_id: str, when: When) -> None:
        """Replace the memory; revives a removed one. An earlier `when` overwrites."""
        ...

    async def remove_memory_data(self, memory_id: str) -> None:
        """Remove the memory from reads and lists; nothing happens when it is absent."""
        ...

    async def dispose(self) -> None:
        """Let go of the instance: what is stored stays, and nothing is held here that needs closing."""
        ...


@runtime_checkable
class PersistNotificationInstance(PersistInstance, Protocol):
    """Keeps notifications of a mode; paper and live are `backtest=False`."""

    async def read_notification_data(self) -> list[Payload]:
        """The payloads of all notifications, oldest first."""
        ...

    async def write_notification_data(self, notifications: Iterable[PayloadInput]) -> None:
        """Write notifications, each under its own ``id``; what is not among them stays."""
        ...


@runtime_checkable
class PersistPartialInstance(PersistInstance, Protocol):
    """Keeps the levels a signal has passed, for the signals of a symbol, a strategy and an exchange."""

    async def read_partial_data(self, signal_id: str, when: When) -> Payload:
        """What was known of the signal at `when` (aware datetime, or ms UTC); {} when absent or later than that."""
        ...

    async def write_partial_data(self, data: PayloadInput, signal_id: str, when: When) -> None:
        """Replace what is known of the signal; an earlier `when` overwrites, so a backtest can start over."""
        ...


@runtime_checkable
class PersistRecentInstance(PersistInstance, Protocol):
    """Keeps the latest public signal of a context; paper and live are `backtest=False`."""

    async def read_recent_data(self, *, when: When | None = None) -> Payload | None:
        """The payload, or None when nothing is stored, or nothing yet at `when` (aware datetime, or ms UTC)."""
        ...

    async def write_recent_data(self, row: PayloadInput | None, when: When) -> None:
        """Replace the payload; an earlier `when` overwrites, so a backtest can start over."""
        ...


@runtime_checkable
class PersistRiskInstance(PersistInstance, Protocol):
    """Keeps the open positions under a risk profile."""

    async def read_position_data(self, when: When) -> list[Any]:
        """The positions known at `when` (aware datetime, or ms UTC); [] when absent or later than that."""
        ...

    async def write_position_data(self, positions: Sequence[Any], when: When) -> None:
        """Replace the positions; an earlier `when` overwrites, so a backtest can start over."""
        ...


@runtime_checkable
class PersistScheduleInstance(PersistInstance, Protocol):
    """Keeps the pending signal of a symbol, a strategy and an exchange across restarts."""

    async def read_schedule_data(self) -> Payload | None:
        """The payload, or None when nothing is open."""
        ...

    async def write_schedule_data(self, row: PayloadInput | None) -> None:
        """Replace the payload; None says that nothing is open any more."""
        ...


@runtime_checkable
class PersistSessionInstance(PersistInstance, Protocol):
    """Keeps the state of a run; paper and live are `backtest=False`."""

    async def read_session_data(self, *, when: When | None = None) -> Payload | None:
        """The payload, or None when nothing is stored, or nothing yet at `when` (aware datetime, or ms UTC)."""
        ...

    async def write_session_data(self, data: PayloadInput | None, when: When) -> None:
        """Replace the payload; an earlier `when` overwrites, so a backtest can start over."""
        ...

    async def dispose(self) -> None:
        """Let go of the instance: what is stored stays, and nothing is held here that needs closing."""
        ...


@runtime_checkable
class PersistSignalInstance(PersistInstance, Protocol):
    """Keeps the open signal of a symbol, a strategy and an exchange across restarts."""

    async def read_signal_data(self) -> Payload | None:
        """The payload, or None when nothing is open."""
        ...

    async def write_signal_data(self, row: PayloadInput | None) -> None:
        """Replace the payload; None says that nothing is open any more."""
        ...


@runtime_checkable
class PersistStateInstance(PersistInstance, Protocol):
    """Keeps the state of a signal in a bucket."""

    async def read_state_data(self, *, when: When | None = None) -> Payload | None:
        """The payload, or None when nothing is stored, or nothing yet at `when` (aware datetime, or ms UTC)."""
        ...

    async def write_state_data(self, data: PayloadInput | None, when: When) -> None:
        """Replace the payload; an earlier `when` overwrites, so a backtest can start over."""
        ...

    async def dispose(self) -> None:
        """Let go of the instance: what is stored stays, and nothing is held here that needs closing."""
        ...


@runtime_checkable
class PersistStorageInstance(PersistInstance, Protocol):
    """Keeps signals of a mode; paper and live are `backtest=False`."""

    async def read_storage_data(self) -> list[Payload]:
        """The payloads of all signals, oldest first."""
        ...

    async def write_storage_data(self, signals: Iterable[PayloadInput]) -> None:
        """Write signals, each under its own ``id``; what is not among them stays."""
        ...
