"""The JSON backend: fifteen adapters on the files of a dump, in the layout of the TypeScript framework."""

import os
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from backtest_persist.backends.json.codec import dumps, encode
from backtest_persist.backends.json.folder import DumpFiles
from backtest_persist.backends.json.value_file import Stored, Write
from backtest_persist.contracts import Adapter, CandleData, CandleInterval, Payload, PayloadInput, When
from backtest_persist.core.domain import Domain
from backtest_persist.core.keys import checked_flag, checked_name, mode_word
from backtest_persist.core.ohlcv import candle_columns, checked_candle, checked_window, closed_candles
from backtest_persist.core.payload import encode_entries, encode_list, encode_payload
from backtest_persist.core.row import to_horizon, to_millis
from backtest_persist.domains import DOMAINS
from backtest_persist.errors import InvalidPayloadError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = (
    "JsonBackend",
    "JsonPersistBreakevenInstance",
    "JsonPersistCandleInstance",
    "JsonPersistIntervalInstance",
    "JsonPersistLogInstance",
    "JsonPersistMeasureInstance",
    "JsonPersistMemoryInstance",
    "JsonPersistNotificationInstance",
    "JsonPersistPartialInstance",
    "JsonPersistRecentInstance",
    "JsonPersistRiskInstance",
    "JsonPersistScheduleInstance",
    "JsonPersistSessionInstance",
    "JsonPersistSignalInstance",
    "JsonPersistStateInstance",
    "JsonPersistStorageInstance",
)


class JsonInstance:
    """What the fifteen have in common: the directory of their context, and how values are read from it."""

    def __init__(self, dump: DumpFiles, domain: str, **context: Any) -> None:
        self._folder = dump.folder(domain, **context)

    async def wait_for_init(self, initial: bool) -> None:
        """Remove the temporary files that a crash has left, when `initial`."""
        if initial:
            await self._folder.sweep()

    async def _read(self, name: str, horizon: int | None = None) -> Any:
        """The value, or None when there is none, it is a tombstone, or it is later than the horizon (ms UTC)."""
        stored = await self._folder.read(checked_name(name, "key"))
        return None if stored is None or stored.removed or _later(stored, horizon) else stored.value

    async def _write(self, name: str, payload: PayloadInput | None, when: When | None = None) -> None:
        millis = None if when is None else to_millis(when)
        plain = encode_payload(payload, self._folder.describe(checked_name(name, "key")))
        await self._folder.write([Write(name, dumps(encode(plain)), millis)])

    async def _list(self, horizon: int | None = None) -> list[tuple[str, Any]]:
        """(name, value), oldest first, without tombstones and what is later than the horizon (ms UTC)."""
        stored = await self._folder.read_all()
        return [(name, found.value) for name, found in stored if not found.removed and not _later(found, horizon)]

    async def _write_entries(self, entries: Iterable[PayloadInput], *, first_wins: bool = False) -> None:
        encoded = encode_entries(entries, self._folder.describe(), first_wins=first_wins)
        writes = [Write(name, dumps(encode(payload))) for name, payload in encoded.items()]
        await self._folder.write(writes, replace=not first_wins)


class JsonPersistBreakevenInstance(JsonInstance):
    """``data/breakeven/{symbol}_{strategy}_{exchange}/{signal}.json``."""

    def __init__(self, dump: DumpFiles, symbol: str, strategy_name: str, exchange_name: str) -> None:
        super().__init__(dump, "breakeven", symbol=symbol, strategy_name=strategy_name, exchange_name=exchange_name)

    async def read_breakeven_data(self, signal_id: str, when: When) -> Payload:
        """What is known of the signal; {} when nothing is stored, or when it was written with a later `when`."""
        return await self._read(signal_id, to_millis(when)) or {}

    async def write_breakeven_data(self, data: PayloadInput, signal_id: str, when: When) -> None:
        """Replace all that is known of the signal."""
        await self._write(signal_id, data, to_millis(when))


class JsonPersistCandleInstance(JsonInstance):
    """``data/candle/{exchange}/{symbol}/{interval}/{timestamp}.json``."""

    def __init__(self, dump: DumpFiles, symbol: str, interval: CandleInterval, exchange_name: str) -> None:
        super().__init__(dump, "candle", symbol=symbol, interval=interval, exchange_name=exchange_name)
        self.symbol = symbol
        self.interval: CandleInterval = interval
        self.exchange_name = exchange_name

    async def read_candles_data(
        self, limit: int, since_timestamp: int, until_timestamp: int | None = None
    ) -> list[CandleData] | None:
        """The window of `limit` candles from `since_timestamp` (ms UTC) on, or None when any of them is missing."""
        window = checked_window(self.interval, limit, since_timestamp, until_timestamp)
        if window is None:
            return None
        values = await self._folder.read_window(map(str, window))
        if values is None:
            return None
        return [self._candle(timestamp, value) for timestamp, value in zip(window, values, strict=True)]

    async def read_candle_columns(
        self, limit: int, since_timestamp: int, until_timestamp: int | None = None
    ) -> "dict[str, NDArray[Any]] | None":
        """What `read_candles_data` reads, as numpy arrays by field: `timestamp` int64 (ms UTC), the others float64."""
        candles = await self.read_candles_data(limit, since_timestamp, until_timestamp)
        return None if candles is None else candle_columns(candles)

    async def write_candles_data(self, candles: Sequence[PayloadInput]) -> None:
        """Store candles; the first write of an opening time stands, and those that have not closed yet are skipped."""
        closed = closed_candles(self.interval, candles, int(time.time() * 1000))
        checked = [checked_candle(self.symbol, self.interval, self.exchange_name, candle) for candle in closed]
        writes = [Write(str(candle["timestamp"]), dumps(candle)) for candle in checked]
        await self._folder.write(writes, replace=False)

    def _candle(self, timestamp: int, value: Any) -> CandleData:
        try:
            candle = checked_candle(self.symbol, self.interval, self.exchange_name, value)
        except InvalidPayloadError as error:
            raise InvalidPayloadError(f"A damaged file: {error} Repair or remove it.") from None
        if candle["timestamp"] != timestamp:
            raise InvalidPayloadError(
                f"{self._folder.describe(str(timestamp))}: the file holds another candle. Repair or remove it."
            )
        return candle


class JsonPersistIntervalInstance(JsonInstance):
    """``data/interval/{bucket}/{key}.json``."""

    def __init__(self, dump: DumpFiles, bucket: str) -> None:
        super().__init__(dump, "interval", bucket=bucket)

    async def read_interval_data(self, key: str, *, when: When | None = None) -> Payload | None:
        """The marker; None when nothing is stored, when it is removed, or was written with a later `when`."""
        return await self._read(key, to_horizon(when))

    async def list_interval_data(self, *, when: When | None = None) -> AsyncIterator[str]:
        """Iterate over the keys of the bucket, oldest first, without the removed and those later than `when`."""
        for key, _ in await self._list(to_horizon(when)):
            yield key

    async def write_interval_data(self, data: PayloadInput | None, key: str, when: When) -> None:
        """Replace the marker; a removed one is revived in its old place."""
        await self._write(key, data, to_millis(when))

    async def remove_interval_data(self, key: str) -> None:
        """Remove the marker from reads and lists; nothing happens when none is stored."""
        await self._folder.remove(checked_name(key, "key"))


class JsonPersistLogInstance(JsonInstance):
    """``data/log/log/{id}.json``."""

    def __init__(self, dump: DumpFiles) -> None:
        super().__init__(dump, "log")

    async def read_log_data(self) -> list[Payload]:
        """The payloads of all entries, oldest first."""
        return [payload for _, payload in await self._list()]

    async def write_log_data(self, entries: Iterable[PayloadInput]) -> None:
        """Append entries, each under its own ``id``; one whose id exists is skipped."""
        await self._write_entries(entries, first_wins=True)


class JsonPersistMeasureInstance(JsonInstance):
    """``data/measure/{bucket}/{key}.json``."""

    def __init__(self, dump: DumpFiles, bucket: str) -> None:
        super().__init__(dump, "measure", bucket=bucket)

    async def read_measure_data(self, key: str) -> Payload | None:
        """The answer; None when nothing is stored, or when it is removed."""
        return await self._read(key)

    async def list_measure_data(self) -> AsyncIterator[str]:
        """Iterate over the keys of the bucket, oldest first, without the removed."""
        for key, _ in await self._list():
            yield key

    async def write_measure_data(self, data: PayloadInput | None, key: str, when: When) -> None:
        """Replace the answer; a removed one is revived in its old place. `when` is checked, not stored."""
        to_millis(when)
        await self._write(key, data)

    async def remove_measure_data(self, key: str) -> None:
        """Remove the answer from reads and lists; nothing happens when none is stored."""
        await self._folder.remove(checked_name(key, "key"))


class JsonPersistMemoryInstance(JsonInstance):
    """``memory/{signal}/{bucket}/{memory}.json``."""

    def __init__(self, dump: DumpFiles, signal_id: str, bucket_name: str) -> None:
        super().__init__(dump, "memory", signal_id=signal_id, bucket_name=bucket_name)

    async def read_memory_data(self, memory_id: str, *, when: When | None = None) -> Payload | None:
        """The memory; None when nothing is stored, when it is removed, or was written with a later `when`."""
        return await self._read(memory_id, to_horizon(when))

    async def has_memory_data(self, memory_id: str, *, when: When | None = None) -> bool:
        """Whether a memory is stored, a removed one included; False when it was written with a later `when`."""
        horizon = to_horizon(when)
        stored = await self._folder.read(checked_name(memory_id, "memory_id"))
        return stored is not None and not _later(stored, horizon)

    async def list_memory_data(self, *, when: When | None = None) -> AsyncIterator[tuple[str, Payload | None]]:
        """Iterate over (memory_id, data), oldest first, without the removed and those later than `when`."""
        for entry in await self._list(to_horizon(when)):
            yield entry

    async def write_memory_data(self, data: PayloadInput | None, memory_id: str, when: When) -> None:
        """Replace the memory; a removed one is revived in its old place."""
        await self._write(memory_id, data, to_millis(when))

    async def remove_memory_data(self, memory_id: str) -> None:
        """Remove the memory from reads and lists; nothing happens when none is stored."""
        await self._folder.remove(checked_name(memory_id, "memory_id"))

    async def dispose(self) -> None:
        """Nothing to let go of."""


class JsonPersistNotificationInstance(JsonInstance):
    """``data/notification/{backtest|live}/{id}.json``."""

    def __init__(self, dump: DumpFiles, backtest: bool) -> None:
        super().__init__(dump, "notification", backtest=backtest)

    async def read_notification_data(self) -> list[Payload]:
        """The payloads of all notifications of the mode, oldest first."""
        return [payload for _, payload in await self._list()]

    async def write_notification_data(self, notifications: Iterable[PayloadInput]) -> None:
        """Write notifications, each under its own ``id``; one whose id exists is replaced in its place."""
        await self._write_entries(notifications)


class JsonPersistPartialInstance(JsonInstance):
    """``data/partial/{symbol}_{strategy}_{exchange}/{signal}.json``."""

    def __init__(self, dump: DumpFiles, symbol: str, strategy_name: str, exchange_name: str) -> None:
        super().__init__(dump, "partial", symbol=symbol, strategy_name=strategy_name, exchange_name=exchange_name)

    async def read_partial_data(self, signal_id: str, when: When) -> Payload:
        """What is known of the signal; {} when nothing is stored, or when it was written with a later `when`."""
        return await self._read(signal_id, to_millis(when)) or {}

    async def write_partial_data(self, data: PayloadInput, signal_id: str, when: When) -> None:
        """Replace all that is known of the signal."""
        await self._write(signal_id, data, to_millis(when))


class JsonPersistRecentInstance(JsonInstance):
    """``data/recent/{symbol}_{strategy}_{exchange}_{frame}_{backtest|live}/{symbol}.json``."""

    def __init__(
        self, dump: DumpFiles, symbol: str, strategy_name: str, exchange_name: str, frame_name: str, backtest: bool
    ) -> None:
        super().__init__(
            dump,
            "recent",
            symbol=symbol,
            strategy_name=strategy_name,
            exchange_name=exchange_name,
            frame_name=checked_name(frame_name, "frame_name"),
            backtest=backtest,
        )
        self.symbol = symbol

    async def read_recent_data(self, *, when: When | None = None) -> Payload | None:
        """The payload; None when nothing is stored, when None is, or when it was written with a later `when`."""
        return await self._read(self.symbol, to_horizon(when))

    async def write_recent_data(self, row: PayloadInput | None, when: When) -> None:
        """Replace the payload."""
        await self._write(self.symbol, row, to_millis(when))


class JsonPersistRiskInstance(JsonInstance):
    """``data/risk/{risk}_{exchange}/positions.json``."""

    def __init__(self, dump: DumpFiles, risk_name: str, exchange_name: str) -> None:
        super().__init__(dump, "risk", risk_name=risk_name, exchange_name=exchange_name)

    async def read_position_data(self, when: When) -> list[Any]:
        """The positions; [] when nothing is stored, or when they were written with a later `when`."""
        return await self._read("positions", to_millis(when)) or []

    async def write_position_data(self, positions: Sequence[Any], when: When) -> None:
        """Replace the whole list."""
        millis = to_millis(when)
        text = dumps(encode(encode_list(positions, self._folder.describe())))
        await self._folder.write([Write("positions", text, millis)])


class JsonPersistScheduleInstance(JsonInstance):
    """``data/schedule/{symbol}_{strategy}_{exchange}/{symbol}.json``."""

    def __init__(self, dump: DumpFiles, symbol: str, strategy_name: str, exchange_name: str) -> None:
        super().__init__(dump, "schedule", symbol=symbol, strategy_name=strategy_name, exchange_name=exchange_name)
        self.symbol = symbol

    async def read_schedule_data(self) -> Payload | None:
        """The payload; None when nothing is stored, or when None is: nothing is open."""
        return await self._read(self.symbol)

    async def write_schedule_data(self, row: PayloadInput | None) -> None:
        """Replace the payload; None says that nothing is open any more."""
        await self._write(self.symbol, row)


class JsonPersistSessionInstance(JsonInstance):
    """``session/{strategy}/{exchange}/{frame}/{symbol}_{backtest|live}.json``."""

    def __init__(
        self, dump: DumpFiles, strategy_name: str, exchange_name: str, frame_name: str, symbol: str, backtest: bool
    ) -> None:
        super().__init__(
            dump,
            "session",
            strategy_name=strategy_name,
            exchange_name=exchange_name,
            frame_name=checked_name(frame_name, "frame_name"),
        )
        self.name = f"{checked_name(symbol, 'symbol')}_{mode_word(checked_flag(backtest, 'backtest'))}"

    async def read_session_data(self, *, when: When | None = None) -> Payload | None:
        """The payload; None when nothing is stored, when None is, or when it was written with a later `when`."""
        return await self._read(self.name, to_horizon(when))

    async def write_session_data(self, data: PayloadInput | None, when: When) -> None:
        """Replace the payload."""
        await self._write(self.name, data, to_millis(when))

    async def dispose(self) -> None:
        """Nothing to let go of."""


class JsonPersistSignalInstance(JsonInstance):
    """``data/signal/{symbol}_{strategy}_{exchange}/{symbol}.json``."""

    def __init__(self, dump: DumpFiles, symbol: str, strategy_name: str, exchange_name: str) -> None:
        super().__init__(dump, "signal", symbol=symbol, strategy_name=strategy_name, exchange_name=exchange_name)
        self.symbol = symbol

    async def read_signal_data(self) -> Payload | None:
        """The payload; None when nothing is stored, or when None is: nothing is open."""
        return await self._read(self.symbol)

    async def write_signal_data(self, row: PayloadInput | None) -> None:
        """Replace the payload; None says that nothing is open any more."""
        await self._write(self.symbol, row)


class JsonPersistStateInstance(JsonInstance):
    """``state/{signal}/{bucket}/{bucket}.json``."""

    def __init__(self, dump: DumpFiles, signal_id: str, bucket_name: str) -> None:
        super().__init__(dump, "state", signal_id=signal_id, bucket_name=bucket_name)
        self.bucket_name = bucket_name

    async def read_state_data(self, *, when: When | None = None) -> Payload | None:
        """The payload; None when nothing is stored, when None is, or when it was written with a later `when`."""
        return await self._read(self.bucket_name, to_horizon(when))

    async def write_state_data(self, data: PayloadInput | None, when: When) -> None:
        """Replace the payload."""
        await self._write(self.bucket_name, data, to_millis(when))

    async def dispose(self) -> None:
        """Nothing to let go of."""


class JsonPersistStorageInstance(JsonInstance):
    """``data/storage/{backtest|live}/{id}.json``."""

    def __init__(self, dump: DumpFiles, backtest: bool) -> None:
        super().__init__(dump, "storage", backtest=backtest)

    async def read_storage_data(self) -> list[Payload]:
        """The payloads of all signals of the mode, oldest first."""
        return [payload for _, payload in await self._list()]

    async def write_storage_data(self, signals: Iterable[PayloadInput]) -> None:
        """Write signals, each under its own ``id``; one whose id exists is replaced in its place."""
        await self._write_entries(signals)


class JsonBackend(Mapping[str, Callable[..., Adapter]]):
    """Builds the adapters that keep everything in JSON files below a directory; see `contracts.Backend`.

    The files lie where the TypeScript framework keeps its own, so each reads the other's dump; it does not find what is
    written here under a name that has to be percent-encoded, such as a symbol with ``/``. A value is replaced
    atomically and is on the disk when its write returns. A relative `directory` lies below the working directory of
    this call. Linux and macOS, on a file system that tells upper and lower case apart.
    """

    def __init__(self, directory: str | os.PathLike[str] = "./dump", domains: Iterable[Domain] = DOMAINS) -> None:
        dump = DumpFiles(directory)
        self._factories = {name: partial(adapter, dump) for name, adapter in _ADAPTERS.items()}

    def __getitem__(self, name: str) -> Callable[..., Adapter]:
        return self._factories[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._factories)

    def __len__(self) -> int:
        return len(self._factories)


_ADAPTERS: dict[str, Any] = {
    "breakeven": JsonPersistBreakevenInstance,
    "candle": JsonPersistCandleInstance,
    "interval": JsonPersistIntervalInstance,
    "log": JsonPersistLogInstance,
    "measure": JsonPersistMeasureInstance,
    "memory": JsonPersistMemoryInstance,
    "notification": JsonPersistNotificationInstance,
    "partial": JsonPersistPartialInstance,
    "recent": JsonPersistRecentInstance,
    "risk": JsonPersistRiskInstance,
    "schedule": JsonPersistScheduleInstance,
    "session": JsonPersistSessionInstance,
    "signal": JsonPersistSignalInstance,
    "state": JsonPersistStateInstance,
    "storage": JsonPersistStorageInstance,
}


def _later(stored: Stored, horizon: int | None) -> bool:
    return horizon is not None and horizon < stored.when
