"""Every operation, disturbed at every await and at every call of a driver: the value is old or new, and can be written.

What is disturbed, and when, is enumerated to the end (see `fault_enumerator`); nothing here is random.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import count
from typing import Any, Protocol

import pytest
from pydantic import SecretStr

from backtest_persist import (
    BacktestPersistError,
    BaseMap,
    Container,
    Registry,
    Settings,
    StoreUnavailableError,
    WriteRejectedError,
    base_map,
)
from backtest_persist.connections.circuit import CircuitBreaker
from backtest_persist.testing.subjects import SUBJECTS, Parts, Subject, is_listed, is_overwritten, is_removable
from tests.support.cases import CASES, Case
from tests.support.commands import Commands, close_client, monitored_client
from tests.support.fault_enumerator import FAULTS, HELD, Drivers, Fault, intercepted_drivers
from tests.support.stopwatch import HANG

OLD, NEW, LATER = 1, 2, 3
PATIENCE = 0.02
"""For how many seconds a later write may pass an earlier one that is held back; it must not."""


class Place(Protocol):
    """Where one value is kept that nothing else touches."""

    @property
    def first_wins(self) -> bool:
        """Whether what is stored stays."""
        ...

    @property
    def says_what_was_stored(self) -> bool:
        """Whether a StoreUnavailableError means that nothing was stored."""
        ...

    async def write(self, number: int) -> Any: ...
    async def read(self) -> int | None: ...
    async def forget(self) -> None:
        """Make the cache empty."""
        ...


@dataclass(frozen=True)
class Operation:
    """Something to disturb, with what the place holds before and after it."""

    name: str
    run: Callable[[Any], Coroutine[Any, Any, Any]]
    before: int | None
    after: int | None
    cold: bool = False
    reads: bool = False
    """Whether it returns the value."""
    elsewhere: bool = False
    """Whether it changes other places as well."""

    def __str__(self) -> str:
        return self.name


@pytest.fixture(autouse=True)
def _breaker_without_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each attempt asks Redis, whatever the one before it has met."""
    monkeypatch.setattr(CircuitBreaker, "FIRST_PAUSE_SECONDS", 0.0)
    monkeypatch.setattr(CircuitBreaker, "LONGEST_PAUSE_SECONDS", 0.0)


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """Let the driver look at the server now and then, not all the time, so that the tasks that are left are ours.

    No write waits for the disk: what is tested here are the ways of a call, and there are thousands.
    """
    uri = f"{settings.mongo_connection_string.get_secret_value()}&serverMonitoringMode=poll&w=1&journal=false"
    return settings.model_copy(update={"mongo_connection_string": SecretStr(uri)})


@pytest.fixture
def drivers() -> Iterator[Drivers]:
    """The drivers, whose calls can be disturbed."""
    with intercepted_drivers() as drivers:
        yield drivers


@pytest.fixture
async def witness(settings: Settings) -> AsyncIterator[Container]:
    """Another client of the same database, with another prefix in Redis."""
    other = Container(settings.model_copy(update={"redis_key_prefix": f"{settings.redis_key_prefix}witness:"}))
    yield other
    await other.close()


async def enumerate_points(
    drivers: Drivers,
    operation: Operation,
    place: Callable[[], Awaitable[tuple[Place, Place]]],
    faults: tuple[Fault, ...] = FAULTS,
) -> dict[Fault, int]:
    """Disturb an operation in every way at every point, each time in a new place; returns how many points there were.

    `place` gives a place as the client under test sees it, and as another one does. At the end each holds what it held.
    """
    points = dict.fromkeys(faults, 0)
    left: list[tuple[Place, int]] = []
    calls: int | None = None
    for fault in faults:
        for number in count(1) if fault.at_await or calls is None else range(1, calls + 1):
            ours, theirs = await place()
            try:
                seen = await _disturb(drivers, operation, fault, number, ours)
                if seen is None:
                    break
                left += [(ours, seen), (theirs, seen)]
                if operation.elsewhere:
                    await _check_unchanged(left)
            except Exception as error:
                error.add_note(f"{operation}: {fault} at point {number}")
                raise
            points[fault] = number
        if not fault.at_await:
            calls = points[fault]
    await _check_unchanged(left)
    return points


async def _check_unchanged(left: list[tuple[Place, int]]) -> None:
    """By reads that share their commands, long after each write."""
    found = await asyncio.gather(*(place.read() for place, _ in left))
    assert found == [seen for _, seen in left], "an earlier write came after a later one"
    left.clear()


_EXPECTED: dict[str, type[BaseException]] = {"cancelled": asyncio.CancelledError, "timeout": TimeoutError}


async def _disturb(drivers: Drivers, operation: Operation, fault: Fault, number: int, ours: Place) -> int | None:
    """Returns what the place holds after a later write, or None if the operation has no such point."""
    before, after = operation.before, operation.after
    if before is not None:
        await ours.write(before)
    if operation.cold:
        await ours.forget()
    background = asyncio.all_tasks()
    outcome = await drivers.attempt(fault, number, lambda: operation.run(ours))
    error = outcome.error
    expected = _EXPECTED.get(fault.what, BacktestPersistError)
    assert error is None or (outcome.met and isinstance(error, expected)), repr(error)
    if not outcome.met:
        return None
    if error is None and operation.reads:
        assert outcome.value == before
    if error is None:
        possible = {after}
    elif ours.says_what_was_stored and isinstance(error, StoreUnavailableError | WriteRejectedError):
        possible = {before}
    else:
        possible = {before, after}

    if fault is not HELD:
        assert await ours.read() in possible
    later = asyncio.create_task(ours.write(LATER))
    if fault is HELD:
        await asyncio.wait([later], timeout=PATIENCE)
        drivers.released.set()
    await later
    wins = ((possible - {None}) or {LATER}) | {LATER} if ours.first_wins else {LATER}
    seen = await ours.read()
    assert seen in wins
    await _settled(background)
    return seen


async def _settled(background: set[asyncio.Task[Any]]) -> None:
    """Wait until no task is left but those of before."""
    left: set[asyncio.Task[Any]] = set()
    with suppress(TimeoutError):
        async with asyncio.timeout(HANG):
            while left := asyncio.all_tasks() - background - {asyncio.current_task()}:
                await asyncio.wait(left)
    assert not left


async def check_cache(container: Container, name: str) -> None:
    """Whatever Redis holds of a domain leads to the right document."""
    rows = await getattr(container, f"{name}_db_service").find_all()
    ids = {row.cache_key: row.id for row in rows}
    cached = dict(await getattr(container, f"{name}_cache_service").to_array())
    assert cached
    assert cached.items() <= ids.items()


# --- adapters ---


@dataclass(frozen=True)
class AdapterPlace:
    """A context of a domain, through its adapter."""

    subject: Subject
    container: Container
    registry: Registry
    parts: Parts
    says_what_was_stored = True

    @property
    def first_wins(self) -> bool:
        return not is_overwritten(self.subject)

    async def write(self, number: int) -> None:
        await self.subject.write(self.registry, self.parts, {"n": number})

    async def read(self) -> int | None:
        value = await self.subject.read(self.registry, self.parts)
        return None if value is None else int(value["n"])

    async def forget(self) -> None:
        await getattr(self.container, f"{self.subject.name}_cache_service").clear()

    async def remove(self) -> None:
        await self.subject.remove(self.registry, self.parts)

    async def keys(self) -> None:
        keys = await self.subject.keys(self.registry, self.parts)
        assert self.parts[-1] in keys


OVERWRITE = Operation("overwrite", lambda place: place.write(NEW), before=OLD, after=NEW)
FIRST_WRITE = Operation("first write", lambda place: place.write(NEW), before=None, after=NEW)
READ = Operation("read", lambda place: place.read(), before=OLD, after=OLD, reads=True)
COLD_READ = Operation("cold read", lambda place: place.read(), before=OLD, after=OLD, reads=True, cold=True)
READ_NOTHING = Operation("read nothing", lambda place: place.read(), before=None, after=None, reads=True)
REMOVE = Operation("remove", lambda place: place.remove(), before=OLD, after=None)
KEYS = Operation("keys", lambda place: place.keys(), before=OLD, after=OLD)


def _adapter_operations(subject: Subject) -> list[Operation]:
    operations = [FIRST_WRITE, READ]
    if is_overwritten(subject):
        operations.append(OVERWRITE)
    if subject.kind not in ("candles", "list"):
        operations += [COLD_READ, READ_NOTHING]
    if is_removable(subject):
        operations.append(REMOVE)
    if is_listed(subject):
        operations.append(KEYS)
    return operations


_OF_EACH_KIND = ("candle", "interval", "log", "risk", "signal", "storage")
"""The domains that are tested with both drivers; the others make the same calls."""
_ADAPTERS = [
    pytest.param(driver, subject, id=f"{driver}-{subject}")
    for driver in ("motor", "pymongo")
    for subject in SUBJECTS
    if driver == "pymongo" or subject.name in _OF_EACH_KIND
]


@pytest.mark.parametrize(("driver", "subject"), _ADAPTERS, indirect=["driver"])
async def test_every_adapter(container: Container, witness: Container, drivers: Drivers, subject: Subject) -> None:
    """Reads and writes of every adapter keep their promises, wherever they are disturbed."""
    ours, theirs = Registry(container), Registry(witness)
    numbers = count()

    async def place() -> tuple[Place, Place]:
        parts = subject.numbered(next(numbers))
        return AdapterPlace(subject, container, ours, parts), AdapterPlace(subject, witness, theirs, parts)

    first, other = await place()
    await first.write(OLD)
    await other.read()
    for operation in _adapter_operations(subject):
        points = await enumerate_points(drivers, operation, place)
        assert min(points.values()) >= 1, points
    await check_cache(container, subject.name)


# --- db services ---


@dataclass(frozen=True)
class ServicePlace:
    """A context of a domain, through its db service."""

    case: Case
    container: Container
    number: int
    says_what_was_stored = True

    @property
    def db(self) -> Any:
        return getattr(self.container, f"{self.case.domain}_db_service")

    @property
    def context(self) -> dict[str, Any]:
        name = [name for name, value in self.case.context.items() if isinstance(value, str) and name != "interval"][-1]
        return {**self.case.context, name: f"{self.case.context[name]}-{self.number}"}

    @property
    def first_wins(self) -> bool:
        return self.case.domain == "candle"

    def payload(self, number: int) -> Any:
        if self.case.domain == "candle":
            return {**self.case.written[0], "volume": float(number)}
        payload = {"n": number, "id": list(self.context.values())[-1]}
        return [payload] if self.case.domain == "risk" else payload

    async def write(self, number: int) -> None:
        if self.case.domain == "candle":
            row = await self.db.create(*list(self.context.values())[:-1], self.payload(number))
        else:
            row = await self.db.upsert(*self.context.values(), self.payload(number), *self.case.written[1:])
            assert self.number_in(row) == number
        assert row.model_dump().items() >= self.context.items()

    def number_in(self, row: Any) -> int | None:
        if row is None or getattr(row, "removed", False):
            return None
        if self.case.domain == "candle":
            return int(row.volume)
        return (row.positions[0] if self.case.domain == "risk" else row.payload)["n"]

    async def read(self) -> int | None:
        return self.number_in(await self.db.find_by_context(**self.context))

    async def forget(self) -> None:
        await getattr(self.container, f"{self.case.domain}_cache_service").clear()

    async def create_many(self) -> None:
        await self.db.create_many(*list(self.context.values())[:-1], [self.payload(NEW)])

    async def upsert_many(self) -> None:
        await self.db.upsert_many(self.context["backtest"], [self.payload(NEW)])

    async def clear_bucket(self) -> None:
        await self.db.clear_bucket(self.context["bucket"])

    async def restore(self) -> None:
        fields = {"positions" if self.case.domain == "risk" else "payload": self.payload(NEW)}
        fields |= {name: self.case.document[name] for name in ("when", "removed") if name in self.case.document}
        await self.db.mongo_store.restore([(self.db.context_type(**self.context), fields)])

    async def list_all(self) -> int | None:
        wire = {name: value for name, value in self.context.items() if value != "interval"}
        [row] = await self.db.find_all(wire)
        assert await self.db.count(wire) == 1
        return self.number_in(row)


def _service_operations(case: Case) -> list[Operation]:
    """Those that the adapters do not call; the adapters of the other domains are their `upsert` and lookups."""
    operations = [Operation("list", lambda place: place.list_all(), OLD, OLD, reads=True)]
    if case.domain in ("candle", "log", "notification", "storage"):
        operations += [FIRST_WRITE, COLD_READ]
    if case.domain != "candle":
        operations.append(Operation("restore", lambda place: place.restore(), None, NEW))
    if case.domain in ("notification", "storage"):
        operations.append(OVERWRITE)
        operations.append(Operation("upsert many", lambda place: place.upsert_many(), OLD, NEW))
    if case.domain in ("candle", "log"):
        operations.append(Operation("create many", lambda place: place.create_many(), None, NEW))
    if case.domain == "interval":
        operations.append(Operation("clear bucket", lambda place: place.clear_bucket(), OLD, None, elsewhere=True))
    return operations


_SERVICES = [
    pytest.param(driver, case, id=f"{driver}-{case}")
    for driver in ("motor", "pymongo")
    for case in CASES
    if driver == "pymongo" or case.domain in _OF_EACH_KIND
]


@pytest.mark.parametrize(("driver", "case"), _SERVICES, indirect=["driver"])
async def test_every_db_service(container: Container, witness: Container, drivers: Drivers, case: Case) -> None:
    """Reads, lists and writes of every db service keep their promises, those of many rows included."""
    numbers = count()

    async def place() -> tuple[Place, Place]:
        number = next(numbers)
        return ServicePlace(case, container, number), ServicePlace(case, witness, number)

    first, other = await place()
    await first.write(OLD)
    await other.read()
    for operation in _service_operations(case):
        points = await enumerate_points(drivers, operation, place)
        assert min(points.values()) >= 1, points
    if case.domain != "interval":  # `clear_bucket` leaves ids of what it has deleted
        await check_cache(container, case.domain)


# --- the first operation, which prepares the collection ---


async def test_the_first_operation(settings: Settings, witness: Container, drivers: Drivers, driver: str) -> None:
    """On an empty database, with a container that has just been made: no lock is left held, no index is left out."""
    case = next(case for case in CASES if case.domain == "memory")
    client = monitored_client(settings, driver, Commands())
    collection = witness.mongo_service.collection(case.collection)
    containers: list[Container] = []
    numbers = count()

    async def place() -> tuple[Place, Place]:
        if containers:  # the attempt before this one has ended with a write
            indexes = await collection.index_information()
            assert [index["key"] for index in indexes.values() if index.get("unique")] == [
                [(field, 1) for field in case.index]
            ]
            assert len(indexes) == 3
        await collection.drop()
        containers.append(Container(settings, mongo_client=client))
        number = next(numbers)
        return ServicePlace(case, containers[-1], number), ServicePlace(case, witness, number)

    first, other = await place()
    await first.write(OLD)
    await other.read()
    points = await enumerate_points(drivers, replace(FIRST_WRITE, elsewhere=True), place)
    assert {fault: number for fault, number in points.items() if number < 3 and not fault.at_await} == {}
    for container in containers:
        await container.close()
    await close_client(client)


# --- maps ---


@dataclass(frozen=True)
class MapPlace:
    """A key of a map."""

    map: BaseMap
    key: str
    first_wins = False
    says_what_was_stored = False

    async def write(self, number: int) -> None:
        await self.map.set(self.key, str(number))

    async def read(self) -> int | None:
        value = await self.map.get(self.key)
        return None if value is None else int(value)

    async def forget(self) -> None: ...

    async def set_many(self) -> None:
        await self.map.set_many([(self.key, str(NEW)), (f"{self.key}-2", str(NEW))])

    async def delete(self) -> None:
        await self.map.delete(self.key)

    async def has(self) -> int:
        assert await self.map.has(self.key)
        return OLD

    async def iterate(self) -> int:
        return int(dict(await self.map.to_array())[self.key])

    async def clear(self) -> None:
        await self.map.clear()

    async def size(self) -> int:
        return OLD if await self.map.size() else 0


MAP_OPERATIONS = (
    FIRST_WRITE,
    OVERWRITE,
    READ,
    Operation("has", lambda place: place.has(), OLD, OLD, reads=True),
    Operation("set many", lambda place: place.set_many(), OLD, NEW),
    Operation("delete", lambda place: place.delete(), OLD, None),
    Operation("iterate", lambda place: place.iterate(), OLD, OLD, reads=True),
    Operation("size", lambda place: place.size(), OLD, OLD, reads=True),
    Operation("clear", lambda place: place.clear(), OLD, None, elsewhere=True),
)
MAP_FAULTS = tuple(fault for fault in FAULTS if fault is not HELD)
"""A map is not fenced against a cancelled command that is still on its way: Redis is never the truth."""


@pytest.mark.parametrize("driver", ["pymongo"], indirect=True)  # of MongoDB, which no map asks
@pytest.mark.parametrize("ttl", [-1, 60])
async def test_every_map(container: Container, witness: Container, drivers: Drivers, ttl: int) -> None:
    """The methods of a map, with and without expiry; what a write that failed has done is not known."""
    ours = base_map("map", ttl)(container.redis_service)
    numbers = count()

    async def place() -> tuple[Place, Place]:
        here = MapPlace(ours, f"k{next(numbers)}")
        return here, here

    await (await place())[0].write(OLD)
    for operation in MAP_OPERATIONS:
        points = await enumerate_points(drivers, operation, place, MAP_FAULTS)
        assert min(points.values()) >= 1, points
