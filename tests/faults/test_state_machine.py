"""Two clients of one store, told at random what to do, against a dict; Hypothesis shortens what makes them differ."""

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck
from hypothesis import settings as profile
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test
from pydantic import SecretStr
from pymongo import AsyncMongoClient

from backtest_persist import Container, Registry, Settings
from backtest_persist.connections.circuit import CircuitBreaker
from backtest_persist.testing.subjects import EARLY, START, Parts, Subject, candle, subject_named
from tests.support.servers import PrivateMongo, PrivateRedis, without_primary

SIGNAL, STATE, RISK = map(subject_named, ("signal", "state", "risk"))
MEASURE, MEMORY, STORAGE = map(subject_named, ("measure", "memory", "storage"))
SUBJECTS = (SIGNAL, STATE, RISK, MEASURE, MEMORY, STORAGE)
"""One domain of each kind."""
CANDLES = 4
PATIENCE = 0.02
"""For how many seconds an operation may end without a primary; it must not."""

clients = st.integers(0, 1)
subjects = st.sampled_from(SUBJECTS)
keys = st.integers(0, 2)
whens = st.sampled_from((EARLY - 1, EARLY, EARLY + 1))
SPOILS = st.sampled_from(["swap", "flush", "", "junk", "f" * 24, "ü", "x" * 1000])


class Store(RuleBasedStateMachine):
    """The rules; a subclass names the store. Each example has different contexts."""

    runner: ClassVar[asyncio.Runner]
    registries: ClassVar[tuple[Registry, Registry]]
    examples = count()

    def __init__(self) -> None:
        super().__init__()
        self.values: dict[tuple[Subject, int], tuple[dict[str, Any], int]] = {}
        self.removed: set[tuple[Subject, int]] = set()
        self.candles: dict[int, float] = {}
        self.number = count(1)

    def run(self, call: Coroutine[Any, Any, Any]) -> Any:
        """Rules are not asynchronous; the loop stays the same for all examples."""
        return self.runner.run(call)

    @initialize(empty=st.booleans())
    def begin(self, empty: bool) -> None:
        self.example = next(self.examples)
        for subject in () if empty else SUBJECTS:
            self.write_all_at_once(subject=subject, client=0, when=EARLY)

    def parts(self, subject: Subject, key: int) -> Parts:
        """A context of this example; lists have no context but the mode, and are told apart by their ids."""
        names = [f"{name}-{self.example}-" if isinstance(name, str) else name for name in subject.sample]
        position = max(index for index, name in enumerate(names) if isinstance(name, str))
        names[position] = f"{names[position]}{key}"
        return tuple(names)

    def expected(self, subject: Subject, key: int, when: int = EARLY + 1) -> dict[str, Any] | None:
        value, since = self.values.get((subject, key), (None, 0))
        return value if not subject.timed or since <= when else None

    @rule(subject=subjects, key=keys, client=clients, when=whens)
    def write(self, subject: Subject, key: int, client: int, when: int) -> None:
        value = {"n": next(self.number)}
        self.run(subject.write(self.registries[client], self.parts(subject, key), value, when))
        self._remember(subject, key, value, when)

    def _remember(self, subject: Subject, key: int, value: dict[str, Any], when: int) -> None:
        self.values[subject, key] = value, when
        self.removed.discard((subject, key))

    @rule(subject=subjects, client=clients, when=whens)
    def write_all_at_once(self, subject: Subject, client: int, when: int) -> None:
        writes = {key: {"n": next(self.number)} for key in range(3)}

        async def together() -> None:
            registry = self.registries[client]
            await asyncio.gather(
                *(subject.write(registry, self.parts(subject, key), value, when) for key, value in writes.items())
            )

        self.run(together())
        for key, value in writes.items():
            self._remember(subject, key, value, when)

    @rule(client=clients)
    def read_everything(self, client: int) -> None:
        """Read one value after the other, each by its own command."""
        for subject in SUBJECTS:
            for key in range(3):
                found = self.run(subject.read(self.registries[client], self.parts(subject, key)))
                assert found == self.expected(subject, key), (subject.name, key)

    @rule(
        subject=st.sampled_from([subject for subject in SUBJECTS if subject.timed]),
        key=keys,
        client=clients,
        when=whens,
    )
    def read_in_the_past(self, subject: Subject, key: int, client: int, when: int) -> None:
        found = self.run(subject.read(self.registries[client], self.parts(subject, key), when=when))
        assert found == self.expected(subject, key, when)

    @rule(subject=subjects, client=clients)
    def read_all_at_once(self, subject: Subject, client: int) -> None:
        found = self.run(subject.read_many(self.registries[client], [self.parts(subject, key) for key in range(3)]))
        assert found == [self.expected(subject, key) for key in range(3)]

    @rule(subject=st.sampled_from([MEASURE, MEMORY]), key=keys, client=clients)
    def remove(self, subject: Subject, key: int, client: int) -> None:
        self.run(subject.remove(self.registries[client], self.parts(subject, key)))
        if self.values.pop((subject, key), None):
            self.removed.add((subject, key))

    @rule(subject=st.sampled_from([MEASURE, MEMORY, STORAGE]), client=clients)
    def list_keys(self, subject: Subject, client: int) -> None:
        listed = self.run(subject.keys(self.registries[client], self.parts(subject, 0)))
        living = {self.parts(subject, key)[-1] for other, key in self.values if other is subject}
        assert {key for key in listed if f"-{self.example}-" in key} == living
        assert len(set(listed)) == len(listed)

    @rule(key=keys, client=clients)
    def has(self, key: int, client: int) -> None:
        async def ask() -> bool:
            parts = self.parts(MEMORY, key)
            return await (await self.registries[client].memory(*parts[:-1])).has_memory_data(parts[-1])

        assert self.run(ask()) == ((MEMORY, key) in self.values or (MEMORY, key) in self.removed)

    @rule(numbers=st.lists(st.integers(0, CANDLES - 1), min_size=1), client=clients)
    def write_candles(self, numbers: list[int], client: int) -> None:
        volume = float(next(self.number))

        async def write() -> None:
            series = await self.registries[client].candle("s", "1m", f"e{self.example}")
            await series.write_candles_data([candle(number, volume=volume) for number in numbers])

        self.run(write())
        for number in numbers:
            self.candles.setdefault(number, volume)

    @rule(first=st.integers(0, CANDLES - 1), limit=st.integers(0, CANDLES), client=clients)
    def read_candles(self, first: int, limit: int, client: int) -> None:
        async def read() -> Any:
            series = await self.registries[client].candle("s", "1m", f"e{self.example}")
            return await series.read_candles_data(limit, START + first * 60_000)

        window = range(first, first + limit)
        whole = all(number in self.candles for number in window)
        expected = [candle(number, volume=self.candles[number]) for number in window] if whole else None
        assert self.run(read()) == expected


@dataclass(frozen=True)
class Servers:
    """The servers behind the registries of a store, which rules disturb."""

    container: Container
    redis: PrivateRedis
    admin: AsyncMongoClient[dict[str, Any]]


class OnServers(Store):
    """Two containers over one MongoDB and one Redis, neither of which is always there."""

    servers: ClassVar[Servers]

    def __init__(self) -> None:
        super().__init__()
        self.redis_is_up = True

    def teardown(self) -> None:
        if not self.redis_is_up:
            self.run(self.servers.redis.start())

    @precondition(lambda self: self.redis_is_up)
    @rule(how=SPOILS)
    def spoil_redis(self, how: str) -> None:
        """All entries are lost, or lead to another document of the domain, or are junk."""

        async def spoil() -> None:
            if how == "flush":
                await self.servers.redis.flush()
                return
            for subject in SUBJECTS:
                rows = await getattr(self.servers.container, f"{subject.name}_db_service").find_all()
                cache = getattr(self.servers.container, f"{subject.name}_cache_service")
                own = [row for row in rows if f"-{self.example}-" in row.cache_key]
                for row, other in zip(own, [*own[1:], *own[:1]], strict=True):
                    await cache.set(row.cache_key, other.id if how == "swap" else how)

        self.run(spoil())

    @precondition(lambda self: self.redis_is_up)
    @rule(at_once=st.booleans())
    def kill_redis(self, at_once: bool) -> None:
        """Redis dies, and is started again at once, or later, or not before the end of the example."""
        self.run(self.servers.redis.kill())
        self.redis_is_up = False
        if at_once:
            self.start_redis()

    @precondition(lambda self: not self.redis_is_up)
    @rule()
    def start_redis(self) -> None:
        self.run(self.servers.redis.start())
        self.redis_is_up = True

    @rule(subject=subjects)
    def delete_all_documents(self, subject: Subject) -> None:
        """Another program drops what this example has stored in a domain, under a warm Redis."""

        async def drop() -> None:
            db = getattr(self.servers.container, f"{subject.name}_db_service")
            await self.servers.container.mongo_service.collection(db.collection).delete_many({})

        self.run(drop())
        self.values = {place: value for place, value in self.values.items() if place[0] is not subject}
        self.removed = {place for place in self.removed if place[0] is not subject}

    @rule(subject=subjects, client=clients, when=whens, early=st.booleans())
    def step_down(self, subject: Subject, client: int, when: int, early: bool) -> None:
        """The primary steps down after or before writes and reads are sent: they wait for the next one."""
        writes = {key: {"n": next(self.number)} for key in range(3)}

        def send() -> list[asyncio.Task[Any]]:
            ours, theirs = self.registries[client], self.registries[1 - client]
            parts = [self.parts(subject, key) for key in writes]
            writing = [
                subject.write(ours, part, value, when) for part, value in zip(parts, writes.values(), strict=True)
            ]
            return [asyncio.create_task(call) for call in (*writing, *(subject.read(theirs, part) for part in parts))]

        async def across() -> list[Any]:
            sent = send() if early else []
            async with without_primary(self.servers.admin):
                if not early:
                    sent = send()
                    done, _ = await asyncio.wait(sent, timeout=PATIENCE)
                    assert [task.result() for task in done] == []
            return await asyncio.gather(*sent)

        found = self.run(across())[len(writes) :]
        for (key, value), seen in zip(writes.items(), found, strict=True):
            assert seen in (value, self.expected(subject, key)), (subject.name, key)
            self._remember(subject, key, value, when)


def explore(store: type[Store], examples: int) -> None:
    """Let Hypothesis run so many examples."""
    run_state_machine_as_test(
        store,
        settings=profile(
            max_examples=examples,
            stateful_step_count=30,
            deadline=None,
            derandomize=True,
            database=None,
            report_multiple_bugs=False,
            suppress_health_check=[HealthCheck.too_slow],
        ),
    )


EXAMPLES = [pytest.param(50), pytest.param(500, marks=pytest.mark.soak)]


@pytest.mark.parametrize("examples", EXAMPLES)
def test_mongo(
    mongo_settings: Settings, mongo: PrivateMongo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, examples: int
) -> None:
    """Two containers over one pair of servers; Redis is killed now and then, and the primary steps down."""
    monkeypatch.setattr(CircuitBreaker, "FIRST_PAUSE_SECONDS", 0.01)  # examples are short
    monkeypatch.setattr(CircuitBreaker, "LONGEST_PAUSE_SECONDS", 0.04)
    redis = PrivateRedis(tmp_path)
    settings = mongo_settings.model_copy(update={"redis_url": SecretStr(f"unix://{redis.socket}")})
    with asyncio.Runner() as loop:
        loop.run(redis.start())
        ours, theirs = Container(settings), Container(settings)
        admin = AsyncMongoClient[dict[str, Any]](mongo.direct_uri)

        class Mongo(OnServers):
            runner = loop
            registries = (Registry(ours), Registry(theirs))
            servers = Servers(ours, redis, admin)

        try:
            explore(Mongo, examples)
        finally:
            for closing in (ours.close(), theirs.close(), admin.close(), redis.kill()):
                loop.run(closing)


@pytest.mark.parametrize("examples", EXAMPLES)
def test_json(tmp_path: Path, examples: int) -> None:
    """Two registries over one directory."""
    with asyncio.Runner() as loop:
        first, second = Registry(), Registry()
        first.use_json(tmp_path)
        second.use_json(tmp_path)

        class Json(Store):
            runner = loop
            registries = (first, second)

        explore(Json, examples)
