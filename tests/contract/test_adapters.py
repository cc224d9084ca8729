"""The adapter contract: what strategy code may rely on, for each of the fifteen, through the registry."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from enum import Enum
from typing import Any

import pytest

from backtest_persist import Container, InvalidKeyError, InvalidPayloadError, InvalidWhenError, Registry, contracts

EARLY, LATE = 1_600_000_000_000, 1_700_000_000_000
BAD_WHENS: list[Any] = [None, True, float("nan"), 1.5, "2024-01-01", datetime(2024, 1, 1), 2**63]


@pytest.fixture
async def persist(container: Container) -> Registry:
    """A registry of the test's own."""
    return Registry(container)


async def collect(items: AsyncIterator[Any]) -> list[Any]:
    return [item async for item in items]


async def test_every_entry_gives_an_instance_of_its_contract(persist: Registry) -> None:
    """All fifteen instances satisfy their runtime-checkable protocol."""
    instances = {
        contracts.PersistCandleInstance: await persist.candle("s", "1m", "e"),
        contracts.PersistSignalInstance: await persist.signal("s", "t", "e"),
        contracts.PersistScheduleInstance: await persist.schedule("s", "t", "e"),
        contracts.PersistRiskInstance: await persist.risk("r", "e"),
        contracts.PersistPartialInstance: await persist.partial("s", "t", "e"),
        contracts.PersistBreakevenInstance: await persist.breakeven("s", "t", "e"),
        contracts.PersistStorageInstance: await persist.storage(True),
        contracts.PersistNotificationInstance: await persist.notification(True),
        contracts.PersistLogInstance: await persist.log(),
        contracts.PersistMeasureInstance: await persist.measure("b"),
        contracts.PersistIntervalInstance: await persist.interval("b"),
        contracts.PersistMemoryInstance: await persist.memory("sig", "b"),
        contracts.PersistRecentInstance: await persist.recent("s", "t", "e", "f", True),
        contracts.PersistStateInstance: await persist.state("sig", "b"),
        contracts.PersistSessionInstance: await persist.session("t", "e", "f", "s", True),
    }
    assert len(instances) == 15
    for contract, instance in instances.items():
        assert isinstance(instance, contract)


async def test_an_entry_memoises_one_instance_per_context(persist: Registry) -> None:
    """The same context, by position or keyword or concurrently, is one instance; another context is another one."""
    first, second = await asyncio.gather(persist.signal("s", "t", "e"), persist.signal("s", "t", "e"))
    assert first is second
    assert await persist.signal(exchange_name="e", symbol="s", strategy_name="t") is first
    assert await persist.signal("s", "t", "other") is not first


CONTEXTS: dict[str, tuple[Any, ...]] = {
    "breakeven": ("s", "t", "e"),
    "candle": ("s", "1m", "e"),
    "interval": ("b",),
    "measure": ("b",),
    "memory": ("sig", "b"),
    "notification": (True,),
    "partial": ("s", "t", "e"),
    "recent": ("s", "t", "e", "f", True),
    "risk": ("r", "e"),
    "schedule": ("s", "t", "e"),
    "session": ("t", "e", "f", "s", True),
    "signal": ("s", "t", "e"),
    "state": ("sig", "b"),
    "storage": (True,),
}
BAD_NAMES: list[Any] = ["", "a\0b", "\ud800", None, 5, True, b"a", ["a"], {"$gt": ""}]
BAD_FLAGS: list[Any] = [1, 1.0, 0, "true", None, [True]]


@pytest.mark.parametrize("domain", CONTEXTS)
async def test_an_entry_refuses_a_bad_context_whatever_stands_behind_it(persist: Registry, domain: str) -> None:
    """Every component is checked before an instance is built; a bad one leaves nothing behind."""
    persist.use_dummy()
    entry: Any = getattr(persist, domain)
    context = CONTEXTS[domain]
    for place, good in enumerate(context):
        bad_ones = BAD_FLAGS if isinstance(good, bool) else BAD_NAMES
        for bad in [*bad_ones, "7m"] if good == "1m" else bad_ones:
            with pytest.raises(InvalidKeyError):
                await entry(*context[:place], bad, *context[place + 1 :])
    instance = await entry(*context)
    assert instance.context == context
    assert [type(part) for part in instance.context] == [type(part) for part in context]
    assert await entry(*context) is instance


async def test_a_member_of_a_str_enum_is_the_context_of_its_content(persist: Registry) -> None:
    """Both spellings give one instance, which knows the content alone."""

    class Sym(str, Enum):  # noqa: UP042  # whose str() is the name of the member
        BTC = "BTCUSDT"

    persist.use_dummy()
    instance: Any = await persist.signal(Sym.BTC, "t", "e")
    assert type(instance.context[0]) is str
    assert await persist.signal("BTCUSDT", "t", "e") is instance


async def test_an_entry_holds_no_lock_when_nobody_waits(persist: Registry) -> None:
    """Locks of a thousand contexts are gone when their instances are ready, or their initialisation failed."""
    persist.use_dummy()
    await asyncio.gather(*(persist.state("sig", f"b{n % 500}") for n in range(1_000)))
    entry: Any = persist.state
    assert [len(locks) for locks in entry._locks.values()] == [0]


async def test_use_swaps_one_domain_and_forgets_its_instances(persist: Registry) -> None:
    """A class of one's own stands behind its domain only, until use_mongo swaps all back."""
    mongo_signal, mongo_schedule = await persist.signal("s", "t", "e"), await persist.schedule("s", "t", "e")

    class Recorder:
        def __init__(self, symbol: str, strategy_name: str, exchange_name: str) -> None:
            self.context = symbol, strategy_name, exchange_name
            self.initialised: list[bool] = []
            self.row: Any = None

        async def wait_for_init(self, initial: bool) -> None:
            self.initialised.append(initial)

        async def read_signal_data(self) -> Any:
            return self.row

        async def write_signal_data(self, row: Any) -> None:
            self.row = row

    persist.signal.use(Recorder)
    mine = await persist.signal("s", "t", exchange_name="e")
    assert isinstance(mine, Recorder)
    assert mine.context == ("s", "t", "e")
    assert mine.initialised == [True]
    assert await persist.signal("s", "t", "e") is mine
    assert await persist.schedule("s", "t", "e") is mongo_schedule
    persist.use_mongo()
    again = await persist.signal("s", "t", "e")
    assert type(again) is type(mongo_signal)
    assert again is not mongo_signal


async def test_a_failed_initialisation_is_tried_again(persist: Registry) -> None:
    """wait_for_init that fails once is called again by the next request for the instance."""

    class Shaky:
        attempts = 0

        def __init__(self, *context: Any) -> None:
            pass

        async def wait_for_init(self, initial: bool) -> None:
            Shaky.attempts += 1
            if Shaky.attempts == 1:
                raise ConnectionError("not yet")

        async def read_log_data(self) -> list[Any]:
            return []

        async def write_log_data(self, entries: Any) -> None:
            pass

    persist.log.use(Shaky)
    with pytest.raises(ConnectionError):
        await persist.log()
    await persist.log()
    await persist.log()
    assert Shaky.attempts == 2


@pytest.mark.parametrize("domain", ["signal", "schedule"])
async def test_a_signal_is_the_latest_value_and_none_closes_it(persist: Registry, domain: str) -> None:
    """Reading gives None before the first write, then the last value, then None after None was written."""
    instance: Any = await getattr(persist, domain)("BTCUSDT", "trend", "binance")
    read, write = getattr(instance, f"read_{domain}_data"), getattr(instance, f"write_{domain}_data")
    assert await read() is None
    await write({"id": "a", "priceOpen": 1.5})
    await write({"id": "b", "priceOpen": 2.5})
    assert await read() == {"id": "b", "priceOpen": 2.5}
    await write(None)
    assert await read() is None


@pytest.mark.parametrize("domain", ["recent", "state", "session"])
async def test_a_latest_value_hides_what_is_later_than_when(persist: Registry, domain: str) -> None:
    """A read with an earlier `when` sees nothing; with the same or a later one, or without, it sees the value."""
    context: tuple[Any, ...] = {
        "recent": ("s", "t", "e", "f", True),
        "state": ("sig", "bucket"),
        "session": ("t", "e", "f", "s", True),
    }[domain]
    instance: Any = await getattr(persist, domain)(*context)
    read, write = getattr(instance, f"read_{domain}_data"), getattr(instance, f"write_{domain}_data")
    assert await read() is None
    await write({"n": 1}, LATE)
    assert await read(when=LATE - 1) is None
    assert await read(when=LATE) == {"n": 1}
    assert await read(when=datetime.fromtimestamp(LATE / 1000, UTC)) == {"n": 1}
    assert await read() == {"n": 1}
    await write({"n": 0}, EARLY)  # the backtest starts over
    assert await read(when=EARLY) == {"n": 0}
    for bad in BAD_WHENS:
        with pytest.raises(InvalidWhenError):
            await write({"n": 2}, bad)
        if bad is not None:
            with pytest.raises(InvalidWhenError):
                await read(when=bad)
    assert await read() == {"n": 0}


async def test_positions_hide_what_is_later_than_when(persist: Registry) -> None:
    """The positions of a risk profile are a list, empty when absent or later than the reader's time."""
    risk = await persist.risk("max-2", "binance")
    assert await risk.read_position_data(LATE) == []
    await risk.write_position_data([["BTCUSDT", {"opened": EARLY}]], LATE)
    assert await risk.read_position_data(LATE - 1) == []
    assert await risk.read_position_data(LATE) == [["BTCUSDT", {"opened": EARLY}]]
    await risk.write_position_data([], EARLY)
    assert await risk.read_position_data(LATE) == []
    for bad in BAD_WHENS:
        with pytest.raises(InvalidWhenError):
            await risk.read_position_data(bad)
        with pytest.raises(InvalidWhenError):
            await risk.write_position_data([], bad)
    for bad_positions in ("text", None, {"a": 1}):
        with pytest.raises(InvalidPayloadError):
            await risk.write_position_data(bad_positions, LATE)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("domain", ["partial", "breakeven"])
async def test_marks_of_a_signal_hide_what_is_later_than_when(persist: Registry, domain: str) -> None:
    """The marks of a signal are a dict per signal id, empty when absent or later than the reader's time."""
    instance: Any = await getattr(persist, domain)("BTCUSDT", "trend", "binance")
    read, write = getattr(instance, f"read_{domain}_data"), getattr(instance, f"write_{domain}_data")
    assert await read("s-1", LATE) == {}
    await write({"profitLevels": [10, 20]}, "s-1", LATE)
    assert await read("s-1", LATE - 1) == {}
    assert await read("s-1", LATE) == {"profitLevels": [10, 20]}
    assert await read("s-2", LATE) == {}
    for bad in BAD_WHENS:
        with pytest.raises(InvalidWhenError):
            await read("s-1", bad)
        with pytest.raises(InvalidWhenError):
            await write({}, "s-1", bad)


@pytest.mark.parametrize(("domain", "noun"), [("storage", "signals"), ("notification", "notifications")])
async def test_lists_by_mode_keep_modes_apart_and_come_back_whole_in_order(
    persist: Registry, domain: str, noun: str
) -> None:
    """Entries keep their first position when written again; backtest and live do not see each other."""
    backtest: Any = await getattr(persist, domain)(True)
    live: Any = await getattr(persist, domain)(False)
    read, write = f"read_{domain}_data", f"write_{domain}_data"
    await getattr(backtest, write)([{"id": str(n), "n": n} for n in range(2500)])
    await getattr(live, write)([{"id": "1", "n": -1}])
    await getattr(backtest, write)([{"id": "7", "n": "again"}])
    found = await getattr(backtest, read)()
    assert [entry["n"] for entry in found] == [*range(7), "again", *range(8, 2500)]
    assert await getattr(live, read)() == [{"id": "1", "n": -1}]


async def test_the_log_is_append_only(persist: Registry) -> None:
    """An entry whose id exists is skipped, also within one call."""
    log = await persist.log()
    assert await log.read_log_data() == []
    await log.write_log_data([{"id": "a", "n": 1}, {"id": "b", "n": 2}, {"id": "a", "n": 3}])
    await log.write_log_data([{"id": "b", "n": 4}, {"id": "c", "n": 5}])
    assert [entry["n"] for entry in await log.read_log_data()] == [1, 2, 5]


@pytest.mark.parametrize("bad", [{"n": 1}, {"id": None}, {"id": ""}, {"id": 7}, {"id": "a\0b"}])
async def test_a_list_entry_without_a_usable_id_stops_the_whole_write(persist: Registry, bad: dict[str, Any]) -> None:
    """One unusable entry among good ones is a typed error and nothing is stored."""
    storage, log = await persist.storage(True), await persist.log()
    with pytest.raises(InvalidKeyError):
        await storage.write_storage_data([{"id": "good"}, bad])
    with pytest.raises(InvalidKeyError):
        await log.write_log_data([{"id": "good"}, bad])
    assert await storage.read_storage_data() == []
    assert await log.read_log_data() == []


async def test_a_measure_is_removed_and_revived(persist: Registry) -> None:
    """A removed answer is neither read nor listed; a later write brings it back. None can be stored."""
    measure = await persist.measure("news")
    await measure.write_measure_data({"score": 0.5}, "k1", LATE)
    await measure.write_measure_data(None, "k2", EARLY)
    assert await measure.read_measure_data("k1") == {"score": 0.5}
    assert await measure.read_measure_data("k2") is None
    assert await collect(measure.list_measure_data()) == ["k1", "k2"]
    await measure.remove_measure_data("k1")
    await measure.remove_measure_data("k2")
    await measure.remove_measure_data("never")
    assert await measure.read_measure_data("k1") is None
    assert await collect(measure.list_measure_data()) == []
    await measure.write_measure_data({"score": 0.7}, "k1", LATE)
    assert await measure.read_measure_data("k1") == {"score": 0.7}
    assert await collect(measure.list_measure_data()) == ["k1"]
    with pytest.raises(InvalidWhenError):
        await measure.write_measure_data({}, "k1", None)  # pyright: ignore[reportArgumentType]


async def test_an_interval_is_removed_revived_and_hidden(persist: Registry) -> None:
    """Markers obey tombstones and look-ahead protection in reads and lists alike."""
    interval = await persist.interval("monthly")
    await interval.write_interval_data({"done": True}, "2024-01", EARLY)
    await interval.write_interval_data({"done": True}, "2024-02", LATE)
    assert await interval.read_interval_data("2024-02", when=LATE - 1) is None
    assert await interval.read_interval_data("2024-02", when=LATE) == {"done": True}
    assert await collect(interval.list_interval_data(when=EARLY)) == ["2024-01"]
    await interval.remove_interval_data("2024-01")
    assert await interval.read_interval_data("2024-01") is None
    assert await collect(interval.list_interval_data()) == ["2024-02"]
    await interval.write_interval_data({"done": False}, "2024-01", LATE)
    assert await interval.read_interval_data("2024-01") == {"done": False}
    assert await collect(interval.list_interval_data()) == ["2024-01", "2024-02"]


async def test_a_memory_is_removed_revived_and_hidden(persist: Registry) -> None:
    """A removed memory still counts as known, is not read or listed, and comes back with a later write."""
    memory = await persist.memory("s-1", "notes")
    assert await memory.has_memory_data("m1") is False
    await memory.write_memory_data({"text": "a"}, "m1", EARLY)
    await memory.write_memory_data(None, "m2", LATE)
    assert await memory.has_memory_data("m2", when=EARLY) is False
    assert await memory.read_memory_data("m1", when=EARLY - 1) is None
    assert await collect(memory.list_memory_data(when=EARLY)) == [("m1", {"text": "a"})]
    await memory.remove_memory_data("m1")
    await memory.remove_memory_data("m2")
    assert await memory.has_memory_data("m1") is True
    assert await memory.read_memory_data("m1") is None
    assert await collect(memory.list_memory_data()) == []
    await memory.write_memory_data({"text": "b"}, "m1", LATE)
    assert await collect(memory.list_memory_data()) == [("m1", {"text": "b"})]
    await memory.dispose()
    assert await memory.read_memory_data("m1") == {"text": "b"}


async def test_a_tombstone_keeps_its_document(container: Container, persist: Registry) -> None:
    """find_by_context still returns a removed row; an object payload carries the mark, a null payload does not."""
    memory = await persist.memory("s-1", "notes")
    await memory.write_memory_data({"text": "a", "$x": {"a.b": 1}}, "m1", EARLY)
    await memory.write_memory_data(None, "m2", EARLY)
    await memory.remove_memory_data("m1")
    await memory.remove_memory_data("m2")
    first = await container.memory_db_service.find_by_context("s-1", "notes", "m1")
    second = await container.memory_db_service.find_by_context("s-1", "notes", "m2")
    assert first is not None
    assert second is not None
    assert (first.removed, first.payload) == (True, {"text": "a", "$x": {"a.b": 1}, "removed": True})
    assert (second.removed, second.payload) == (True, None)
    assert await container.memory_db_service.has_memory_entry("s-1", "notes", "m1") is True
    assert await container.memory_db_service.soft_remove("s-1", "notes", "never") is False
    assert await container.memory_db_service.count() == 2


async def test_clear_bucket_removes_one_bucket(container: Container, persist: Registry) -> None:
    """Clearing an interval bucket deletes its markers and no others; a cached id of one is a miss afterwards."""
    await container.interval_db_service.upsert("a", "k", {"n": 1}, EARLY)
    await container.interval_db_service.upsert("b", "k", {"n": 2}, EARLY)
    assert await container.interval_db_service.clear_bucket("a") == 1
    assert await container.interval_db_service.find_by_context("a", "k") is None
    assert await container.interval_db_service.list_keys("b") == ["k"]


async def test_a_write_is_seen_by_the_next_read_of_another_process(settings: Any, container: Container) -> None:
    """After a write returns, a second container with clients of its own reads it, with a warm or a cold cache."""
    async with Container(settings) as other:
        mine, theirs = Registry(container), Registry(other)
        writer, reader = await mine.state("sig", "b"), await theirs.state("sig", "b")
        for n in range(50):
            await writer.write_state_data({"n": n}, n)
            assert await reader.read_state_data() == {"n": n}
