"""The fifteen domains as one table, so that a statement about all of them is one test."""

import asyncio
from collections.abc import Coroutine, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from backtest_persist.registry import Registry

__all__ = (
    "CANDLE",
    "DAY",
    "DOMAINS",
    "EARLY",
    "KEPT",
    "LATE",
    "LISTS",
    "MEMORY",
    "MINUTE",
    "OVERWRITTEN",
    "REMOVABLE",
    "SIGNAL",
    "START",
    "STATE",
    "STORAGE",
    "TIMED",
    "VALUES",
    "Domain",
    "Parts",
    "candle",
    "pick",
    "together",
)

EARLY, LATE = 1_600_000_000_000, 1_700_000_000_000
"""Two instants of simulation time, in ms."""

MINUTE, DAY = 60_000, 86_400_000
START = 18_519 * DAY
"""The opening time of a candle of any interval."""

T = TypeVar("T")

Parts = tuple[Any, ...]
"""A context: what the entry of the registry takes, and then the key or id."""

_SAMPLE = {
    "symbol": "BTCUSDT",
    "interval": "1m",
    "strategy_name": "trend",
    "exchange_name": "binance",
    "frame_name": "2024",
    "risk_name": "max-2",
    "bucket": "notes",
    "bucket_name": "notes",
    "signal_id": "s-1",
    "memory_id": "m-1",
    "key": "k-1",
    "id": "e-1",
    "backtest": True,
}


@dataclass(frozen=True)
class Domain:
    """One domain: its context, and how to call its adapter without knowing which of the fifteen it is."""

    name: str
    kind: Literal["value", "marks", "positions", "removable", "list", "candles"]
    context: tuple[str, ...]
    """What the entry of the registry takes."""
    key: str = ""
    """What the methods take besides, or what an entry of a list carries."""
    noun: str = ""
    """What the methods are called by, if it is not `name`."""
    timed: bool = False
    """Whether a value is written with a `when` that hides it."""

    def __str__(self) -> str:
        return self.name

    @property
    def fields(self) -> tuple[str, ...]:
        """The names of the parts."""
        return (*self.context, self.key) if self.key else self.context

    @property
    def sample(self) -> Parts:
        """A context in which every part is harmless."""
        return tuple(_SAMPLE[field] for field in self.fields)

    def with_part(self, position: int, value: Any) -> Parts:
        """The sample with another part in one position."""
        return (*self.sample[:position], value, *self.sample[position + 1 :])

    def numbered(self, number: int) -> Parts:
        """A context of its own for each number."""
        position = max(index for index, field in enumerate(self.fields) if field not in ("interval", "backtest"))
        return self.with_part(position, f"{number}-{self.fields[position]}")

    async def instance(self, persist: Registry, parts: Parts) -> Any:
        """The adapter of a context."""
        return await getattr(persist, self.name)(*parts[: len(self.context)])

    def call(self, instance: Any, parts: Parts, payload: Any, when: Any = EARLY) -> Coroutine[Any, Any, None]:
        """Call the method of an adapter that writes a payload; candles take the ``n`` of a payload as volume."""
        write = getattr(instance, f"write_{self.noun or self.name}_data")
        match self.kind:
            case "list":
                return write([{**payload, "id": parts[-1]} if isinstance(payload, dict) else payload])
            case "candles":
                return write([candle(0, volume=float(payload["n"]))])
            case "positions":
                return write([payload], when)
            case "value":
                return write(payload, when) if self.timed else write(payload)
            case _:
                return write(payload, parts[-1], when)

    async def write(self, persist: Registry, parts: Parts, payload: Any, when: Any = EARLY) -> None:
        """Write a payload into a context."""
        await self.call(await self.instance(persist, parts), parts, payload, when)

    async def read_as_is(self, persist: Registry, parts: Parts, **when: Any) -> Any:
        """What the reading method of the adapter returns."""
        instance = await self.instance(persist, parts)
        read = getattr(instance, f"read_{self.noun or self.name}_data")
        match self.kind:
            case "list":
                return await read()
            case "candles":
                return await read(1, START)
            case "positions":
                return await read(when.get("when", LATE))
            case "marks":
                return await read(parts[-1], when.get("when", LATE))
            case "value":
                return await read(**when)
            case _:
                return await read(parts[-1], **when)

    async def read(self, persist: Registry, parts: Parts, **when: Any) -> Any:
        """The payload in a context as `write` took it, or None; `when` where the method takes one."""
        return self.find(await self.read_as_is(persist, parts, **when), parts)

    def find(self, found: Any, parts: Parts) -> Any:
        """The payload of a context in what `read_as_is` has returned."""
        match self.kind:
            case "list":
                entries = [entry for entry in found if entry["id"] == parts[-1]]
                assert len(entries) <= 1, f"{self} has {len(entries)} entries with one id"
                return {name: value for name, value in entries[0].items() if name != "id"} if entries else None
            case "candles":
                return {"n": found[0]["volume"]} if found else None
            case "positions":
                assert len(found) <= 1
                return found[0] if found else None
            case "marks":
                return found or None
            case _:
                return found

    async def read_many(self, persist: Registry, many: Sequence[Parts]) -> list[Any]:
        """The payload of each context; of a list, by one read."""
        if self.kind != "list":
            return await together(self.read(persist, parts) for parts in many)
        lists: dict[Parts, Any] = {}
        payloads: list[Any] = []
        for parts in many:
            if parts[:-1] not in lists:
                entries: list[dict[str, Any]] = await self.read_as_is(persist, parts)
                lists[parts[:-1]] = {entry["id"]: entry for entry in entries}
                assert len(lists[parts[:-1]]) == len(entries), f"{self} has two entries with one id"
            entry = lists[parts[:-1]].get(parts[-1])
            payloads.append(None if entry is None else self.find([entry], parts))
        return payloads

    async def remove(self, persist: Registry, parts: Parts) -> None:
        """Turn the value of a context into a tombstone."""
        instance = await self.instance(persist, parts)
        await getattr(instance, f"remove_{self.name}_data")(parts[-1])

    async def keys(self, persist: Registry, parts: Parts, **when: Any) -> list[str]:
        """The keys that the adapter lists, or the ids of the entries, in their order."""
        if self.kind == "list":
            return [entry["id"] for entry in await self.read_as_is(persist, parts)]
        instance = await self.instance(persist, parts)
        listed = [item async for item in getattr(instance, f"list_{self.name}_data")(**when)]
        return [item[0] for item in listed] if self.name == "memory" else listed


async def together(calls: Iterable[Coroutine[Any, Any, T]], at_once: int = 50) -> list[T]:
    """The results of calls of which so many are made at once."""
    remaining, results = list(calls), list[T]()
    while remaining:
        results += await asyncio.gather(*remaining[:at_once])
        del remaining[:at_once]
    return results


def candle(number: int, step: int = MINUTE, **changes: Any) -> dict[str, Any]:
    """A candle that has closed long ago, `number` intervals after `START`."""
    return {
        "timestamp": START + number * step,
        "open": 10.0,
        "high": 12.0,
        "low": 9.0,
        "close": 11.0,
        "volume": 1.0 + number,
        **changes,
    }


_SSE = ("symbol", "strategy_name", "exchange_name")

DOMAINS = (
    Domain("breakeven", "marks", _SSE, "signal_id", timed=True),
    Domain("candle", "candles", ("symbol", "interval", "exchange_name"), noun="candles"),
    Domain("interval", "removable", ("bucket",), "key", timed=True),
    Domain("log", "list", (), "id"),
    Domain("measure", "removable", ("bucket",), "key"),
    Domain("memory", "removable", ("signal_id", "bucket_name"), "memory_id", timed=True),
    Domain("notification", "list", ("backtest",), "id"),
    Domain("partial", "marks", _SSE, "signal_id", timed=True),
    Domain("recent", "value", (*_SSE, "frame_name", "backtest"), timed=True),
    Domain("risk", "positions", ("risk_name", "exchange_name"), noun="position", timed=True),
    Domain("schedule", "value", _SSE),
    Domain("session", "value", ("strategy_name", "exchange_name", "frame_name", "symbol", "backtest"), timed=True),
    Domain("signal", "value", _SSE),
    Domain("state", "value", ("signal_id", "bucket_name"), timed=True),
    Domain("storage", "list", ("backtest",), "id"),
)


def pick(*names: str) -> tuple[Domain, ...]:
    """The domains of these names."""
    return tuple(domain for domain in DOMAINS if domain.name in names)


CANDLE, MEMORY, SIGNAL, STATE, STORAGE = pick("candle", "memory", "signal", "state", "storage")
KEPT = tuple(domain for domain in DOMAINS if domain is not CANDLE)
"""Those that keep payloads."""
OVERWRITTEN = tuple(domain for domain in KEPT if domain.name != "log")
"""Those in which a later write replaces an earlier one."""
VALUES = tuple(domain for domain in DOMAINS if domain.kind == "value")
"""Those that keep one payload or None."""
LISTS = tuple(domain for domain in DOMAINS if domain.kind == "list")
REMOVABLE = tuple(domain for domain in DOMAINS if domain.kind == "removable")
TIMED = tuple(domain for domain in DOMAINS if domain.timed)
"""Those whose values are hidden from a reader before their `when`."""
