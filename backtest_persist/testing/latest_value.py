"""LatestValue: a context holds what was written last, and nothing of what was written before."""

from pathlib import Path
from typing import Any

import pytest

from backtest_persist import contracts
from backtest_persist.domains.risk import RISK
from backtest_persist.errors import InvalidPayloadError
from backtest_persist.testing.subjects import (
    EARLY,
    LATE,
    Subject,
    is_disposable,
    is_overwritten,
    is_packaged,
    is_removable,
    is_value,
    tells_presence,
)
from backtest_persist.testing.suite import Suite, for_each, requires

__all__ = ("LatestValue",)


class LatestValue(Suite):
    """A context holds what was written last."""

    @for_each(is_packaged)
    async def test_every_adapter_has_the_methods_of_its_contract(self, tmp_path: Path, subject: Subject) -> None:
        """The registry returns an instance of the protocol that is named after the domain."""
        contract: Any = getattr(contracts, f"{subject.name.title()}Adapter")
        async with self.open(tmp_path) as persist:
            assert isinstance(await subject.adapter(persist, subject.sample), contract)

    @for_each()
    async def test_a_read_before_the_first_write_finds_nothing(self, tmp_path: Path, subject: Subject) -> None:
        """It returns None, {} or [], also after wait_for_init was called in every way, and never raises."""
        empty_results: dict[str, Any] = {"marks": {}, "positions": [], "list": []}
        empty = empty_results.get(subject.kind)
        async with self.open(tmp_path) as persist:
            adapter = await subject.adapter(persist, subject.sample)
            for initial in (True, False, True):
                await adapter.wait_for_init(initial)
                found = await subject.read_result(persist, subject.sample)
                assert (found, type(found)) == (empty, type(empty))
                if is_removable(subject):
                    assert await subject.keys(persist, subject.sample) == []
                if tells_presence(subject):
                    assert await subject.was_written(persist, subject.sample) is False

    @for_each(is_overwritten)
    async def test_the_last_write_replaces_the_whole_payload(self, tmp_path: Path, subject: Subject) -> None:
        """Nothing is merged, however alike two payloads are; {} is a payload, too."""
        payloads: list[dict[str, Any]] = [{"a": 1, "b": {"c": 1, "d": [1, 2]}}, {"b": {"e": 1, "d": [3]}}, {}, {"a": 2}]
        async with self.open(tmp_path) as persist:
            for payload in payloads:
                await subject.write(persist, subject.sample, payload)
                assert await subject.read(persist, subject.sample) == (payload or self._empty(subject))

    @for_each(is_value)
    async def test_none_replaces_a_payload_like_any_other(self, tmp_path: Path, subject: Subject) -> None:
        """Reading gives None after None was written, and the next payload after that."""
        async with self.open(tmp_path) as persist:
            for payload in (None, {"id": "a", "priceOpen": 1.5}, None, {}, {"id": "b"}):
                await subject.write(persist, subject.sample, payload)
                assert await subject.read(persist, subject.sample) == payload

    @for_each()
    async def test_a_value_is_read_after_the_store_is_opened_again(self, tmp_path: Path, subject: Subject) -> None:
        """Another registry finds what a closed one has written, however often it is initialised."""
        async with self.open(tmp_path) as persist:
            await subject.write(persist, subject.sample, {"n": 1})
        async with self.open(tmp_path) as persist:
            adapter = await subject.adapter(persist, subject.sample)
            for initial in (True, False):
                assert await subject.read(persist, subject.sample) == {"n": 1}
                await adapter.wait_for_init(initial)
            assert await subject.read(persist, subject.sample) == {"n": 1}

    @for_each(is_disposable)
    async def test_a_disposed_adapter_can_still_be_used(self, tmp_path: Path, subject: Subject) -> None:
        """Stored values stay, and the adapter reads and writes as before; it may be disposed twice."""
        async with self.open(tmp_path) as persist:
            await subject.write(persist, subject.sample, {"n": 1})
            adapter = await subject.adapter(persist, subject.sample)
            await adapter.dispose()
            await adapter.dispose()
            assert await subject.read(persist, subject.sample) == {"n": 1}
            if is_overwritten(subject):
                await subject.write(persist, subject.sample, {"n": 2})
                assert await subject.read(persist, subject.sample) == {"n": 2}

    @requires(RISK)
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
    def _empty(subject: Subject) -> Any:
        """Return how a read shows {}: for marks, it is the same as nothing."""
        return None if subject.kind == "marks" else {}
