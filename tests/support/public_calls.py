"""Every public call of every domain with good arguments, found by signature: a new method is a new call."""

import inspect
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

import backtest_persist
from backtest_persist import Container
from backtest_persist.core.base_map import BaseMap
from tests.support.cases import PAYLOAD, WHEN, Case

__all__ = ("PublicCall", "adapter_calls", "cache_calls", "db_calls", "run_to_end")

_CANDLE = {"timestamp": 1_699_999_980_000, "open": 1.0, "high": 3.0, "low": 0.5, "close": 2.0, "volume": 10.0}
_ARGUMENTS: Mapping[str, Any] = {
    "as_of": 1_700_000_100_000,
    "candle": _CANDLE,
    "candles": [_CANDLE, {**_CANDLE, "timestamp": 1_700_000_040_000}],
    "allow_outliers": False,
    "contents": [],
    "data": PAYLOAD,
    "dry_run": False,
    "entries": [PAYLOAD, {**PAYLOAD, "id": "s-2"}],
    "errors": "raise",
    "filter": {},
    "id": "f" * 24,
    "items": [("k-1", "v"), ("k-2", "v")],
    "key": "k",
    "keys": ["k-1", "k-2"],
    "limit": 2,
    "memory_id": "m-1",
    "newest": None,
    "notifications": [PAYLOAD],
    "offset": 0,
    "payload": PAYLOAD,
    "payloads": [PAYLOAD, {**PAYLOAD, "id": "s-2"}],
    "positions": [{"symbol": "BTCUSDT"}],
    "resample": None,
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
_NOT_FOR_USERS = {
    *(
        "bind",
        "content",
        "encoded",
        "encoded_claim",
        "encoded_entry",
        "encoded_living",
        "on_change",
        "on_dispose",
        "operation",
        "schema",
    ),
    *("allows_early_times", "default_until", "to_horizon", "to_millis", "wire_when"),
}
"""Methods for domains and for the container."""


@dataclass(frozen=True, eq=False)
class PublicCall:
    """A method and good arguments for it; `make` calls the method with the arguments it is given."""

    name: str
    make: Callable[..., Any]
    arguments: Mapping[str, Any]

    def __str__(self) -> str:
        return self.name


async def run_to_end(result: Any) -> Any:
    """Await the result of a call, or iterate over it to the end, and return what it gives."""
    if isinstance(result, AsyncIterator):
        return [item async for item in cast("AsyncIterator[Any]", result)]
    return await result


def _calls(subject: Any, good: Mapping[str, Any]) -> Iterator[PublicCall]:
    for name, method in inspect.getmembers(subject, inspect.ismethod):
        if not name.startswith("_") and name not in _NOT_FOR_USERS:
            names = inspect.signature(method).parameters
            yield PublicCall(name, method, {name: good[name] for name in names})


def db_calls(container: Container, case: Case) -> list[PublicCall]:
    """Return the calls of a db service, writes first, so that reads find something."""
    service = getattr(container, f"{case.domain}_db_service")
    calls = _calls(service, {**_ARGUMENTS, **case.context})
    return sorted(calls, key=_order)


def _order(call: PublicCall) -> tuple[bool, bool]:
    writes, deletes = ("create", "replace", "store", "upsert"), ("clear", "delete")
    return not call.name.startswith(writes), call.name.startswith(deletes)


def cache_calls(container: Container, case: Case, row: Any = None) -> list[PublicCall]:
    """Return the calls of a cache service, those of `BaseMap` included; without a row, none that stores its id."""
    service: BaseMap = getattr(container, f"{case.domain}_cache_service")
    calls = _calls(service, {**_ARGUMENTS, **case.context, "row": row})
    return [call for call in calls if row is not None or call.name != f"set_{case.domain}_id"]


def adapter_calls(container: Container, case: Case) -> list[PublicCall]:
    """Return the calls of an adapter; `make` takes its context and the arguments of the method together."""
    kind = getattr(backtest_persist, f"Persist{case.domain.capitalize()}Instance")
    context_names = [name for name in inspect.signature(kind).parameters if name != "ioc"]
    good = {**_ARGUMENTS, **case.context, "initial": True}

    def maker(method: str) -> Callable[..., Any]:
        def make(**arguments: Any) -> Any:
            adapter = kind(**{name: arguments.pop(name) for name in context_names}, ioc=container)
            return getattr(adapter, method)(**arguments)

        return make

    context = {name: good[name] for name in context_names}
    calls = _calls(kind(**context, ioc=container), good)
    found = [
        PublicCall(call.name, maker(call.name), {**{name: good[name] for name in context_names}, **call.arguments})
        for call in calls
    ]
    return sorted(found, key=lambda call: (not call.name.startswith("write"), "remove" in call.name))
