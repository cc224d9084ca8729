"""Every public call of the fifteen domains, found by looking at the signatures, so that a new method is a new call."""

import inspect
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

import backtest_persist
from backtest_persist import Container
from backtest_persist.core.base_map import BaseMap
from tests.support.cases import PAYLOAD, WHEN, Case

__all__ = ("Call", "adapter_calls", "cache_calls", "db_calls", "finished")

_CANDLE = {"timestamp": 1_699_999_980_000, "open": 1.0, "high": 3.0, "low": 0.5, "close": 2.0, "volume": 10.0}
_ARGUMENTS: Mapping[str, Any] = {
    "candle": _CANDLE,
    "candles": [_CANDLE, {**_CANDLE, "timestamp": 1_700_000_040_000}],
    "contents": [],
    "data": PAYLOAD,
    "dry_run": False,
    "entries": [PAYLOAD, {**PAYLOAD, "id": "s-2"}],
    "filter": {},
    "id": "f" * 24,
    "items": [("k-1", "v"), ("k-2", "v")],
    "key": "k",
    "keys": ["k-1", "k-2"],
    "limit": 2,
    "memory_id": "m-1",
    "notifications": [PAYLOAD],
    "offset": 0,
    "payload": PAYLOAD,
    "payloads": [PAYLOAD, {**PAYLOAD, "id": "s-2"}],
    "positions": [{"symbol": "BTCUSDT"}],
    "row": PAYLOAD,
    "signal_id": "s-1",
    "signals": [PAYLOAD],
    "since": 1_699_999_980_000,
    "since_timestamp": 1_699_999_980_000,
    "sort": None,
    "until": 1_700_000_100_000,
    "until_timestamp": 1_700_000_100_000,
    "value": "v",
    "when": WHEN,
}
_NOT_PUBLIC_CALLS = {"bind"}


@dataclass(frozen=True, eq=False)
class Call:
    """One method with good arguments; `make` calls it, with some of them replaced."""

    name: str
    make: Callable[..., Any]
    arguments: Mapping[str, Any]

    def __str__(self) -> str:
        return self.name


async def finished(result: Any) -> Any:
    """What a call comes to: awaited, or iterated to the end."""
    if isinstance(result, AsyncIterator):
        return [item async for item in cast("AsyncIterator[Any]", result)]
    return await result


def _calls(thing: Any, good: Mapping[str, Any]) -> Iterator[Call]:
    for name, method in inspect.getmembers(thing, inspect.ismethod):
        if not name.startswith("_") and name not in _NOT_PUBLIC_CALLS:
            names = inspect.signature(method).parameters
            yield Call(name, method, {name: good[name] for name in names})


def db_calls(container: Container, case: Case) -> list[Call]:
    """Those of a db service, writes first, so that reads find something."""
    service = getattr(container, f"{case.domain}_db_service")
    calls = _calls(service, {**_ARGUMENTS, **case.context})
    return sorted(calls, key=lambda call: (not call.name.startswith(("create", "upsert")), "clear" in call.name))


def cache_calls(container: Container, case: Case, row: Any = None) -> list[Call]:
    """Those of a cache service, of `BaseMap` as well; without a row none that stores its id."""
    service: BaseMap = getattr(container, f"{case.domain}_cache_service")
    calls = _calls(service, {**_ARGUMENTS, **case.context, "row": row})
    return [call for call in calls if row is not None or call.name != f"set_{case.domain}_id"]


def adapter_calls(container: Container, case: Case) -> list[Call]:
    """Those of a persist adapter; `make` takes the context of the adapter and the arguments of the method together."""
    kind = getattr(backtest_persist, f"Persist{case.domain.capitalize()}Instance")
    own = [name for name in inspect.signature(kind).parameters if name != "ioc"]
    good = {**_ARGUMENTS, **case.context, "initial": True}

    def maker(method: str) -> Callable[..., Any]:
        def make(**arguments: Any) -> Any:
            adapter = kind(**{name: arguments.pop(name) for name in own}, ioc=container)
            return getattr(adapter, method)(**arguments)

        return make

    calls = _calls(kind(**{name: good[name] for name in own}, ioc=container), good)
    found = [
        Call(call.name, maker(call.name), {**{name: good[name] for name in own}, **call.arguments}) for call in calls
    ]
    return sorted(found, key=lambda call: (not call.name.startswith("write"), "remove" in call.name))
