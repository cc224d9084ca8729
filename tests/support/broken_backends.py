"""Backends that are broken on purpose, each in one place, with the capability of the kit that has to fail on it.

pytest does not collect this module by itself; `test_kit` runs it in another process and reads which tests failed.
"""

import atexit
import json
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, cast

from backtest_persist import Registry
from backtest_persist.backends.json.backend import JsonBackend
from backtest_persist.backends.json.committer import JsonCommitter
from backtest_persist.backends.json.lease import JsonLease
from backtest_persist.contracts import CandleData, CandleInterval, CandlesInput, PayloadInput, When
from backtest_persist.core.candles.ohlcv import checked_window
from backtest_persist.core.change import Part
from backtest_persist.domains.signal import SIGNAL
from backtest_persist.domains.state import STATE
from backtest_persist.errors import InvalidWhenError
from backtest_persist.testing import (
    Candles,
    Claims,
    Crash,
    Fidelity,
    Isolation,
    LatestValue,
    Lists,
    LookAhead,
    ReadAfterWrite,
    Suite,
    Tombstones,
    UnitsOfWork,
)
from tests.own_domain.funding import FUNDING
from tests.support.reference_backend import Candle, Entry, Funding, Reference, State, Store


class OnStore(Suite):
    """A suite on the reference backend with another store."""

    backend: ClassVar[type[Reference]] = Reference
    store: ClassVar[type[Store]] = Store

    def use(self, persist: Registry, place: Path) -> None:
        persist.use(self.backend(self.store(place)).factories())


class TestUnbroken(OnStore, LatestValue, Tombstones, Candles, Claims):
    """The reference itself, on which nothing may fail."""


class KeepsTheFirst(Store):
    """Keeps the first value of a name."""

    def put(self, context: str, entries: Sequence[Entry], *, replace: bool = True) -> None:
        super().put(context, entries, replace=False)


class TestKeepsTheFirst(OnStore, LatestValue):
    store = KeepsTheFirst


class ListsTheRemoved(Store):
    """Lists tombstones of one domain as if they were alive."""

    def all(self, context: str) -> list[Entry]:
        entries = super().all(context)
        return [(*entry[:3], False) for entry in entries] if '"measure"' in context else entries


class TestListsTheRemoved(OnStore, Tombstones):
    store = ListsTheRemoved


class HasACap(Store):
    """Ends a list after a thousand entries."""

    def all(self, context: str) -> list[Entry]:
        return super().all(context)[:1000]


class TestHasACap(OnStore, Lists):
    store = HasACap


class OrdersByName(Store):
    """Lists entries in the order of their names."""

    def all(self, context: str) -> list[Entry]:
        return sorted(super().all(context), key=lambda entry: entry[0])


class TestOrdersByName(OnStore, Lists):
    store = OrdersByName


class ReplacesCandles(Store):
    """Keeps the last write of a candle."""

    def put(self, context: str, entries: Sequence[Entry], *, replace: bool = True) -> None:
        super().put(context, entries)


class TestReplacesCandles(OnStore, Candles):
    store = ReplacesCandles


class LeavesGaps(Reference):
    """Returns a window with gaps in it."""

    def candle(self, symbol: str, interval: CandleInterval, exchange_name: str) -> Candle:
        return CandleWithGaps(self.store, symbol, interval, exchange_name)


class CandleWithGaps(Candle):
    async def read_candles_data(
        self, limit: int, since_timestamp: When, until_timestamp: When | None = None
    ) -> list[CandleData] | None:
        window = checked_window(self.series.interval, limit, since_timestamp, until_timestamp)
        stored = [value for _, value, _, _ in self.store.all(self.context)]
        return None if window is None else [candle for candle in stored if candle["timestamp"] in window]


class TestLeavesGaps(OnStore, Candles):
    backend = LeavesGaps


class StoresWhatWasOpen(Reference):
    """Stores what was open when the exchange was asked."""

    def candle(self, symbol: str, interval: CandleInterval, exchange_name: str) -> Candle:
        return CandleWithoutAsOf(self.store, symbol, interval, exchange_name)


class CandleWithoutAsOf(Candle):
    async def write_candles_data(self, candles: CandlesInput, *, as_of: When | None = None) -> None:
        await super().write_candles_data(candles)


class TestStoresWhatWasOpen(OnStore, Candles):
    backend = StoresWhatWasOpen


class ReadsOpenCandles(Reference):
    """Returns last candles that are still open."""

    def candle(self, symbol: str, interval: CandleInterval, exchange_name: str) -> Candle:
        return CandleWithoutUntil(self.store, symbol, interval, exchange_name)


class CandleWithoutUntil(Candle):
    async def read_last_candles(self, limit: int, until: When | None = None) -> list[CandleData]:
        return await super().read_last_candles(limit)


class TestReadsOpenCandles(OnStore, Candles):
    backend = ReadsOpenCandles


class StoresOutliers(Reference):
    """Stores a candle with a price in another unit."""

    def candle(self, symbol: str, interval: CandleInterval, exchange_name: str) -> Candle:
        return CandleInAnyUnit(self.store, symbol, interval, exchange_name)


class CandleInAnyUnit(Candle):
    allow_outliers = True


class TestStoresOutliers(OnStore, Candles):
    backend = StoresOutliers


class TakesAnyUnit(Reference):
    """Stores a `when` in any unit."""

    def state(self, signal_id: str, bucket_name: str) -> State:
        return StateOfAnyUnit(self.store, "state", signal_id, bucket_name)


class StateOfAnyUnit(State):
    async def write_state_data(self, data: PayloadInput | None, when: When) -> None:
        try:
            await super().write_state_data(data, when)
        except InvalidWhenError:
            if type(when) is not int:
                raise


class TestTakesAnyUnit(OnStore, LookAhead):
    backend = TakesAnyUnit


class SeesTheFuture(Store):
    """Shows values that are later than the time of the reader."""

    def visible(self, entry: Entry | None, horizon: int) -> bool:
        return entry is not None


class TestSeesTheFuture(OnStore, LookAhead):
    store = SeesTheFuture


class Remembers(Store):
    """Remembers values that were read or written in this process, and never asks for them again."""

    def __init__(self, place: Path) -> None:
        super().__init__(place)
        self.known: dict[tuple[str, str], Entry | None] = {}

    def put(self, context: str, entries: Sequence[Entry], *, replace: bool = True) -> None:
        super().put(context, entries, replace=replace)
        self.known |= {(context, entry[0]): entry for entry in entries}

    def get(self, context: str, name: str) -> Entry | None:
        if (context, name) not in self.known:
            self.known[context, name] = super().get(context, name)
        return self.known[context, name]


class TestRemembers(OnStore, ReadAfterWrite):
    store = Remembers


class JoinsNames(Store):
    """Joins names with a character that may be part of them."""

    def join(self, *parts: str) -> str:
        return "_".join(parts)


class TestJoinsNames(OnStore, Isolation):
    store = JoinsNames


class WritesJson(Store):
    """Stores values that JSON cannot express as text."""

    def encode(self, value: Any) -> bytes:
        return json.dumps(value, default=str).encode()

    def decode(self, value: bytes) -> Any:
        return json.loads(value)


class TestWritesJson(OnStore, Fidelity):
    store = WritesJson


class ClaimsInTwoSteps(Store):
    """Looks whether a name is free, and writes it after others may have done so."""

    def claim(self, context: str, entry: Entry) -> bool:
        found = self.get(context, entry[0])
        if self.living(found):
            return self.seen_free == entry[0]
        self.seen_free = entry[0]
        self.put(context, [entry])
        return True

    seen_free = ""


class TestClaimsInTwoSteps(OnStore, Claims):
    store = ClaimsInTwoSteps


class WritesBehind(Store):
    """Keeps writes in memory until this process reads, or ends properly."""

    waiting: ClassVar[list[tuple[Store, str, Sequence[Entry], bool]]] = []

    def put(self, context: str, entries: Sequence[Entry], *, replace: bool = True) -> None:
        self.waiting.append((self, context, entries, replace))

    def select(self, condition: str, *values: str) -> list[Entry]:
        self.flush()
        return super().select(condition, *values)

    @classmethod
    def flush(cls) -> None:
        while cls.waiting:
            store, context, entries, replace = cls.waiting.pop(0)
            Store.put(store, context, entries, replace=replace)


atexit.register(WritesBehind.flush)


class TestWritesBehind(OnStore, Crash):
    store = WritesBehind


class WritesInTwoSteps(Store):
    """Stores half of a value first, and all of it a moment later."""

    def put(self, context: str, entries: Sequence[Entry], *, replace: bool = True) -> None:
        halves = [(name, self.half(value), at, gone) for name, value, at, gone in entries]
        if halves != entries:
            super().put(context, halves, replace=replace)
            time.sleep(0.05)  # long enough for a reader to see it, on a busy machine too
        super().put(context, entries, replace=replace or halves != entries)

    def half(self, value: Any) -> Any:
        payload = cast("dict[str, Any]", value)
        return {**payload, "copies": payload["copies"][:1]} if "copies" in payload else payload


class TestWritesInTwoSteps(OnStore, Crash):
    store = WritesInTwoSteps


class StoresAPart(JsonCommitter):
    """Stores the writes of all domains of a unit but for the first."""

    async def commit(self, parts: Sequence[Part]) -> None:
        await super().commit(parts[1:])


class StoresPartsOfUnits(JsonBackend):
    """Keeps files, and units of work in part."""

    def committer(self, lease: JsonLease | None = None) -> JsonCommitter:
        return StoresAPart(self._dump, lease)


class TestStoresPartsOfUnits(UnitsOfWork):
    domains = (SIGNAL, STATE)

    def use(self, persist: Registry, place: Path) -> None:
        persist.use(StoresPartsOfUnits(place))


class OnFunding(Suite):
    """A suite on a backend that keeps no domain of the package."""

    domains = (FUNDING,)
    store: ClassVar[type[Store]] = Store

    def use(self, persist: Registry, place: Path) -> None:
        persist.use({"funding": partial(Funding, self.store(place), "funding")})


class TestFundingKeepsTheFirst(OnFunding, LatestValue, ReadAfterWrite):
    store = KeepsTheFirst


class TestFundingSeesTheFuture(OnFunding, LookAhead):
    store = SeesTheFuture
