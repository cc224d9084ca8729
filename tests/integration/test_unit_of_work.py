"""Units of work: what is written is read again before it is stored, and is stored as one transaction."""

import asyncio
from collections import Counter
from typing import Any

import pytest

from backtest_persist import (
    ClosedError,
    Container,
    InvalidPayloadError,
    Registry,
    Settings,
    SettingsError,
    WriteRejectedError,
)
from backtest_persist.testing.subjects import EARLY, LATE, MINUTE, START, SUBJECTS, candle, is_removable, keeps_payloads
from tests.support.cases import CASES
from tests.support.commands import monitored_container
from tests.support.units import discarded


@pytest.fixture(scope="session")
def driver() -> str:
    """These tests are not about drivers, but those of faults are, and those of the conformance kit."""
    return "motor"


async def test_every_domain_reads_its_own_writes_and_stores_all_of_them_at_the_end(
    persist: Registry, witness: Registry
) -> None:
    """Values, candles, entries of lists and tombstones; nobody else sees any of it before the end."""
    async with persist.checkpoint():
        for subject in SUBJECTS:
            await subject.write(persist, subject.sample, {"n": 1})
            await subject.write(persist, subject.sample, {"n": 2})
            expected = {"n": 1 if subject.kind in ("candles",) or subject.name == "log" else 2}
            assert await subject.read(persist, subject.sample) == expected, subject
            assert await subject.read(witness, subject.sample) is None, subject
    for subject in SUBJECTS:
        expected = {"n": 1 if subject.kind in ("candles",) or subject.name == "log" else 2}
        assert await subject.read(witness, subject.sample) == expected, subject
        assert await subject.read(persist, subject.sample) == expected, subject
    async with persist.checkpoint():
        for subject in filter(is_removable, SUBJECTS):
            await subject.remove(persist, subject.sample)
            assert await subject.read(persist, subject.sample) is None, subject
            assert await subject.keys(persist, subject.sample) == [], subject
            assert await subject.read(witness, subject.sample) == {"n": 2}, subject
            await subject.write(persist, subject.numbered(1), {"n": 3})
            await subject.remove(persist, subject.numbered(1))
    for subject in filter(is_removable, SUBJECTS):
        assert await subject.keys(witness, subject.sample) == []
        assert await subject.read(witness, subject.sample) is None
    assert await (await witness.memory("signal_id", "bucket_name")).has_memory_data("memory_id")


async def test_a_commit_stores_what_single_writes_store(persist: Registry, container: Container) -> None:
    """The documents are the same but for ids and dates, also those that replace others or are removed."""
    found: list[dict[str, list[Any]]] = []
    for atomic in (False, True):
        database = container.mongo_service.database

        async def work() -> None:
            for subject in SUBJECTS:
                await subject.write(persist, subject.sample, {"n": 1, "a.b": {"$x": None}})
            for subject in filter(is_removable, SUBJECTS):
                await subject.write(persist, subject.numbered(0), {"n": 1})
                await subject.remove(persist, subject.numbered(0))

        for _ in range(2):  # new documents, then replaced ones
            if atomic:
                async with persist.checkpoint():
                    await work()
            else:
                await work()
        documents: dict[str, list[Any]] = {}
        for case in CASES:
            collection = database[case.collection]
            stored = (
                await collection.find({}, {"_id": 0, "createDate": 0, "updatedDate": 0}).sort("_id", 1).to_list(None)
            )
            documents[case.collection] = stored
            await collection.delete_many({})
        found.append(documents)
    assert found[0] == found[1]


async def test_an_error_in_the_block_stores_nothing(persist: Registry, witness: Registry) -> None:
    """Nor does a payload that is refused; the next unit is not affected."""
    signal = await persist.signal("s", "t", "e")
    async with discarded(persist.checkpoint()):
        await signal.write_signal_data({"n": 1})

    async def refused() -> None:
        async with persist.checkpoint():
            await signal.write_signal_data({"n": 1})
            await signal.write_signal_data({"n": {1, 2}})

    with pytest.raises(InvalidPayloadError):
        await refused()
    assert await signal.read_signal_data() is None
    async with persist.checkpoint():
        await signal.write_signal_data({"n": 2})
    assert await (await witness.signal("s", "t", "e")).read_signal_data() == {"n": 2}


async def test_a_list_has_its_order_also_before_it_is_stored(
    persist: Registry, container: Container, witness: Registry
) -> None:
    """Stored entries keep their places, removed ones have none, revived ones their old one; new ones follow."""
    interval, storage = await persist.interval("b"), await persist.storage(True)
    for key in "abc":
        await interval.write_interval_data({}, key, EARLY)
        await storage.write_storage_data([{"id": key, "n": 1}])
    await interval.remove_interval_data("b")
    db = container.storage_db_service

    async def keys(registry: Registry) -> list[str]:
        return [key async for key in (await registry.interval("b")).list_interval_data(when=LATE)]

    async def ids(registry: Registry) -> list[str]:
        return [entry["id"] for entry in await (await registry.storage(True)).read_storage_data()]

    async with persist.checkpoint():
        for key in "dbe":
            await interval.write_interval_data({}, key, EARLY)
        await interval.remove_interval_data("a")
        await storage.write_storage_data([{"id": key, "n": 2} for key in "dbe"])
        assert await keys(persist) == ["b", "c", "d", "e"]
        assert await ids(persist) == ["a", "b", "c", "d", "e"]
    assert await keys(witness) == ["b", "c", "d", "e"]
    assert await ids(witness) == ["a", "b", "c", "d", "e"]
    dates = [row.create_date for row in await db.list_by_mode(True)]
    assert len(set(dates)) == 5


async def test_the_newest_entries_count_those_of_the_unit(persist: Registry) -> None:
    """A limited list ends with what the unit has written, and holds no entry twice."""
    storage = await persist.storage(True)
    await storage.write_storage_data([{"id": str(n)} for n in range(5)])
    async with persist.checkpoint():
        await storage.write_storage_data([{"id": "1", "n": 2}, {"id": "5"}])
        unit: Any = storage
        rows = [
            [row.signal_id for row in await unit.db.store.select({"backtest": True}, newest=newest)]
            for newest in (0, 1, 2, 5, 9)
        ]
    assert rows == [[], ["5"], ["4", "5"], ["1", "2", "3", "4", "5"], ["0", "1", "2", "3", "4", "5"]]


async def test_a_read_belongs_to_its_caller_and_is_repeatable(persist: Registry, witness: Registry) -> None:
    """What others write meanwhile is seen by the next unit; what a caller changes in an answer is seen by nobody."""
    state, other = await persist.state("s", "b"), await witness.state("s", "b")
    await other.write_state_data({"list": [1]}, EARLY)
    written = {"list": [1]}
    async with persist.checkpoint():
        first: Any = await state.read_state_data()
        first["list"].append(2)
        await other.write_state_data({"list": [9]}, EARLY)
        assert await state.read_state_data() == {"list": [1]}
        await state.write_state_data(written, EARLY)
        written["list"].append(3)
        for _ in range(2):
            again: Any = await state.read_state_data()
            assert again == {"list": [1]}
            again["list"].append(4)
    async with persist.checkpoint():
        assert await state.read_state_data() == {"list": [1]}


async def test_large_payloads_are_stored_in_the_order_of_their_calls(persist: Registry, witness: Registry) -> None:
    """They are encoded in a thread; neither a later small write nor a removal is overtaken by one."""
    large = {"text": ["x" * 1000] * 1000}
    state, interval = await persist.state("s", "b"), await persist.interval("b")
    storage = await persist.storage(True)
    async with persist.checkpoint():
        await asyncio.gather(state.write_state_data({"n": 1, **large}, EARLY), state.write_state_data({"n": 2}, EARLY))
        assert await state.read_state_data() == {"n": 2}
        await interval.write_interval_data(large, "k", EARLY)
        assert await interval.read_interval_data("k") == large
        removed = [interval.write_interval_data(large, "r", EARLY), interval.remove_interval_data("r")]
        claimed = [interval.write_interval_data(large, "c", EARLY), interval.claim_interval_data({}, "c", EARLY)]
        assert (await asyncio.gather(*removed, *claimed))[-1] is False
        assert await interval.read_interval_data("r") is None
        await storage.write_storage_data([{"id": str(n), **large} for n in range(9)])  # more than one command takes
    assert await (await witness.state("s", "b")).read_state_data() == {"n": 2}
    assert await (await witness.interval("b")).read_interval_data("k") == large
    assert len(await (await witness.storage(True)).read_storage_data()) == 9


async def test_many_entries_of_one_unit(persist: Registry, witness: Registry) -> None:
    """More than one bulk takes are stored in their order, with dates that ascend."""
    storage = await persist.storage(True)
    async with persist.checkpoint():
        await storage.write_storage_data([{"id": str(n)} for n in range(2500)])
    entries = await (await witness.storage(True)).read_storage_data()
    assert [entry["id"] for entry in entries] == [str(n) for n in range(2500)]


# --- claims ---


async def test_a_claim_holds_for_the_unit_and_is_free_again_if_the_unit_fails(
    persist: Registry, witness: Registry
) -> None:
    """It is given once; a tombstone may be claimed, also one of the same unit."""
    mine, other = await persist.interval("b"), await witness.interval("b")
    async with discarded(persist.checkpoint()):
        assert await mine.claim_interval_data({"n": 1}, "k", EARLY)
    async with persist.checkpoint():
        claims = [mine.claim_interval_data({"n": n}, "k", EARLY) for n in range(3)]
        assert sorted(await asyncio.gather(*claims)) == [False, False, True]
        await mine.write_interval_data({"n": 7}, "k", EARLY)
        assert not await mine.claim_interval_data({"n": 8}, "k", EARLY)
        await mine.remove_interval_data("k")
        assert await mine.claim_interval_data({"n": 9}, "k", EARLY)
    assert await other.read_interval_data("k") == {"n": 9}
    assert not await other.claim_interval_data({"n": 1}, "k", EARLY)
    await other.remove_interval_data("k")
    async with persist.checkpoint():
        assert await mine.claim_interval_data({"n": 2}, "k", EARLY)
    assert await other.read_interval_data("k") == {"n": 2}


@pytest.mark.parametrize("change", ["alone", "written over", "removed"])
async def test_a_claim_that_another_process_makes_before_the_commit_is_an_error(
    persist: Registry, witness: Registry, change: str
) -> None:
    """`WriteRejectedError`, and nothing of the unit is stored, whatever the unit has done with the entry since."""
    mine, signal = await persist.interval("b"), await persist.signal("s", "t", "e")

    async def late() -> None:
        async with persist.checkpoint():
            await signal.write_signal_data({"n": 1})
            assert await mine.claim_interval_data({"by": "us"}, "k", EARLY)
            if change == "written over":
                await mine.write_interval_data({"by": "us", "n": 2}, "k", EARLY)
            elif change == "removed":
                await mine.remove_interval_data("k")
            assert await (await witness.interval("b")).claim_interval_data({"by": "them"}, "k", EARLY)

    with pytest.raises(WriteRejectedError, match="claimed") as caught:
        await late()
    assert caught.value.context == {"bucket": "b", "entry_key": "k"}
    assert await mine.read_interval_data("k") == {"by": "them"}
    assert await signal.read_signal_data() is None


# --- candles ---


async def test_candles_of_a_unit(persist: Registry, container: Container, witness: Registry) -> None:
    """Windows, the last ones, and gaps consist of stored and of written ones; the first write of a time wins."""
    series, db = await persist.candle("s", "1m", "e"), container.candle_db_service
    await db.create_many("s", "1m", "e", [candle(0), candle(3, volume=3.0)])
    async with persist.checkpoint():
        await series.write_candles_data([candle(1), candle(3, volume=9.0)])
        await series.write_candles_data([candle(1, volume=8.0)])
        unit: Any = series
        assert await unit.db.find_gaps("s", "1m", "e", START, START + 5 * MINUTE) == [
            (START + 2 * MINUTE, START + 3 * MINUTE),
            (START + 4 * MINUTE, START + 5 * MINUTE),
        ]
        assert await series.read_candles_data(4, START) is None
        await series.write_candles_data([candle(2)])
        window = await series.read_candles_data(4, START)
        assert [row["volume"] for row in window or ()] == [1.0, 2.0, 3.0, 3.0]
        last = await series.read_last_candles(2, START + 4 * MINUTE)
        assert [row["timestamp"] for row in last] == [START + 2 * MINUTE, START + 3 * MINUTE]
        with pytest.raises(SettingsError, match="outside"):
            await unit.db.delete_range("s", "1m", "e")
    window = await (await witness.candle("s", "1m", "e")).read_candles_data(4, START)
    assert [row["volume"] for row in window or ()] == [1.0, 2.0, 3.0, 3.0]


@pytest.mark.parametrize("cached", [False, True])
async def test_ids_are_in_redis_after_a_commit(settings: Settings, cached: bool) -> None:
    """All but those of candles, unless ``CC_CANDLE_CACHE`` says so, as with single writes."""
    async with Container(settings.model_copy(update={"candle_cache": cached})) as container:
        persist = Registry(container)
        async with persist.checkpoint():
            for subject in SUBJECTS:
                await subject.write(persist, subject.sample, {"n": 1})
        for domain in container.domains:
            cache: Any = getattr(container, f"{domain.name}_cache_service")
            found = await cache.size()
            assert found == (1 if domain.name != "candle" or cached else 0), domain.name


# --- commands ---


async def test_a_commit_is_one_bulk_per_collection(settings: Settings, driver: str) -> None:
    """And one commit; several writes of one context are one update. A unit without writes sends nothing."""
    async with monitored_container(settings, driver) as (container, commands):
        persist = Registry(container)
        payloads = [subject for subject in SUBJECTS if keeps_payloads(subject)]
        for _ in range(2):
            commands.names.clear()
            async with persist.checkpoint():
                for subject in payloads:
                    for n in range(3):
                        await subject.write(persist, subject.sample, {"n": n})
        sent = Counter(name for name in commands.names if name not in ("find", "endSessions", "killSessions"))
        assert sent == {"update": len({subject.domain.db_service for subject in payloads}), "commitTransaction": 1}
        commands.names.clear()
        async with persist.checkpoint():
            pass
        assert commands.names == []


async def test_a_successful_commit_kills_no_session(settings: Settings, driver: str) -> None:
    """Its session goes back to the driver, for the next one: it costs no command."""
    async with monitored_container(settings, driver) as (container, commands):
        persist = Registry(container)
        signal = await persist.signal("s", "t", "e")
        await signal.write_signal_data({"n": 0})
        for n in range(3):
            async with persist.checkpoint():
                await signal.write_signal_data({"n": n})
        await container.mongo_service.open_state().drain()
        assert "killSessions" not in commands.names


# --- blocks in blocks, tasks, and the end ---


async def test_a_checkpoint_in_another_one_is_a_part_of_it(persist: Registry, witness: Registry) -> None:
    """An error in it discards its own writes alone, also those of several at once; those of the outer one go on."""
    state = await persist.state("s", "b")

    async def write(n: int, error: bool = False) -> None:
        async with persist.checkpoint():
            await (await persist.state("s", str(n))).write_state_data({"n": n}, EARLY)
            for _ in range(3 - n):
                await asyncio.sleep(0)
            if error:
                raise ZeroDivisionError

    async with persist.checkpoint():
        await state.write_state_data({"n": 1}, EARLY)
        async with discarded(persist.checkpoint()):
            await state.write_state_data({"n": 2}, EARLY)
            assert await state.read_state_data() == {"n": 2}
        assert await state.read_state_data() == {"n": 1}
        results = await asyncio.gather(write(0, error=True), write(1), write(2, error=True), return_exceptions=True)
        assert [type(result) for result in results] == [ZeroDivisionError, type(None), ZeroDivisionError]
        assert await (await witness.state("s", "1")).read_state_data() is None
    assert await (await witness.state("s", "b")).read_state_data() == {"n": 1}
    stored = [await (await witness.state("s", str(n))).read_state_data() for n in range(3)]
    assert stored == [None, {"n": 1}, None]


async def test_a_checkpoint_of_another_registry_does_not_end_the_outer_one(
    persist: Registry, settings: Settings
) -> None:
    """Adapters of the outer registry write into the outer unit, whichever blocks are between."""
    async with Container(settings) as container:
        other = Registry(container)
        signal, theirs = await persist.signal("s", "t", "e"), await other.signal("s", "t", "e2")
        async with discarded(persist.checkpoint()), other.checkpoint():
            await signal.write_signal_data({"n": 1})
            await theirs.write_signal_data({"n": 2})
        assert await signal.read_signal_data() is None
        assert await theirs.read_signal_data() == {"n": 2}


async def test_a_task_that_outlives_its_checkpoint_may_not_write(persist: Registry) -> None:
    """`ClosedError`; a task that was started before, or is started after, is not concerned."""
    signal = await persist.signal("s", "t", "e")
    ended, go_on = asyncio.Event(), asyncio.Event()

    async def late() -> None:
        await go_on.wait()
        await signal.write_signal_data({"n": 2})

    async def before() -> None:
        await ended.wait()
        await signal.write_signal_data({"n": 3})

    earlier = asyncio.create_task(before())
    await asyncio.sleep(0)
    async with persist.checkpoint():
        await signal.write_signal_data({"n": 1})
        leaked = asyncio.create_task(late())
    go_on.set()
    with pytest.raises(ClosedError, match="has ended"):
        await leaked
    assert await signal.read_signal_data() == {"n": 1}
    ended.set()
    await earlier
    assert await signal.read_signal_data() == {"n": 3}


async def test_a_large_write_that_outlives_its_block_is_in_no_other_one(persist: Registry) -> None:
    """What is still being encoded when its checkpoint is left by an error does not land in the outer one."""
    state = await persist.state("s", "b")
    large = {"text": ["x" * 1000] * 3000}
    async with persist.checkpoint():
        async with discarded(persist.checkpoint()):
            writing = asyncio.create_task(state.write_state_data(large, EARLY))
            await asyncio.sleep(0)
        with pytest.raises(ClosedError):
            await writing
        assert await state.read_state_data() is None
    assert await state.read_state_data() is None


async def test_a_registry_without_one_backend_for_all_has_no_units(persist: Registry) -> None:
    """`SettingsError` that names the domains, or the backend, and what to do."""
    persist.signal.use(lambda symbol, strategy_name, exchange_name: None)  # pyright: ignore
    with pytest.raises(SettingsError, match="signal"):
        persist.checkpoint()
    persist.use({})
    with pytest.raises(SettingsError, match="dict stores no units of work"):
        persist.checkpoint()
    persist.use_mongo()
    checkpoint = persist.checkpoint()
    async with checkpoint:
        pass
    with pytest.raises(SettingsError, match="entered once"):
        await checkpoint.__aenter__()
