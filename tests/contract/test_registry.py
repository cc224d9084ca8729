"""The registry: the class behind an entry, one instance per context, initialised once."""

import asyncio
import inspect
from enum import Enum
from pathlib import Path
from typing import Any

import pytest

from backtest_persist import Container, InvalidKeyError, PersistScheduleInstance, Registry, SettingsError, contracts
from backtest_persist.backends.dummy import DummyBackend
from backtest_persist.backends.json.backend import JsonBackend
from backtest_persist.backends.mongo import MongoBackend
from backtest_persist.domains import DOMAINS
from tests.support.cases import ADAPTER_CONTEXTS

PROTOCOLS: dict[str, Any] = {domain.name: getattr(contracts, f"{domain.name.title()}Adapter") for domain in DOMAINS}
BAD_NAMES: list[Any] = ["", "a\0b", "\ud800", None, 5, True, b"a", ["a"], {"$gt": ""}]
BAD_FLAGS: list[Any] = [1, 1.0, 0, "true", None, [True]]


class Recorder:
    """A user's signal adapter, which keeps its row in the instance."""

    def __init__(self, symbol: str, strategy_name: str, exchange_name: str) -> None:
        self.context = symbol, strategy_name, exchange_name
        self.initialised: list[bool] = []
        self.row: Any = None

    async def wait_for_init(self, initial: bool) -> None:
        self.initialised.append(initial)
        await asyncio.sleep(0)

    async def read_signal_data(self) -> Any:
        return self.row

    async def write_signal_data(self, row: Any) -> None:
        self.row = row


@pytest.fixture
def persist() -> Registry:
    """A registry without servers."""
    persist = Registry()
    persist.use_dummy()
    return persist


def backends(place: Path) -> list[contracts.Backend]:
    return [MongoBackend(Container()), JsonBackend(place), DummyBackend()]


def test_every_backend_builds_an_adapter_for_every_domain_without_any_io(tmp_path: Path) -> None:
    """All satisfy their runtime-checkable protocols, are called by position, and touch neither servers nor disk."""
    place = tmp_path / "not yet"
    for backend in backends(place):
        for domain, protocol in PROTOCOLS.items():
            adapter = backend[domain](*ADAPTER_CONTEXTS[domain])
            assert isinstance(adapter, protocol)
    assert not place.exists()


def test_every_entry_takes_what_its_adapter_takes() -> None:
    """The registry spells out an entry for each domain, with the parameters of the adapter by name and in order."""
    for domain in DOMAINS:
        declared: Any = inspect.getattr_static(Registry, domain.name)
        assert list(declared.signature.parameters.values())[1:] == [
            parameter.replace(annotation=declared.signature.parameters[name].annotation)
            for name, parameter in domain.signature.parameters.items()
        ]


async def test_an_entry_memoises_one_instance_per_context(persist: Registry) -> None:
    """The same context, by position or keyword or concurrently, is one instance; another context is another one."""
    first, second = await asyncio.gather(persist.signal("s", "t", "e"), persist.signal("s", "t", "e"))
    assert first is second
    assert await persist.signal(exchange_name="e", symbol="s", strategy_name="t") is first
    assert await persist.signal("s", "t", "other") is not first
    persist.signal.clear()
    assert await persist.signal("s", "t", "e") is not first


async def test_an_instance_is_initialised_once_before_anybody_has_it(persist: Registry) -> None:
    """Ten that ask at once wait for one initialisation, with `initial` True."""
    persist.signal.use(Recorder)
    instances = await asyncio.gather(*(persist.signal("s", "t", "e") for _ in range(10)))
    for instance in instances:
        assert isinstance(instance, Recorder)
        assert instance.initialised == [True]


async def test_use_swaps_one_domain_and_forgets_its_instances(persist: Registry, container: Container) -> None:
    """A user's class replaces the adapter of its domain, until another backend replaces those of every domain."""
    signal, schedule = await persist.signal("s", "t", "e"), await persist.schedule("s", "t", "e")
    persist.signal.use(Recorder)
    mine = await persist.signal("s", "t", exchange_name="e")
    assert isinstance(mine, Recorder)
    assert mine.context == ("s", "t", "e")
    assert await persist.signal("s", "t", "e") is mine
    assert await persist.schedule("s", "t", "e") is schedule
    persist.use_dummy()
    again = await persist.signal("s", "t", "e")
    assert type(again) is type(signal)
    assert again is not signal
    assert await persist.schedule("s", "t", "e") is not schedule

    on_mongo = Registry(container)
    default: Any = await on_mongo.signal("s", "t", "e")
    on_mongo.use_dummy()
    on_mongo.use_mongo()
    back: Any = await on_mongo.signal("s", "t", "e")
    assert back.db is default.db is container.signal_db_service
    assert back is not default


async def test_use_takes_any_mapping_of_domains_to_factories(persist: Registry) -> None:
    """Domains that are not overridden behave as those of the mapping; factories get the context by position."""
    persist.use({**DummyBackend(), "signal": Recorder})
    assert isinstance(await persist.signal("s", "t", "e"), Recorder)
    assert await (await persist.log()).read_log_data() == []


async def test_a_domain_that_a_backend_lacks_is_named_when_it_is_asked_for(persist: Registry) -> None:
    """Nothing of another backend is left behind the entry; a class of one's own can be put there."""
    persist.use({"signal": Recorder})
    await persist.signal("s", "t", "e")
    with pytest.raises(SettingsError, match="schedule"):
        await persist.schedule("s", "t", "e")
    persist.schedule.use(PersistScheduleInstance)
    persist.use_dummy()
    assert await (await persist.schedule("s", "t", "e")).read_schedule_data() is None


async def test_two_registries_share_nothing(tmp_path: Path) -> None:
    """Two registries of one process have different instances, classes and stores."""
    one, two = Registry(), Registry()
    one.use_json(tmp_path / "one")
    two.use_json(tmp_path / "two")
    mine, theirs = await one.signal("s", "t", "e"), await two.signal("s", "t", "e")
    await mine.write_signal_data({"n": 1})
    assert await theirs.read_signal_data() is None
    two.signal.use(Recorder)
    assert await one.signal("s", "t", "e") is mine
    assert await mine.read_signal_data() == {"n": 1}
    assert isinstance(await two.signal("s", "t", "e"), Recorder)


async def test_a_failed_initialisation_is_tried_again(persist: Registry) -> None:
    """wait_for_init that fails once is called again by the next request for the instance."""

    class Shaky(Recorder):
        attempts = 0

        async def wait_for_init(self, initial: bool) -> None:
            Shaky.attempts += 1
            if Shaky.attempts == 1:
                raise ConnectionError("not yet")

    persist.signal.use(Shaky)
    with pytest.raises(ConnectionError):
        await persist.signal("s", "t", "e")
    await persist.signal("s", "t", "e")
    await persist.signal("s", "t", "e")
    assert Shaky.attempts == 2


async def test_a_context_that_equals_a_memoised_one_is_still_checked(tmp_path: Path) -> None:
    """1 is not True: it is refused after True was used as well as before."""
    persist = Registry()
    persist.use_json(tmp_path)
    bad: Any = 1
    await persist.storage(True)
    with pytest.raises(InvalidKeyError):
        await (await persist.storage(bad)).read_storage_data()


async def test_a_context_that_cannot_be_hashed_is_refused_like_any_other(tmp_path: Path) -> None:
    """A dict or a list in the place of a name is an InvalidKeyError."""
    persist = Registry()
    persist.use_json(tmp_path)
    bad: Any = {"$gt": ""}
    with pytest.raises(InvalidKeyError):
        await (await persist.signal(bad, "t", "e")).read_signal_data()


@pytest.mark.parametrize("domain", ADAPTER_CONTEXTS)
async def test_an_entry_refuses_a_bad_context_whatever_stands_behind_it(persist: Registry, domain: str) -> None:
    """Every component is checked before an instance is built; a bad one leaves nothing behind."""
    persist.use_dummy()
    entry: Any = getattr(persist, domain)
    context = ADAPTER_CONTEXTS[domain]
    for place, good in enumerate(context):
        bad_ones = BAD_FLAGS if isinstance(good, bool) else BAD_NAMES
        if entry._domain.adapter_parameters[place] == "frame_name":  # live trading has none
            bad_ones = [bad for bad in bad_ones if bad != ""]
        for bad in [*bad_ones, "7m"] if good == "1m" else bad_ones:
            with pytest.raises(InvalidKeyError):
                await entry(*context[:place], bad, *context[place + 1 :])
    built: list[tuple[Any, ...]] = []

    def build(*parts: Any) -> Any:
        built.append(parts)
        return DummyBackend()[domain](*parts)

    entry.use(build)
    instance = await entry(*context)
    assert built == [context]
    assert [type(part) for part in built[0]] == [type(part) for part in context]
    assert await entry(*context) is instance


async def test_a_member_of_a_str_enum_is_the_context_of_its_content(persist: Registry) -> None:
    """Both spellings give one instance, which knows the content alone."""

    class Sym(str, Enum):  # noqa: UP042  # whose str() is the name of the member
        BTC = "BTCUSDT"

    persist.use_dummy()
    instance: Any = await persist.signal(Sym.BTC, "t", "e")
    assert type(instance.symbol) is str
    assert await persist.signal("BTCUSDT", "t", "e") is instance


async def test_an_entry_keeps_nothing_of_an_initialisation_that_has_ended(persist: Registry) -> None:
    """The attempts for a thousand contexts are gone when their instances are ready."""
    persist.use_dummy()
    await asyncio.gather(*(persist.state("sig", f"b{n % 500}") for n in range(1_000)))
    entry: Any = persist.state
    assert [len(attempts) for attempts in entry._attempts.values()] == [0]


@pytest.mark.parametrize("domain", ["dictionary", "memory", "session", "state"])
async def test_an_entry_forgets_an_adapter_that_was_disposed(persist: Registry, domain: str) -> None:
    """A run that disposes of each context it is done with does not grow; the next request builds another adapter."""
    entry: Any = getattr(persist, domain)
    context = ADAPTER_CONTEXTS[domain]
    first = await entry(*context)
    await first.dispose()
    assert (entry._instances, entry._ready) == ({}, set())
    second = await entry(*context)
    assert second is not first
    await first.dispose()  # once more, which is not about the second one
    assert await entry(*context) is second
    entry.clear()
    third = await entry(*context)
    await second.dispose()
    assert await entry(*context) is third
