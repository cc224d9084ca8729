"""The backend that keeps nothing: reads find nothing, writes vanish."""

from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Any

from backtest_persist.contracts import CandleData, Payload, PayloadInput, When

__all__ = (
    "DummyBackend",
    "DummyPersistBreakevenInstance",
    "DummyPersistCandleInstance",
    "DummyPersistIntervalInstance",
    "DummyPersistLogInstance",
    "DummyPersistMeasureInstance",
    "DummyPersistMemoryInstance",
    "DummyPersistNotificationInstance",
    "DummyPersistPartialInstance",
    "DummyPersistRecentInstance",
    "DummyPersistRiskInstance",
    "DummyPersistScheduleInstance",
    "DummyPersistSessionInstance",
    "DummyPersistSignalInstance",
    "DummyPersistStateInstance",
    "DummyPersistStorageInstance",
)


class DummyInstance:
    """What the fifteen have in common: they hold nothing, so there is nothing to prepare or to let go of."""

    def __init__(self, *context: str | bool) -> None:
        self.context = context

    async def wait_for_init(self, initial: bool) -> None:
        """Nothing to prepare."""


class DummyPersistBreakevenInstance(DummyInstance):
    """Keeps nothing of the breakeven domain."""

    async def read_breakeven_data(self, signal_id: str, when: When) -> Payload:
        """{}."""
        return {}

    async def write_breakeven_data(self, data: PayloadInput, signal_id: str, when: When) -> None:
        """Forget it."""


class DummyPersistCandleInstance(DummyInstance):
    """Keeps nothing of the candle domain."""

    async def read_candles_data(
        self, limit: int, since_timestamp: int, until_timestamp: int | None = None
    ) -> list[CandleData] | None:
        """None."""
        return None

    async def write_candles_data(self, candles: Sequence[PayloadInput]) -> None:
        """Forget it."""


class DummyPersistIntervalInstance(DummyInstance):
    """Keeps nothing of the interval domain."""

    async def read_interval_data(self, key: str, *, when: When | None = None) -> Payload | None:
        """None."""
        return None

    async def list_interval_data(self, *, when: When | None = None) -> AsyncIterator[str]:
        """Nothing to iterate over."""
        for nothing in ():
            yield nothing

    async def write_interval_data(self, data: PayloadInput | None, key: str, when: When) -> None:
        """Forget it."""

    async def remove_interval_data(self, key: str) -> None:
        """Nothing to remove."""


class DummyPersistLogInstance(DummyInstance):
    """Keeps nothing of the log domain."""

    async def read_log_data(self) -> list[Payload]:
        """No entries."""
        return []

    async def write_log_data(self, entries: Iterable[PayloadInput]) -> None:
        """Forget it."""


class DummyPersistMeasureInstance(DummyInstance):
    """Keeps nothing of the measure domain."""

    async def read_measure_data(self, key: str) -> Payload | None:
        """None."""
        return None

    async def list_measure_data(self) -> AsyncIterator[str]:
        """Nothing to iterate over."""
        for nothing in ():
            yield nothing

    async def write_measure_data(self, data: PayloadInput | None, key: str, when: When) -> None:
        """Forget it."""

    async def remove_measure_data(self, key: str) -> None:
        """Nothing to remove."""


class DummyPersistMemoryInstance(DummyInstance):
    """Keeps nothing of the memory domain."""

    async def read_memory_data(self, memory_id: str, *, when: When | None = None) -> Payload | None:
        """None."""
        return None

    async def has_memory_data(self, memory_id: str, *, when: When | None = None) -> bool:
        """False."""
        return False

    async def list_memory_data(self, *, when: When | None = None) -> AsyncIterator[tuple[str, Payload | None]]:
        """Nothing to iterate over."""
        for nothing in ():
            yield nothing

    async def write_memory_data(self, data: PayloadInput | None, memory_id: str, when: When) -> None:
        """Forget it."""

    async def remove_memory_data(self, memory_id: str) -> None:
        """Nothing to remove."""

    async def dispose(self) -> None:
        """Nothing to let go of."""


class DummyPersistNotificationInstance(DummyInstance):
    """Keeps nothing of the notification domain."""

    async def read_notification_data(self) -> list[Payload]:
        """No entries."""
        return []

    async def write_notification_data(self, notifications: Iterable[PayloadInput]) -> None:
        """Forget it."""


class DummyPersistPartialInstance(DummyInstance):
    """Keeps nothing of the partial domain."""

    async def read_partial_data(self, signal_id: str, when: When) -> Payload:
        """{}."""
        return {}

    async def write_partial_data(self, data: PayloadInput, signal_id: str, when: When) -> None:
        """Forget it."""


class DummyPersistRecentInstance(DummyInstance):
    """Keeps nothing of the recent domain."""

    async def read_recent_data(self, *, when: When | None = None) -> Payload | None:
        """None."""
        return None

    async def write_recent_data(self, row: PayloadInput | None, when: When) -> None:
        """Forget it."""


class DummyPersistRiskInstance(DummyInstance):
    """Keeps nothing of the risk domain."""

    async def read_position_data(self, when: When) -> list[Any]:
        """No entries."""
        return []

    async def write_position_data(self, positions: Sequence[Any], when: When) -> None:
        """Forget it."""


class DummyPersistScheduleInstance(DummyInstance):
    """Keeps nothing of the schedule domain."""

    async def read_schedule_data(self) -> Payload | None:
        """None."""
        return None

    async def write_schedule_data(self, row: PayloadInput | None) -> None:
        """Forget it."""


class DummyPersistSessionInstance(DummyInstance):
    """Keeps nothing of the session domain."""

    async def read_session_data(self, *, when: When | None = None) -> Payload | None:
        """None."""
        return None

    async def write_session_data(self, data: PayloadInput | None, when: When) -> None:
        """Forget it."""

    async def dispose(self) -> None:
        """Nothing to let go of."""


class DummyPersistSignalInstance(DummyInstance):
    """Keeps nothing of the signal domain."""

    async def read_signal_data(self) -> Payload | None:
        """None."""
        return None

    async def write_signal_data(self, row: PayloadInput | None) -> None:
        """Forget it."""


class DummyPersistStateInstance(DummyInstance):
    """Keeps nothing of the state domain."""

    async def read_state_data(self, *, when: When | None = None) -> Payload | None:
        """None."""
        return None

    async def write_state_data(self, data: PayloadInput | None, when: When) -> None:
        """Forget it."""

    async def dispose(self) -> None:
        """Nothing to let go of."""


class DummyPersistStorageInstance(DummyInstance):
    """Keeps nothing of the storage domain."""

    async def read_storage_data(self) -> list[Payload]:
        """No entries."""
        return []

    async def write_storage_data(self, signals: Iterable[PayloadInput]) -> None:
        """Forget it."""


class DummyBackend:
    """Builds adapters that keep nothing, for dry runs and for measuring a strategy without its persistence."""

    breakeven = DummyPersistBreakevenInstance
    candle = DummyPersistCandleInstance
    interval = DummyPersistIntervalInstance
    log = DummyPersistLogInstance
    measure = DummyPersistMeasureInstance
    memory = DummyPersistMemoryInstance
    notification = DummyPersistNotificationInstance
    partial = DummyPersistPartialInstance
    recent = DummyPersistRecentInstance
    risk = DummyPersistRiskInstance
    schedule = DummyPersistScheduleInstance
    session = DummyPersistSessionInstance
    signal = DummyPersistSignalInstance
    state = DummyPersistStateInstance
    storage = DummyPersistStorageInstance
