"""LatestValue: a context holds what was written last, and nothing of what was written before."""

from pathlib import Path
from typing import Any

import pytest

from backtest_persist import contracts
from backtest_persist.errors import InvalidPayloadError
from backtest_persist.testing.domains import DOMAINS, EARLY, LATE, OVERWRITTEN, VALUES, Domain, pick
from backtest_persist.testing.suite import Suite

__all__ = ("LatestValue",)


class LatestValue(Suite):
    """A context holds what was written last."""

    async def test_every_adapter_has_the_methods_of_its_contract(self, tmp_path: Path) -> None:
        """The registry gives fifteen instances that satisfy the fifteen protocols."""
        async with self.open(tmp_path) as persist:
            instances = {
                contracts.BreakevenAdapter: await persist.breakeven("s", "t", "e"),
                contracts.CandleAdapter: await persist.candle("s", "1m", "e"),
                contracts.IntervalAdapter: await persist.interval("b"),
                contracts.LogAdapter: await persist.log(),
                contracts.MeasureAdapter: await persist.measure("b"),
                contracts.MemoryAdapter: await persist.memory("sig", "b"),
                contracts.NotificationAdapter: await persist.notification(True),
                contracts.PartialAdapter: await persist.partial("s", "t", "e"),
                contracts.RecentAdapter: await persist.recent("s", "t", "e", "f", True),
                contracts.RiskAdapter: await persist.risk("r", "e"),
                contracts.ScheduleAdapter: await persist.schedule("s", "t", "e"),
                contracts.SessionAdapter: await persist.session("t", "e", "f", "s", True),
                contracts.SignalAdapter: await persist.signal("s", "t", "e"),
                contracts.StateAdapter: await persist.state("sig", "b"),
                contracts.StorageAdapter: await persist.storage(True),
            }
            assert len(instances) == 15
            for contract, instance in instances.items():
                assert isinstance(instance, contract)

    @pytest.mark.parametrize("domain", DOMAINS, ids=str)
    async def test_where_nothing_is_stored_a_read_says_so(self, tmp_path: Path, domain: Domain) -> None:
        """None, {} or [] before the first write, also after wait_for_init was called in every way; never an error."""
        words: dict[str, Any] = {"marks": {}, "positions": [], "list": []}
        nothing = words.get(domain.kind)
        async with self.open(tmp_path) as persist:
            instance = await domain.instance(persist, domain.sample)
            for initial in (True, False, True):
                await instance.wait_for_init(initial)
                found = await domain.read_as_is(persist, domain.sample)
                assert (found, type(found)) == (nothing, type(nothing))
                if domain.kind == "removable":
                    assert await domain.keys(persist, domain.sample) == []
                if domain.name == "memory":
                    assert await instance.has_memory_data("m-1") is False

    @pytest.mark.parametrize("domain", OVERWRITTEN, ids=str)
    async def test_the_last_write_stands_and_nothing_is_merged(self, tmp_path: Path, domain: Domain) -> None:
        """Each write replaces the whole payload, however alike the two are; {} is a payload, too."""
        payloads: list[dict[str, Any]] = [{"a": 1, "b": {"c": 1, "d": [1, 2]}}, {"b": {"e": 1, "d": [3]}}, {}, {"a": 2}]
        async with self.open(tmp_path) as persist:
            for payload in payloads:
                await domain.write(persist, domain.sample, payload)
                assert await domain.read(persist, domain.sample) == (payload or self._empty(domain))

    @pytest.mark.parametrize("domain", VALUES, ids=str)
    async def test_none_says_that_nothing_is_open_any_more(self, tmp_path: Path, domain: Domain) -> None:
        """Reading gives None after None was written, and the next payload after that."""
        async with self.open(tmp_path) as persist:
            for payload in (None, {"id": "a", "priceOpen": 1.5}, None, {}, {"id": "b"}):
                await domain.write(persist, domain.sample, payload)
                assert await domain.read(persist, domain.sample) == payload

    @pytest.mark.parametrize("domain", DOMAINS, ids=str)
    async def test_what_was_written_is_there_when_the_store_is_opened_again(
        self, tmp_path: Path, domain: Domain
    ) -> None:
        """The registry that has written is gone; another one finds the value, however often it gets ready for it."""
        async with self.open(tmp_path) as persist:
            await domain.write(persist, domain.sample, {"n": 1})
        async with self.open(tmp_path) as persist:
            instance = await domain.instance(persist, domain.sample)
            for initial in (True, False):
                assert await domain.read(persist, domain.sample) == {"n": 1}
                await instance.wait_for_init(initial)
            assert await domain.read(persist, domain.sample) == {"n": 1}

    @pytest.mark.parametrize("domain", pick("memory", "session", "state"), ids=str)
    async def test_a_disposed_instance_can_still_be_used(self, tmp_path: Path, domain: Domain) -> None:
        """What is stored stays, and the instance reads and writes as before; disposing twice is fine."""
        async with self.open(tmp_path) as persist:
            await domain.write(persist, domain.sample, {"n": 1})
            instance = await domain.instance(persist, domain.sample)
            await instance.dispose()
            await instance.dispose()
            assert await domain.read(persist, domain.sample) == {"n": 1}
            await domain.write(persist, domain.sample, {"n": 2})
            assert await domain.read(persist, domain.sample) == {"n": 2}

    async def test_the_positions_of_a_risk_profile_are_a_list_of_any_shape(self, tmp_path: Path) -> None:
        """They are replaced as a whole; a tuple is a list, and anything else is refused and changes nothing."""
        positions: list[Any] = [["BTCUSDT", {"opened": EARLY}], {"n": 1}, None, "text", 1.5, [], [[[]]]]
        async with self.open(tmp_path) as persist:
            risk = await persist.risk("max-2", "binance")
            await risk.write_position_data(positions, EARLY)
            assert await risk.read_position_data(LATE) == positions
            bad: Any
            for bad in ("text", None, {"a": 1}, b"bytes", 5, {1, 2}):
                with pytest.raises(InvalidPayloadError):
                    await risk.write_position_data(bad, EARLY)
            assert await risk.read_position_data(LATE) == positions
            await risk.write_position_data((1, 2), EARLY)
            assert await risk.read_position_data(LATE) == [1, 2]
            await risk.write_position_data([], EARLY)
            assert await risk.read_position_data(LATE) == []

    @staticmethod
    def _empty(domain: Domain) -> Any:
        """How a read shows {}: the marks of a signal have no other word for nothing."""
        return None if domain.kind == "marks" else {}
