"""Subjects: the domains under test, each with sample contexts and one way to call its adapter."""

import asyncio
import inspect
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, TypeVar, get_args, get_origin

from pydantic import ValidationError

from backtest_persist.core.candles.ohlcv import NUMBERS
from backtest_persist.core.domain import Domain, Family
from backtest_persist.domains import DOMAINS
from backtest_persist.errors import InvalidKeyError
from backtest_persist.registry import Registry

__all__ = (
    "DAY",
    "EARLY",
    "LATE",
    "LATEST",
    "MINUTE",
    "NO_MILLIS",
    "START",
    "SUBJECTS",
    "Kind",
    "Parts",
    "Selection",
    "Subject",
    "candle",
    "gather_in_batches",
    "has_a_flag",
    "has_many_contexts",
    "has_optional_names",
    "is_append_only",
    "is_by_mode",
    "is_candle_series",
    "is_disposable",
    "is_list",
    "is_listed",
    "is_listed_at_when",
    "is_overwritten",
    "is_packaged",
    "is_removable",
    "is_replacing_list",
    "is_single_payload",
    "is_timed",
    "is_value",
    "keeps_marks",
    "keeps_payloads",
    "keeps_positions",
    "may_omit_when",
    "stores_removed_as_data",
    "subject_named",
    "tells_presence",
)

EARLY, LATE = 1_600_000_000_000, 1_700_000_000_000
"""Two instants of simulation time, in ms."""
LATEST = 10**14 - 1
"""The last instant that an int can be, in ms."""
NO_MILLIS = (EARLY // 1000, EARLY * 1000, EARLY * 1_000_000, 1, 10**11 - 1, 10**14, -(10**14), 2**62)
"""Ints that look like an instant in seconds, microseconds or nanoseconds."""

MINUTE, DAY = 60_000, 86_400_000
START = 18_519 * DAY
"""The opening time of a candle of any interval, in ms."""

T = TypeVar("T")

Parts = tuple[Any, ...]
"""The arguments of a domain's entry in the registry, followed by the key or the id, if there is one."""

Kind = Literal["value", "marks", "positions", "removable", "list", "candles"]
"""The way an adapter is called and shows that nothing is stored.

- ``value``: one payload, or None
- ``marks``: one payload for each key, or ``{}``
- ``positions``: one list of any data, or ``[]``
- ``removable``: one payload for each key, or None; keys are listed, and a removed one is a tombstone
- ``list``: payloads with an ``id``
- ``candles``: a window of candles, or None
"""


@dataclass(frozen=True)
class Subject:
    """One domain under test: sample contexts, and how to call its adapter without knowing the domain.

    `ValueError` for a domain whose adapter the kit cannot call.
    """

    domain: Domain

    def __post_init__(self) -> None:
        """Check that the kit can call the adapter, and knows a sample of every part."""
        _ = self.sample

    def __str__(self) -> str:
        return self.name

    @property
    def name(self) -> str:
        """The name of the domain."""
        return self.domain.name

    @cached_property
    def kind(self) -> Kind:
        """The way the adapter is called."""
        match self.domain.family, len(self.domain.keys), self.domain.contents:
            case Family.LATEST_VALUE, 0, ("payload",):
                return "value"
            case Family.LATEST_VALUE, 1, ("payload",):
                return "marks"
            case Family.LATEST_VALUE, 0, ("positions",):
                return "positions"
            case Family.KEYED, 1, ("payload",):
                return "removable"
            case Family.LIST, 1, ("payload",):
                return "list"
            case Family.SERIES, 1, contents if set(contents) == set(NUMBERS):
                return "candles"
            case _:
                raise ValueError(
                    f"The conformance kit cannot test the domain {self.name!r}: it knows no {self.domain.family} with "
                    f"the keys ({', '.join(self.domain.keys)}) and the contents ({', '.join(self.domain.contents)})."
                )

    @property
    def context(self) -> tuple[str, ...]:
        """The fields that the entry of the registry takes."""
        return self.domain.adapter_parameters

    @property
    def key(self) -> str:
        """The field that the methods take in addition, or that is the ``id`` of an entry; "" if there is none."""
        return self.domain.keys[0] if self.kind in ("marks", "removable", "list") else ""

    @property
    def noun(self) -> str:
        """The word between ``read_`` and ``_data`` in the names of the methods."""
        return self.domain.noun or self.name

    @property
    def timed(self) -> bool:
        """Whether a value is written with a `when` that hides it from earlier readers."""
        return self.domain.timed

    @property
    def fields(self) -> tuple[str, ...]:
        """The names of the parts."""
        return (*self.context, self.key) if self.key else self.context

    @cached_property
    def sample(self) -> Parts:
        """A context in which every part is harmless: a str is the name of its field."""
        return tuple(map(self._sample_of, self.fields))

    def _sample_of(self, field: str) -> Any:
        if self._is_candle_interval(field):
            return "1m"
        kind = self._type_of(field)
        if get_origin(kind) is Literal:
            return get_args(kind)[0]
        if kind not in (str, bool, int):
            raise ValueError(
                f"The conformance kit cannot test the domain {self.name!r}: its part {field} is no str, bool or int."
            )
        return {str: field, bool: True, int: 0}[kind]

    def _type_of(self, field: str) -> Any:
        return self.domain.context_type.model_fields[field].annotation

    def _is_candle_interval(self, field: str) -> bool:
        return field == "interval" and self.kind == "candles"

    def _positions_of(self, kind: type) -> tuple[int, ...]:
        return tuple(
            position
            for position, field in enumerate(self.fields)
            if self._type_of(field) is kind and not self._is_candle_interval(field)
        )

    @cached_property
    def name_positions(self) -> tuple[int, ...]:
        """The positions of parts that may be any name."""
        return self._positions_of(str)

    @cached_property
    def optional_positions(self) -> tuple[int, ...]:
        """The positions of names that may be empty, as the frame of live trading is."""
        return tuple(position for position in self.name_positions if self._may_be_empty(self.fields[position]))

    def _may_be_empty(self, field: str) -> bool:
        sample = {name: self._sample_of(name) for name in self.domain.context_type.model_fields}
        try:
            self.domain.context_type.model_validate({**sample, field: ""})
        except (InvalidKeyError, ValidationError):
            return False
        return True

    @cached_property
    def flag_positions(self) -> tuple[int, ...]:
        """The positions of parts that are True or False."""
        return self._positions_of(bool)

    @cached_property
    def number_positions(self) -> tuple[int, ...]:
        """The positions of parts that are numbers."""
        return self._positions_of(int)

    def with_part(self, position: int, value: Any) -> Parts:
        """Return the sample with another part in one position."""
        return (*self.sample[:position], value, *self.sample[position + 1 :])

    def numbered(self, number: int) -> Parts:
        """Return a different context for each number from 0 on, none of which is the sample."""
        if self.name_positions:
            position = self.name_positions[-1]
            return self.with_part(position, f"{number}-{self.fields[position]}")
        return self.with_part(self.number_positions[-1], number + 1)

    async def adapter(self, persist: Registry, parts: Parts) -> Any:
        """Return the adapter of a context."""
        return await persist.entry(self.domain)(*parts[: len(self.context)])

    def call(self, adapter: Any, parts: Parts, payload: Any, when: Any = EARLY) -> Coroutine[Any, Any, None]:
        """Call the method of an adapter that writes a payload; candles take the ``n`` of a payload as volume."""
        arguments: list[Any]
        match self.kind:
            case "list":
                arguments = [[{**payload, "id": parts[-1]} if isinstance(payload, dict) else payload]]
            case "candles":
                arguments = [[candle(0, volume=float(payload["n"]))]]
            case "positions":
                arguments = [[payload]]
            case "value":
                arguments = [payload]
            case _:
                arguments = [payload, parts[-1]]
        return self._method(adapter, "write")(*arguments, *([when] if self._write_takes_when else []))

    @cached_property
    def _write_takes_when(self) -> bool:
        return "when" in inspect.signature(self._method(self.domain.adapter, "write")).parameters

    def _method(self, adapter: Any, verb: str) -> Callable[..., Any]:
        return getattr(adapter, f"{verb}_{self.noun}_data")

    async def write(self, persist: Registry, parts: Parts, payload: Any, when: Any = EARLY) -> None:
        """Write a payload into a context."""
        await self.call(await self.adapter(persist, parts), parts, payload, when)

    async def write_entries(self, persist: Registry, parts: Parts, entries: Any, when: Any = EARLY) -> None:
        """Write entries, or candles, by one call."""
        adapter = await self.adapter(persist, parts)
        await self._method(adapter, "write")(entries, *([when] if self._write_takes_when else []))

    async def read_result(self, persist: Registry, parts: Parts, **when: Any) -> Any:
        """Return what the reading method of the adapter returns; of a series, the window of one candle."""
        read = self._method(await self.adapter(persist, parts), "read")
        match self.kind:
            case "candles":
                return await read(1, START)
            case "positions":
                return await read(when.get("when", LATE))
            case "marks":
                return await read(parts[-1], when.get("when", LATE))
            case "removable":
                return await read(parts[-1], **when)
            case _:
                return await read(**when)

    async def read_window(self, persist: Registry, parts: Parts, limit: int, since: int) -> Any:
        """Return a window of candles from `since` (ms UTC) on."""
        return await self._method(await self.adapter(persist, parts), "read")(limit, since)

    async def read(self, persist: Registry, parts: Parts, **when: Any) -> Any:
        """Return the payload in a context as `write` took it, or None; `when` where the method takes one."""
        return self.payload_in(await self.read_result(persist, parts, **when), parts)

    def payload_in(self, result: Any, parts: Parts) -> Any:
        """Return the payload of a context in what `read_result` has returned, or None."""
        match self.kind:
            case "list":
                entries = [entry for entry in result if entry["id"] == parts[-1]]
                assert len(entries) <= 1, f"{self} has {len(entries)} entries with one id"
                return {name: value for name, value in entries[0].items() if name != "id"} if entries else None
            case "candles":
                return {"n": result[0]["volume"]} if result else None
            case "positions":
                assert len(result) <= 1
                return result[0] if result else None
            case "marks":
                return result or None
            case _:
                return result

    async def read_many(self, persist: Registry, many: Sequence[Parts]) -> list[Any]:
        """Return the payload of each context; of a list, by one read."""
        if self.kind != "list":
            return await gather_in_batches(self.read(persist, parts) for parts in many)
        lists: dict[Parts, Any] = {}
        payloads: list[Any] = []
        for parts in many:
            if parts[:-1] not in lists:
                entries: list[dict[str, Any]] = await self.read_result(persist, parts)
                lists[parts[:-1]] = {entry["id"]: entry for entry in entries}
                assert len(lists[parts[:-1]]) == len(entries), f"{self} has two entries with one id"
            entry = lists[parts[:-1]].get(parts[-1])
            payloads.append(None if entry is None else self.payload_in([entry], parts))
        return payloads

    async def remove(self, persist: Registry, parts: Parts) -> None:
        """Turn the value of a context into a tombstone."""
        await self._method(await self.adapter(persist, parts), "remove")(parts[-1])

    async def was_written(self, persist: Registry, parts: Parts, **when: Any) -> bool:
        """Return what the ``has_`` method of the adapter says; see `tells_presence`."""
        return await self._method(await self.adapter(persist, parts), "has")(parts[-1], **when)

    async def keys(self, persist: Registry, parts: Parts, **when: Any) -> list[str]:
        """Return the keys that the adapter lists, or the ids of the entries, in their order."""
        if self.kind == "list":
            return [entry["id"] for entry in await self.read_result(persist, parts)]
        return [item[0] if isinstance(item, tuple) else item for item in await self.listed(persist, parts, **when)]

    async def listed(self, persist: Registry, parts: Parts, **when: Any) -> list[Any]:
        """Return what the listing method of the adapter yields: keys, or pairs of key and payload."""
        listing = self._method(await self.adapter(persist, parts), "list")(**when)
        return [item async for item in listing]


SUBJECTS = tuple(map(Subject, DOMAINS))
"""The domains of the package."""


def subject_named(name: str) -> Subject:
    """Return the subject of a domain of the package."""
    return next(subject for subject in SUBJECTS if subject.name == name)


Selection = Callable[[Subject], bool]
"""Tells whether a test is about a domain."""


def is_packaged(subject: Subject) -> bool:
    """Whether it is a domain of the package, whose adapters have a protocol in `backtest_persist.contracts`."""
    return subject.domain in DOMAINS


def has_optional_names(subject: Subject) -> bool:
    """Whether a name of its context may be empty."""
    return bool(subject.optional_positions)


def is_value(subject: Subject) -> bool:
    """Whether a context holds one payload or None."""
    return subject.kind == "value"


def keeps_marks(subject: Subject) -> bool:
    """Whether a key without a payload is read as ``{}``."""
    return subject.kind == "marks"


def keeps_positions(subject: Subject) -> bool:
    """Whether a context holds a list of any data."""
    return subject.kind == "positions"


def is_removable(subject: Subject) -> bool:
    """Whether keys can be removed and are listed."""
    return subject.kind == "removable"


def is_list(subject: Subject) -> bool:
    """Whether payloads are entries with an ``id``."""
    return subject.kind == "list"


def is_candle_series(subject: Subject) -> bool:
    """Whether it keeps candles."""
    return subject.kind == "candles"


def is_append_only(subject: Subject) -> bool:
    """Whether it is a list whose entries are never replaced."""
    return is_list(subject) and subject.domain.append_only


def is_replacing_list(subject: Subject) -> bool:
    """Whether it is a list in which a later entry replaces one of the same id."""
    return is_list(subject) and not subject.domain.append_only


def is_by_mode(subject: Subject) -> bool:
    """Whether it is a list with a flag in its context, such as the mode."""
    return is_list(subject) and bool(subject.flag_positions)


def is_listed(subject: Subject) -> bool:
    """Whether keys or entries are listed, oldest first."""
    return is_removable(subject) or is_list(subject)


def keeps_payloads(subject: Subject) -> bool:
    """Whether it keeps payloads of any shape in any number of contexts."""
    return has_many_contexts(subject) and not is_candle_series(subject)


def is_single_payload(subject: Subject) -> bool:
    """Whether a payload is written as such, not as the member of a list of any data."""
    return keeps_payloads(subject) and not keeps_positions(subject)


def stores_removed_as_data(subject: Subject) -> bool:
    """Whether ``removed: true`` in a payload makes no tombstone."""
    return keeps_payloads(subject) and not subject.domain.removable


def is_overwritten(subject: Subject) -> bool:
    """Whether a later write replaces an earlier one."""
    return not (is_candle_series(subject) or is_append_only(subject))


def is_timed(subject: Subject) -> bool:
    """Whether values are hidden from readers before their `when`."""
    return subject.timed


def may_omit_when(subject: Subject) -> bool:
    """Whether values have a `when`, but a reader may go without one."""
    return subject.timed and not (keeps_marks(subject) or keeps_positions(subject))


def is_listed_at_when(subject: Subject) -> bool:
    """Whether a list of keys leaves out those with a later `when`."""
    return subject.timed and is_removable(subject)


def tells_presence(subject: Subject) -> bool:
    """Whether the adapter has a ``has_`` method, for which a removed key counts as written."""
    return is_removable(subject) and hasattr(subject.domain.adapter, f"has_{subject.noun}_data")


def is_disposable(subject: Subject) -> bool:
    """Whether the adapter has a method ``dispose``."""
    return hasattr(subject.domain.adapter, "dispose")


def has_a_flag(subject: Subject) -> bool:
    """Whether a part is True or False, such as the mode."""
    return bool(subject.flag_positions)


def has_many_contexts(subject: Subject) -> bool:
    """Whether a part is a name or a number, so that `Subject.numbered` has contexts to return."""
    return bool(subject.name_positions or subject.number_positions)


async def gather_in_batches(calls: Iterable[Coroutine[Any, Any, T]], size: int = 50) -> list[T]:
    """Return the results of calls, of which `size` are made at once."""
    remaining, results = list(calls), list[T]()
    while remaining:
        results += await asyncio.gather(*remaining[:size])
        del remaining[:size]
    return results


def candle(number: int, step: int = MINUTE, **changes: Any) -> dict[str, Any]:
    """Return a candle that closed long ago, `number` intervals of `step` ms after `START`."""
    return {
        "timestamp": START + number * step,
        "open": 10.0,
        "high": 12.0,
        "low": 9.0,
        "close": 11.0,
        "volume": 1.0 + number,
        **changes,
    }
