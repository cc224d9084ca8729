"""Every operation, disturbed at every await and at every call of a driver: the value is old or new, and can be written.

What is disturbed, and when, is enumerated to the end (see `enumerator`); nothing here is random.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from typing import Any, Protocol
from uuid import uuid4

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
from backtest_persist.connections import RedisService
from backtest_persist.testing.domains import DOMAINS, LISTS, REMOVABLE, Domain, Parts
from tests.cases import CASES, WHEN, Case
from tests.faults.enumerator import FAULTS, HELD, Drivers, Fault, counted_drivers

OLD, NEW, LATER = 1, 2, 3
PATIENCE = 0.03
"""For how many seconds a later write may pass an earlier one that is held back; it must not."""


class Place(Protocol):
    """Where one value is kept that nothing else touches."""

    @property
    def first_wins(self) -> bool:
        """Whether what is stored stays."""
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

    def __str__(self) -> str:
        return self.name


@pytest.fixture(autouse=True)
def _breaker_without_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each attempt asks Redis, whatever the one before it has met."""
    monkeypatch.setattr(RedisService, "FIRST_PAUSE_SECONDS", 0.0)
    monkeypatch.setattr(RedisService, "LONGEST_PAUSE_SECONDS", 0.0)


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """Let the driver look at the server now and then, not all the time, so that the tasks that are left are ours."""
    uri = settings.mongo_connection_string.get_secret_value()
    return settings.model_copy(update={"mongo_connection_string": SecretStr(f"{uri}&serverMonitoringMode=poll")})


@pytest.fixture
def drivers() -> Iterator[Drivers]:
    """The drivers, whose calls can be disturbed."""
    with counted_drivers() as drivers:
        yield drivers


@pytest.fixture
async def witness(settings: Settings) -> AsyncIterator[Container]:
    """Another client of the same database, with a part of Redis of its own."""
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

    `place` gives a place as the client under test sees it, and as another one does.
    """
    points = dict.fromkeys(faults, 0)
    for fault in faults:
        for number in count(1):
            ours, theirs = await place()
            try:
                if not await _disturb(drivers, operation, fault, number, ours, theirs):
                    break
            except Exception as error:
                error.add_note(f"{operation}: {fault} at point {number}")
                raise
            points[fault] = number
    return points


async def _disturb(
    drivers: Drivers, operation: Operation, fault: Fault, number: int, ours: Place, theirs: Place
) -> bool:
    before, after = operation.before, operation.after
    if before is not None:
        await ours.write(before)
    if operation.cold:
        await ours.forget()
    background = asyncio.all_tasks()
    outcome = await drivers.attempt(fault, number, lambda: operation.run(ours))
    error = outcome.error
    expected = (
        (asyncio.CancelledError,)
        if fault.what == "cancelled"
        else (TimeoutError,)
        if fault.what == "timeout"
        else (BacktestPersistError,)
    )
    assert error is None or (outcome.met and isinstance(error, expected)), repr(error)
    if error is None and operation.reads:
        assert outcome.value == before
    if error is None:
        possible = {after}
    elif isinstance(error, StoreUnavailableError | WriteRejectedError):
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
    assert (await ours.read(), await theirs.read()) == (seen, seen), "an earlier write came after a later one"
    return outcome.met


async def _settled(background: set[asyncio.Task[Any]]) -> None:
    """Wait until no task is left but those of before."""
    left: set[asyncio.Task[Any]] = set()
    with suppress(TimeoutError):
        async with asyncio.timeout(2):
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

    domain: Domain
    container: Container
    registry: Registry
    parts: Parts

    @property
    def first_wins(self) -> bool:
        return self.domain.name in ("candle", "log")

    async def write(self, number: int) -> None:
        await self.domain.write(self.registry, self.parts, {"n": number})

    async def read(self) -> int | None:
        value = await self.domain.read(self.registry, self.parts)
        return None if value is None else int(value["n"])

    async def forget(self) -> None:
        await getattr(self.container, f"{self.domain.name}_cache_service").clear()

    async def remove(self) -> None:
        await self.domain.remove(self.registry, self.parts)

    async def keys(self) -> None:
        keys = await self.domain.keys(self.registry, self.parts)
        assert self.parts[-1] in keys


OVERWRITE = Operation("overwrite", lambda place: place.write(NEW), before=OLD, after=NEW)
FIRST_WRITE = Operation("first write", lambda place: place.write(NEW), before=None, after=NEW)
READ = Operation("read", lambda place: place.read(), before=OLD, after=OLD, reads=True)
COLD_READ = Operation("cold read", lambda place: place.read(), before=OLD, after=OLD, reads=True, cold=True)
READ_NOTHING = Operation("read nothing", lambda place: place.read(), before=None, after=None, reads=True)
REMOVE = Operation("remove", lambda place: place.remove(), before=OLD, after=None)
KEYS = Operation("keys", lambda place: place.keys(), before=OLD, after=OLD)


def _adapter_operations(domain: Domain) -> list[Operation]:
    operations = [FIRST_WRITE, READ]
    if domain.name not in ("candle", "log"):
        operations.append(OVERWRITE)
    if domain.kind not in ("candles", "list"):
        operations += [COLD_READ, READ_NOTHING]
    if domain in REMOVABLE:
        operations.append(REMOVE)
    if domain in REMOVABLE or domain in LISTS:
        operations.append(KEYS)
    return operations


@pytest.mark.parametrize("domain", DOMAINS, ids=str)
async def test_every_adapter(container: Container, witness: Container, drivers: Drivers, domain: Domain) -> None:
    """Reads and writes of the fifteen adapters."""
    ours, theirs = Registry(container), Registry(witness)
    numbers = count()

    async def place() -> tuple[Place, Place]:
        parts = domain.numbered(next(numbers))
        return AdapterPlace(domain, container, ours, parts), AdapterPlace(domain, witness, theirs, parts)

    first, other = await place()
    await first.write(OLD)
    await other.read()
    for operation in _adapter_operations(domain):
        points = await enumerate_points(drivers, operation, place)
        assert min(points.values()) >= 1, points
    await check_cache(container, domain.name)
