"""The dummy: reads say "nothing", writes vanish, and the contracts are kept in form."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from backtest_persist import Mode, Registry, SettingsError, contracts
from backtest_persist.testing import Refusals
from tests.support.cases import ADAPTER_CONTEXTS, WHEN


class TestRefusals(Refusals):
    """What the others refuse is refused, though nothing would be stored."""

    def use(self, persist: Registry, place: Path) -> None:
        persist.use_dummy()


@pytest.fixture
def persist() -> Registry:
    registry = Registry()
    registry.use_dummy()
    return registry


@pytest.mark.parametrize("domain", ADAPTER_CONTEXTS)
async def test_every_dummy_satisfies_its_contract(persist: Registry, domain: str) -> None:
    """The instance behind each entry has all that its protocol asks for."""
    instance = await getattr(persist, domain)(*ADAPTER_CONTEXTS[domain])
    assert isinstance(instance, getattr(contracts, f"{domain.capitalize()}Adapter"))


async def test_writes_vanish_and_reads_find_nothing(persist: Registry) -> None:
    """After a write in every domain each read returns the empty value of that domain."""
    candle = {"timestamp": 0, "open": 1.0, "high": 1.0, "low": 1.0, "close": 1.0, "volume": 1.0}
    for domain in ("signal", "schedule"):
        latest = await getattr(persist, domain)(*ADAPTER_CONTEXTS[domain])
        await getattr(latest, f"write_{domain}_data")({"id": "x"})
        assert await getattr(latest, f"read_{domain}_data")() is None
    for domain in ("recent", "state", "session"):
        latest = await getattr(persist, domain)(*ADAPTER_CONTEXTS[domain])
        await getattr(latest, f"write_{domain}_data")({"id": "x"}, WHEN)
        assert await getattr(latest, f"read_{domain}_data")() is None
    for domain in ("partial", "breakeven"):
        marks = await getattr(persist, domain)(*ADAPTER_CONTEXTS[domain])
        await getattr(marks, f"write_{domain}_data")({"n": 1}, "sig", WHEN)
        assert await getattr(marks, f"read_{domain}_data")("sig", WHEN) == {}
    for domain in ("storage", "notification", "log"):
        entries = await getattr(persist, domain)(*ADAPTER_CONTEXTS[domain])
        await getattr(entries, f"write_{domain}_data")([{"id": "x"}])
        assert await getattr(entries, f"read_{domain}_data")() == []
    for domain in ("measure", "interval", "memory"):
        keyed = await getattr(persist, domain)(*ADAPTER_CONTEXTS[domain])
        await getattr(keyed, f"write_{domain}_data")({"n": 1}, "k", WHEN)
        assert await getattr(keyed, f"read_{domain}_data")("k") is None
        assert await collect(getattr(keyed, f"list_{domain}_data")()) == []
        await getattr(keyed, f"remove_{domain}_data")("k")
    memory, risk, candles = (
        await persist.memory("sig", "b"),
        await persist.risk("r", "e"),
        await persist.candle("s", "1m", "e"),
    )
    await risk.write_position_data([1], WHEN)
    await candles.write_candles_data([candle])
    assert await memory.has_memory_data("k") is False
    assert await risk.read_position_data(WHEN) == []
    assert await candles.read_candles_data(1, 0) is None
    for instance in (memory, await persist.state("sig", "b"), await persist.session("t", "e", "f", "s", True)):
        await instance.dispose()


async def collect(items: AsyncIterator[Any]) -> list[Any]:
    return [item async for item in items]


async def test_units_of_work_vanish_and_a_lease_is_always_free(persist: Registry) -> None:
    """Within a block its writes are read; after it nothing is, and nobody is kept from running the same."""
    state = await persist.state("s", "b")
    async with persist.checkpoint():
        await state.write_state_data({"n": 1}, WHEN)
        assert await state.read_state_data() == {"n": 1}
    assert await state.read_state_data() is None
    run: Any = {"strategy": "trend", "exchange": "x", "symbol": "A", "mode": Mode.LIVE}
    async with persist.run(**run) as first, persist.run(**run) as second:
        for one in (first, second):
            async with one.bar(WHEN) as bar:
                bar.session["n"] = 1
                await bar.log.write_log_data([{"id": bar.new_id()}])
                assert len(await bar.log.read_log_data()) == 1
            assert (one.bars, one.session) == (1, {"n": 1})
    assert await (await persist.log()).read_log_data() == []
    with pytest.raises(SettingsError, match="number of seconds"):
        await persist.run(**run, lease_wait=-1).__aenter__()
