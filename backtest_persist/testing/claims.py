"""Claims: of all who claim a key, one gets it."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from backtest_persist.domains.interval import INTERVAL
from backtest_persist.errors import InvalidKeyError, InvalidPayloadError, InvalidWhenError
from backtest_persist.testing.subjects import EARLY, LATE
from backtest_persist.testing.suite import Suite, requires

__all__ = ("Claims",)


class Claims(Suite):
    """A key of an interval is claimed once."""

    @requires(INTERVAL)
    async def test_a_key_is_claimed_by_exactly_one_caller(self, tmp_path: Path) -> None:
        """Of many calls at once, by several instances of the store, one is told so; what it wrote is what is read."""
        async with self.open(tmp_path) as persist, self.open(tmp_path) as other:
            adapters = [await registry.interval("bucket") for registry in (persist, other) for _ in range(3)]
            for key in ("a", "b", "c"):
                claims = [adapter.claim_interval_data({"n": n}, key, EARLY) for n, adapter in enumerate(adapters)]
                results = await asyncio.gather(*claims)
                assert results.count(True) == 1
                assert results.count(False) == len(adapters) - 1
                for adapter in adapters:
                    assert await adapter.read_interval_data(key) == {"n": results.index(True)}
            assert [key async for key in adapters[0].list_interval_data()] == ["a", "b", "c"]
        async with self.open(tmp_path) as persist:
            assert not await (await persist.interval("bucket")).claim_interval_data({"n": 9}, "a", EARLY)
            assert await (await persist.interval("another")).claim_interval_data({"n": 9}, "a", EARLY)

    @requires(INTERVAL)
    async def test_whatever_is_stored_is_in_the_way_of_a_claim(self, tmp_path: Path) -> None:
        """So is a marker that was written, not claimed, and one of a later or an earlier time; it stays as it is."""
        async with self.open(tmp_path) as persist:
            adapter = await persist.interval("bucket")
            await adapter.write_interval_data({"n": 1}, "written", EARLY)
            await adapter.write_interval_data(None, "without payload", EARLY)
            assert await adapter.claim_interval_data({"n": 2}, "claimed", LATE)
            for key in ("written", "without payload", "claimed"):
                for when in (EARLY, LATE):
                    assert not await adapter.claim_interval_data({"n": 3}, key, when)
            assert await adapter.read_interval_data("written", when=EARLY) == {"n": 1}
            assert await adapter.read_interval_data("without payload") is None
            assert await adapter.read_interval_data("claimed", when=EARLY) is None
            assert await adapter.read_interval_data("claimed", when=LATE) == {"n": 2}

    @requires(INTERVAL)
    async def test_a_removed_key_can_be_claimed_again(self, tmp_path: Path) -> None:
        """By one caller, who revives it in its old place with its own payload and time."""
        async with self.open(tmp_path) as persist, self.open(tmp_path) as other:
            adapters = [await registry.interval("bucket") for registry in (persist, other) for _ in range(3)]
            adapter = adapters[0]
            for key in ("a", "b", "tombstone"):
                assert await adapter.claim_interval_data({"old": True}, key, EARLY)
            await adapter.write_interval_data({"removed": True}, "tombstone", EARLY)
            await adapter.remove_interval_data("a")
            for key in ("a", "tombstone"):
                claims = [adapter.claim_interval_data({"n": n}, key, LATE) for n, adapter in enumerate(adapters)]
                results = await asyncio.gather(*claims)
                assert results.count(True) == 1
                assert await adapter.read_interval_data(key) == {"n": results.index(True)}
                assert await adapter.read_interval_data(key, when=EARLY) is None
            assert [key async for key in adapter.list_interval_data()] == ["a", "b", "tombstone"]

    @requires(INTERVAL)
    async def test_a_claimed_key_is_written_and_removed_like_any_other(self, tmp_path: Path) -> None:
        """A claim is no lock: whoever writes the key replaces what the claim wrote, and whoever removes it frees it."""
        async with self.open(tmp_path) as persist, self.open(tmp_path) as other:
            mine, theirs = await persist.interval("bucket"), await other.interval("bucket")
            assert await mine.claim_interval_data({"state": "begun"}, "key", EARLY)
            await theirs.write_interval_data({"state": "done"}, "key", LATE)
            assert await mine.read_interval_data("key") == {"state": "done"}
            assert not await theirs.claim_interval_data({}, "key", LATE)
            await theirs.remove_interval_data("key")
            assert await mine.read_interval_data("key") is None
            assert await theirs.claim_interval_data({"state": "again"}, "key", EARLY)
            assert not await mine.claim_interval_data({}, "key", EARLY)
            assert await mine.read_interval_data("key", when=EARLY) == {"state": "again"}

    @requires(INTERVAL)
    async def test_a_claim_that_would_leave_the_key_free_is_refused(self, tmp_path: Path) -> None:
        """None, a payload that says it is removed, and what no write takes are errors, and claim nothing."""
        payloads: list[Any] = [None, {"removed": True}, {"a": object()}, "text"]
        async with self.open(tmp_path) as persist:
            adapter = await persist.interval("bucket")
            for payload in payloads:
                with pytest.raises(InvalidPayloadError):
                    await adapter.claim_interval_data(payload, "key", EARLY)
            with pytest.raises(InvalidWhenError):
                await adapter.claim_interval_data({}, "key", None)  # pyright: ignore[reportArgumentType]
            with pytest.raises(InvalidKeyError):
                await adapter.claim_interval_data({}, "", EARLY)
            assert await adapter.claim_interval_data({}, "key", EARLY)
            assert await adapter.read_interval_data("key") == {}
