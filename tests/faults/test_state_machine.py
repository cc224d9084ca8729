"""Two clients of one store, told at random what to do, against a dict; Hypothesis shortens what makes them differ."""

import asyncio
from collections.abc import Coroutine
from itertools import count
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck
from hypothesis import settings as profile
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from backtest_persist import Container, Registry, Settings
from backtest_persist.testing.domains import MEMORY, SIGNAL, START, STATE, STORAGE, Domain, Parts, candle, pick

(MEASURE,) = pick("measure")
(RISK,) = pick("risk")
KEPT = (SIGNAL, STATE, RISK, MEASURE, MEMORY, STORAGE)
"""One domain of each kind."""
CANDLES = 4

clients = st.integers(0, 1)
domains = st.sampled_from(KEPT)
keys = st.integers(0, 2)
whens = st.integers(1, 3)
SPOILS = st.sampled_from(["swap", "flush", "", "junk", "f" * 24, "ü", "x" * 1000])


class Store(RuleBasedStateMachine):
    """The rules; a subclass says where the store is. Each example has contexts of its own."""

    runner: ClassVar[asyncio.Runner]
    registries: ClassVar[tuple[Registry, Registry]]
    containers: ClassVar[tuple[Container, Container] | None] = None
    examples = count()

    def __init__(self) -> None:
        super().__init__()
        self.values: dict[tuple[Domain, int], tuple[dict[str, Any], int]] = {}
        self.removed: set[tuple[Domain, int]] = set()
        self.candles: dict[int, float] = {}
        self.number = count(1)

    def run(self, call: Coroutine[Any, Any, Any]) -> Any:
        """Rules are not asynchronous; the loop stays the same for all examples."""
        return self.runner.run(call)

    @initialize(empty=st.booleans())
    def begin(self, empty: bool) -> None:
        self.example = next(self.examples)
        for domain in () if empty else KEPT:
            self.write_all_at_once(domain=domain, client=0, when=2)

    def parts(self, domain: Domain, key: int) -> Parts:
        """A context of this example; lists have no context but the mode, and are told apart by their ids."""
        names = [f"{name}-{self.example}-" if isinstance(name, str) else name for name in domain.sample]
        position = max(index for index, name in enumerate(names) if isinstance(name, str))
        names[position] = f"{names[position]}{key}"
        return tuple(names)

    def expected(self, domain: Domain, key: int, when: int = 3) -> dict[str, Any] | None:
        value, since = self.values.get((domain, key), (None, 0))
        return value if not domain.timed or since <= when else None

    @rule(domain=domains, key=keys, client=clients, when=whens)
    def write(self, domain: Domain, key: int, client: int, when: int) -> None:
        value = {"n": next(self.number)}
        self.run(domain.write(self.registries[client], self.parts(domain, key), value, when))
        self._remember(domain, key, value, when)

    def _remember(self, domain: Domain, key: int, value: dict[str, Any], when: int) -> None:
        self.values[domain, key] = value, when
        self.removed.discard((domain, key))

    @rule(domain=domains, client=clients, when=whens)
    def write_all_at_once(self, domain: Domain, client: int, when: int) -> None:
        writes = {key: {"n": next(self.number)} for key in range(3)}

        async def together() -> None:
            registry = self.registries[client]
            await asyncio.gather(
                *(domain.write(registry, self.parts(domain, key), value, when) for key, value in writes.items())
            )

        self.run(together())
        for key, value in writes.items():
            self._remember(domain, key, value, when)

    @rule(client=clients)
    def read_everything(self, client: int) -> None:
        """One after the other, each by a command of its own."""
        for domain in KEPT:
            for key in range(3):
                found = self.run(domain.read(self.registries[client], self.parts(domain, key)))
                assert found == self.expected(domain, key), (domain.name, key)

    @rule(domain=st.sampled_from([domain for domain in KEPT if domain.timed]), key=keys, client=clients, when=whens)
    def read_in_the_past(self, domain: Domain, key: int, client: int, when: int) -> None:
        found = self.run(domain.read(self.registries[client], self.parts(domain, key), when=when))
        assert found == self.expected(domain, key, when)

    @rule(domain=domains, client=clients)
    def read_all_at_once(self, domain: Domain, client: int) -> None:
        found = self.run(domain.read_many(self.registries[client], [self.parts(domain, key) for key in range(3)]))
        assert found == [self.expected(domain, key) for key in range(3)]

    @rule(domain=st.sampled_from([MEASURE, MEMORY]), key=keys, client=clients)
    def remove(self, domain: Domain, key: int, client: int) -> None:
        self.run(domain.remove(self.registries[client], self.parts(domain, key)))
        if self.values.pop((domain, key), None):
            self.removed.add((domain, key))

    @rule(domain=st.sampled_from([MEASURE, MEMORY, STORAGE]), client=clients)
    def list_keys(self, domain: Domain, client: int) -> None:
        listed = self.run(domain.keys(self.registries[client], self.parts(domain, 0)))
        living = {self.parts(domain, key)[-1] for other, key in self.values if other is domain}
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

    # --- what happens to Redis, and to documents ---

    def on_mongo(self) -> bool:
        return self.containers is not None

    def container(self) -> Container:
        assert self.containers is not None
        return self.containers[0]

    @precondition(on_mongo)
    @rule(how=SPOILS)
    def spoil_redis(self, how: str) -> None:
        """All entries are lost, or lead to another document of the domain, or are junk."""

        async def spoil() -> None:
            if how == "flush":
                client: Any = self.container().redis_service.client
                await client.flushall()
                return
            for domain in KEPT:
                rows = await getattr(self.container(), f"{domain.name}_db_service").find_all()
                cache = getattr(self.container(), f"{domain.name}_cache_service")
                own = [row for row in rows if f"-{self.example}-" in row.cache_key]
                for row, other in zip(own, [*own[1:], *own[:1]], strict=True):
                    await cache.set(row.cache_key, other.id if how == "swap" else how)

        self.run(spoil())

    @precondition(on_mongo)
    @rule(domain=domains)
    def delete_all_documents(self, domain: Domain) -> None:
        """Another program drops what this example has stored in a domain, under a warm Redis."""

        async def drop() -> None:
            db = getattr(self.container(), f"{domain.name}_db_service")
            await self.container().mongo_service.collection(db.collection).delete_many({})

        self.run(drop())
        self.values = {place: value for place, value in self.values.items() if place[0] is not domain}
        self.removed = {place for place in self.removed if place[0] is not domain}


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
            suppress_health_check=[HealthCheck.too_slow],
        ),
    )


EXAMPLES = [pytest.param(50), pytest.param(500, marks=pytest.mark.soak)]


@pytest.mark.parametrize("examples", EXAMPLES)
def test_mongo(settings: Settings, examples: int) -> None:
    """Two containers over one pair of servers."""
    with asyncio.Runner() as loop:
        ours, theirs = Container(settings), Container(settings)

        class OnMongo(Store):
            runner = loop
            registries = (Registry(ours), Registry(theirs))
            containers = (ours, theirs)

        try:
            explore(OnMongo, examples)
        finally:
            loop.run(ours.close())
            loop.run(theirs.close())


@pytest.mark.parametrize("examples", EXAMPLES)
def test_json(tmp_path: Path, examples: int) -> None:
    """Two registries over one directory."""
    with asyncio.Runner() as loop:
        first, second = Registry(), Registry()
        first.use_json(tmp_path)
        second.use_json(tmp_path)

        class OnJson(Store):
            runner = loop
            registries = (first, second)

        explore(OnJson, examples)
