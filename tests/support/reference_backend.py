"""A user's backend: an adapter for each domain over one SQLite table.

The conformance kit passes on it, and fails on the copies in `broken_backends`, each of which is broken in one place.
"""

import json
import pickle
import sqlite3
import time
from collections.abc import AsyncIterator, Generator, Iterable, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

from bson.binary import UUID_SUBTYPE, Binary
from bson.decimal128 import Decimal128

from backtest_persist.contracts import Backend, CandleData, CandleInterval, CandlesInput, Payload, PayloadInput, When
from backtest_persist.core.candles.input import check_candles
from backtest_persist.core.candles.ohlcv import Series, checked_window
from backtest_persist.core.keys import checked_flag, checked_limit, checked_name, checked_timestamp, mode_word
from backtest_persist.core.payload import encode_entries, encode_list, encode_payload
from backtest_persist.core.row import to_horizon, to_millis
from backtest_persist.domains import DOMAINS
from backtest_persist.errors import InvalidPayloadError

__all__ = ("Candle", "Entry", "Funding", "Reference", "State", "Store")

_SCHEMA = """
CREATE TABLE IF NOT EXISTS entry (
    place INTEGER PRIMARY KEY, context TEXT, name TEXT, value BLOB, at INTEGER, removed INTEGER, UNIQUE (context, name)
)
"""
_WRITE = """
INSERT INTO entry (context, name, value, at, removed) VALUES (?, ?, ?, ?, ?) ON CONFLICT (context, name) DO
"""
_REPLACE = "UPDATE SET value = excluded.value, at = excluded.at, removed = excluded.removed"

Entry = tuple[str, Any, int, bool]
"""Name, value, `when` and whether it is removed."""


class Store:
    """The table, with the methods that `broken_backends` overrides."""

    def __init__(self, place: Path) -> None:
        self.file = place / "store.db"

    @contextmanager
    def transaction(self) -> Generator[sqlite3.Connection]:
        connection = sqlite3.connect(self.file, timeout=60, isolation_level=None)
        try:
            connection.execute("PRAGMA synchronous = OFF")  # a killed process loses nothing; a power failure may
            connection.execute("BEGIN IMMEDIATE")
            connection.execute(_SCHEMA)
            yield connection
            connection.execute("COMMIT")
        finally:
            connection.close()

    def put(self, context: str, entries: Sequence[Entry], *, replace: bool = True) -> None:
        with self.transaction() as connection:
            connection.executemany(
                _WRITE + (_REPLACE if replace else "NOTHING"),
                [(context, name, self.encode(value), at, removed) for name, value, at, removed in entries],
            )

    def claim(self, context: str, entry: Entry) -> bool:
        name, value, at, removed = entry
        with self.transaction() as connection:
            condition = " WHERE entry.removed"
            values = (context, name, self.encode(value), at, removed)
            return connection.execute(_WRITE + _REPLACE + condition, values).rowcount == 1

    def get(self, context: str, name: str) -> Entry | None:
        return next(iter(self.select("WHERE context = ? AND name = ?", context, name)), None)

    def all(self, context: str) -> list[Entry]:
        return self.select("WHERE context = ? ORDER BY place", context)

    def select(self, condition: str, *values: str) -> list[Entry]:
        with self.transaction() as connection:
            rows = connection.execute(f"SELECT name, value, at, removed FROM entry {condition}", values)
            return [(name, self.decode(value), at, bool(removed)) for name, value, at, removed in rows]

    def living(self, entry: Entry | None) -> bool:
        return entry is not None and not entry[3]

    def visible(self, entry: Entry | None, horizon: int) -> bool:
        return entry is not None and entry[2] <= horizon

    def join(self, *parts: str) -> str:
        return json.dumps(parts)

    def encode(self, value: Any) -> bytes:
        return pickle.dumps(value)

    def decode(self, value: bytes) -> Any:
        return pickle.loads(value)


class Adapter:
    """Methods that the adapters of all domains share."""

    removable = False

    def __init__(self, store: Store, domain: str, *parts: str) -> None:
        self.store = store
        self.context = store.join(domain, *(checked_name(part, "name") for part in parts))

    async def wait_for_init(self, initial: bool) -> None:
        """Do nothing: the first transaction creates the table."""

    def _put(self, name: str, payload: PayloadInput | None, when: When = 0) -> None:
        value: Payload | None = plain(encode_payload(payload, "a payload"))
        removed = self.removable and value is not None and value.get("removed") is True
        self.store.put(self.context, [(checked_name(name, "name"), value, to_millis(when), removed)])

    def _claim(self, name: str, payload: PayloadInput, when: When) -> bool:
        value = plain(encode_payload(payload, "a payload"))
        if value is None or value.get("removed") is True:
            raise InvalidPayloadError("a payload is a mapping that is not removed")
        return self.store.claim(self.context, (checked_name(name, "name"), value, to_millis(when), False))

    def _get(self, name: str, when: When | None = None) -> Any:
        horizon = to_horizon(when)
        entry = self.store.get(self.context, checked_name(name, "name"))
        return entry[1] if entry and self.store.living(entry) and self.store.visible(entry, horizon) else None

    def _list(self, when: When | None = None) -> list[tuple[str, Any]]:
        horizon = to_horizon(when)
        entries = self.store.all(self.context)
        return [entry[:2] for entry in entries if self.store.living(entry) and self.store.visible(entry, horizon)]

    def _put_all(self, entries: Iterable[PayloadInput], *, replace: bool = True) -> None:
        encoded = encode_entries(entries, "entries", first_wins=not replace)
        self.store.put(
            self.context, [(name, plain(value), 0, False) for name, value in encoded.items()], replace=replace
        )

    def _remove(self, name: str) -> None:
        entry = self.store.get(self.context, checked_name(name, "name"))
        if entry is not None:
            self.store.put(self.context, [(*entry[:3], True)])


class Breakeven(Adapter):
    async def read_breakeven_data(self, signal_id: str, when: When) -> Payload:
        return self._get(signal_id, to_millis(when)) or {}

    async def write_breakeven_data(self, data: PayloadInput, signal_id: str, when: When) -> None:
        self._put(signal_id, data, when)


class Candle(Adapter):
    allow_outliers = False

    def __init__(self, store: Store, symbol: str, interval: CandleInterval, exchange_name: str) -> None:
        super().__init__(store, "candle", symbol, interval, exchange_name)
        self.series = Series(symbol, interval, exchange_name)

    async def read_candles_data(
        self, limit: int, since_timestamp: When, until_timestamp: When | None = None
    ) -> list[CandleData] | None:
        window = checked_window(self.series.interval, limit, since_timestamp, until_timestamp)
        stored = self._stored()
        return None if window is None or not stored.keys() >= set(window) else [stored[at] for at in window]

    async def read_last_candles(self, limit: int, until: When | None = None) -> list[CandleData]:
        latest = (int(time.time() * 1000) if until is None else checked_timestamp(until, "until")) - self.series.step
        times = sorted(at for at in self._stored() if at <= latest)
        return [self._stored()[at] for at in times[max(len(times) - checked_limit(limit), 0) :]]

    async def write_candles_data(self, candles: CandlesInput, *, as_of: When | None = None) -> None:
        now = int(time.time() * 1000)
        asked = now if as_of is None else min(now, checked_timestamp(as_of, "as_of"))
        checked = check_candles(
            self.series, candles, as_of=asked, early=lambda: False, allow_outliers=self.allow_outliers
        )
        if checked.invalid:
            raise checked.error(self.series)
        entries: list[Entry] = [(str(at), candle, 0, False) for at, candle in checked.valid.items()]
        self.store.put(self.context, entries, replace=False)

    def _stored(self) -> dict[int, CandleData]:
        return {int(name): value for name, value, _, _ in self.store.all(self.context)}


class Interval(Adapter):
    removable = True

    async def read_interval_data(self, key: str, *, when: When | None = None) -> Payload | None:
        return self._get(key, when)

    async def list_interval_data(self, *, when: When | None = None) -> AsyncIterator[str]:
        for key, _ in self._list(when):
            yield key

    async def write_interval_data(self, data: PayloadInput | None, key: str, when: When) -> None:
        self._put(key, data, when)

    async def claim_interval_data(self, data: PayloadInput, key: str, when: When) -> bool:
        return self._claim(key, data, when)

    async def remove_interval_data(self, key: str) -> None:
        self._remove(key)


class Log(Adapter):
    async def read_log_data(self) -> list[Payload]:
        return [value for _, value in self._list()]

    async def write_log_data(self, entries: Iterable[PayloadInput]) -> None:
        self._put_all(entries, replace=False)


class Measure(Adapter):
    removable = True

    async def read_measure_data(self, key: str) -> Payload | None:
        return self._get(key)

    async def list_measure_data(self) -> AsyncIterator[str]:
        for key, _ in self._list():
            yield key

    async def write_measure_data(self, data: PayloadInput | None, key: str, when: When) -> None:
        to_millis(when)
        self._put(key, data)

    async def remove_measure_data(self, key: str) -> None:
        self._remove(key)


class Memory(Adapter):
    removable = True

    async def read_memory_data(self, memory_id: str, *, when: When | None = None) -> Payload | None:
        return self._get(memory_id, when)

    async def has_memory_data(self, memory_id: str, *, when: When | None = None) -> bool:
        horizon = to_horizon(when)
        return self.store.visible(self.store.get(self.context, checked_name(memory_id, "name")), horizon)

    async def list_memory_data(self, *, when: When | None = None) -> AsyncIterator[tuple[str, Payload | None]]:
        for entry in self._list(when):
            yield entry

    async def write_memory_data(self, data: PayloadInput | None, memory_id: str, when: When) -> None:
        self._put(memory_id, data, when)

    async def remove_memory_data(self, memory_id: str) -> None:
        self._remove(memory_id)

    async def dispose(self) -> None:
        pass


class Notification(Adapter):
    async def read_notification_data(self) -> list[Payload]:
        return [value for _, value in self._list()]

    async def write_notification_data(self, notifications: Iterable[PayloadInput]) -> None:
        self._put_all(notifications)


class Partial(Adapter):
    async def read_partial_data(self, signal_id: str, when: When) -> Payload:
        return self._get(signal_id, to_millis(when)) or {}

    async def write_partial_data(self, data: PayloadInput, signal_id: str, when: When) -> None:
        self._put(signal_id, data, when)


class Recent(Adapter):
    async def read_recent_data(self, *, when: When | None = None) -> Payload | None:
        return self._get("latest", when)

    async def write_recent_data(self, row: PayloadInput | None, when: When) -> None:
        self._put("latest", row, when)


class Risk(Adapter):
    async def read_position_data(self, when: When) -> list[Any]:
        return self._get("positions", to_millis(when)) or []

    async def write_position_data(self, positions: Sequence[Any], when: When) -> None:
        value = plain(encode_list(positions, "positions"))
        self.store.put(self.context, [("positions", value, to_millis(when), False)])


class Schedule(Adapter):
    async def read_schedule_data(self) -> Payload | None:
        return self._get("latest")

    async def write_schedule_data(self, row: PayloadInput | None) -> None:
        self._put("latest", row)


class Session(Adapter):
    async def read_session_data(self, *, when: When | None = None) -> Payload | None:
        return self._get("latest", when)

    async def write_session_data(self, data: PayloadInput | None, when: When) -> None:
        self._put("latest", data, when)

    async def dispose(self) -> None:
        pass


class Signal(Adapter):
    async def read_signal_data(self) -> Payload | None:
        return self._get("latest")

    async def write_signal_data(self, row: PayloadInput | None) -> None:
        self._put("latest", row)


class State(Adapter):
    async def read_state_data(self, *, when: When | None = None) -> Payload | None:
        return self._get("latest", when)

    async def write_state_data(self, data: PayloadInput | None, when: When) -> None:
        self._put("latest", data, when)

    async def dispose(self) -> None:
        pass


class Strategy(Adapter):
    async def read_strategy_data(self) -> Payload | None:
        return self._get("latest")

    async def write_strategy_data(self, row: PayloadInput | None) -> None:
        self._put("latest", row)


class Dictionary(Adapter):
    async def read_dictionary_data(self, *, when: When | None = None) -> Payload | None:
        return self._get("latest", when)

    async def write_dictionary_data(self, data: PayloadInput | None, when: When) -> None:
        self._put("latest", data, when)

    async def dispose(self) -> None:
        pass


class Storage(Adapter):
    async def read_storage_data(self) -> list[Payload]:
        return [value for _, value in self._list()]

    async def write_storage_data(self, signals: Iterable[PayloadInput]) -> None:
        self._put_all(signals)


class Funding(Adapter):
    """Keeps the domain of `tests.own_domain.funding`, which is not of the package."""

    async def read_funding_data(self, *, when: When | None = None) -> Payload | None:
        return self._get("latest", when)

    async def write_funding_data(self, data: PayloadInput | None, when: When) -> None:
        self._put("latest", data, when)


class Reference:
    """Builds an adapter for each domain; see `contracts.Backend`."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def factories(self) -> Backend:
        return {domain.name: getattr(self, domain.name) for domain in DOMAINS}

    def breakeven(self, symbol: str, strategy_name: str, exchange_name: str) -> Breakeven:
        return Breakeven(self.store, "breakeven", symbol, strategy_name, exchange_name)

    def candle(self, symbol: str, interval: CandleInterval, exchange_name: str) -> Candle:
        return Candle(self.store, symbol, interval, exchange_name)

    def interval(self, bucket: str) -> Interval:
        return Interval(self.store, "interval", bucket)

    def log(self) -> Log:
        return Log(self.store, "log")

    def measure(self, bucket: str) -> Measure:
        return Measure(self.store, "measure", bucket)

    def memory(self, signal_id: str, bucket_name: str) -> Memory:
        return Memory(self.store, "memory", signal_id, bucket_name)

    def notification(self, backtest: bool) -> Notification:
        return Notification(self.store, "notification", mode(backtest))

    def partial(self, symbol: str, strategy_name: str, exchange_name: str) -> Partial:
        return Partial(self.store, "partial", symbol, strategy_name, exchange_name)

    def recent(self, symbol: str, strategy_name: str, exchange_name: str, frame_name: str, backtest: bool) -> Recent:
        return Recent(self.store, "recent", symbol, strategy_name, exchange_name, frame(frame_name), mode(backtest))

    def risk(self, risk_name: str, exchange_name: str) -> Risk:
        return Risk(self.store, "risk", risk_name, exchange_name)

    def schedule(self, symbol: str, strategy_name: str, exchange_name: str) -> Schedule:
        return Schedule(self.store, "schedule", symbol, strategy_name, exchange_name)

    def session(self, strategy_name: str, exchange_name: str, frame_name: str, symbol: str, backtest: bool) -> Session:
        return Session(self.store, "session", strategy_name, exchange_name, frame(frame_name), symbol, mode(backtest))

    def signal(self, symbol: str, strategy_name: str, exchange_name: str) -> Signal:
        return Signal(self.store, "signal", symbol, strategy_name, exchange_name)

    def state(self, signal_id: str, bucket_name: str) -> State:
        return State(self.store, "state", signal_id, bucket_name)

    def strategy(self, symbol: str, strategy_name: str, exchange_name: str) -> Strategy:
        return Strategy(self.store, "strategy", symbol, strategy_name, exchange_name)

    def dictionary(self, signal_id: str, dictionary_name: str) -> Dictionary:
        return Dictionary(self.store, "dictionary", signal_id, dictionary_name)

    def storage(self, backtest: bool) -> Storage:
        return Storage(self.store, "storage", mode(backtest))


def mode(backtest: bool) -> str:
    return mode_word(checked_flag(backtest, "backtest"))


def frame(frame_name: str) -> str:
    """Return a name for a frame, which is empty in live trading."""
    return "none" if frame_name == "" else f"frame {checked_name(frame_name, 'frame_name')}"


def plain(value: Any) -> Any:
    """Return an encoded payload without the types of MongoDB in it."""
    if isinstance(value, dict):
        return {name: plain(item) for name, item in cast("Payload", value).items()}
    if isinstance(value, list):
        return [plain(item) for item in cast("list[Any]", value)]
    if isinstance(value, Decimal128):
        return value.to_decimal()
    if isinstance(value, Binary) and value.subtype == UUID_SUBTYPE:
        return value.as_uuid()
    return value.astimezone(UTC) if isinstance(value, datetime) else value
