"""Crash: what was acknowledged outlives its process, however that ends; nothing is ever half there."""

import signal
from pathlib import Path
from typing import Any

import pytest

from backtest_persist.registry import Registry
from backtest_persist.testing.domains import DOMAINS, MINUTE, OVERWRITTEN, SIGNAL, START, candle
from backtest_persist.testing.suite import Suite
from backtest_persist.testing.writer import BULK, COPIES, OTHER, Writer, bulk, running

__all__ = ("Crash",)


def _whole(number: int) -> dict[str, Any]:
    return {"n": number, "copies": [number] * COPIES}


class Crash(Suite):
    """What was acknowledged outlives its process, and nothing is ever half there."""

    async def test_what_was_written_is_there_after_the_writer_was_killed(self, tmp_path: Path) -> None:
        """In every domain: the process has died by SIGKILL right after its writes, which could do nothing any more."""
        async with self.open(tmp_path) as before:
            for domain in OVERWRITTEN:
                await domain.write(before, domain.sample, {"n": 1})
            async with running(self, tmp_path, "everywhere killed") as writer:
                await writer.is_killed()
            for domain in DOMAINS:
                assert await domain.read(before, domain.sample) == {"n": 2}
        async with self.open(tmp_path) as persist:
            for domain in DOMAINS:
                assert await domain.read(persist, domain.sample) == {"n": 2}

    async def test_a_kill_between_two_writes_keeps_the_first_and_leaves_the_second(self, tmp_path: Path) -> None:
        """What was overwritten before the kill is new, what was to follow is old; both can be written again."""
        async with running(self, tmp_path, "between") as writer:
            await writer.is_killed()
        async with self.open(tmp_path) as persist:
            assert await SIGNAL.read(persist, SIGNAL.sample) == {"n": 2}
            assert await SIGNAL.read(persist, OTHER) == {"n": 1}
            for parts in (SIGNAL.sample, OTHER):
                await SIGNAL.write(persist, parts, {"n": 3})
                assert await SIGNAL.read(persist, parts) == {"n": 3}

    async def test_a_kill_before_all_entries_are_checked_leaves_none(self, tmp_path: Path) -> None:
        """A call stores nothing until it has seen its last entry; what was written before it is there."""
        async with running(self, tmp_path, "checking") as writer:
            await writer.is_killed()
        async with self.open(tmp_path) as persist:
            assert await (await persist.storage(True)).read_storage_data() == []
            assert await (await persist.log()).read_log_data() == [{"id": "before"}]

    async def test_a_kill_amid_many_entries_leaves_whole_ones_in_order(self, tmp_path: Path) -> None:
        """Killed as soon as one of them is seen: those that are there are whole, and the call can be made again."""
        async with self.open(tmp_path) as before, running(self, tmp_path, "bulk") as writer:
            log = await before.log()
            await writer.acknowledges()

            async def begun() -> bool:
                return bool(await log.read_log_data())

            await writer.sees(begun)
            await writer.kill()
        async with self.open(tmp_path) as persist:
            log = await persist.log()
            found = await log.read_log_data()
            stored = {entry["id"] for entry in found}
            assert found == [entry for entry in bulk() if entry["id"] in stored]
            assert len(found) == BULK or writer.acknowledged != ["begin", "end"]
            await log.write_log_data(bulk())
            again = await log.read_log_data()
            assert again[: len(found)] == found
            assert sorted(entry["n"] for entry in again) == list(range(BULK))

    @pytest.mark.parametrize(
        ("moment", "by"), [(1, signal.SIGKILL), (10, signal.SIGTERM), (42, signal.SIGKILL), (83, signal.SIGTERM)]
    )
    async def test_a_kill_at_any_moment_loses_nothing_and_halves_nothing(
        self, tmp_path: Path, moment: int, by: signal.Signals
    ) -> None:
        """Every acknowledged write is there, at most one more is, every value is whole, and the store can be used."""
        async with self.open(tmp_path) as before:
            assert await (await before.state("s", "b")).read_state_data() is None
            async with running(self, tmp_path, "counting") as writer:
                await writer.acknowledges(moment)
                await writer.kill(by)
            await self._nothing_is_lost(before, writer)
        async with self.open(tmp_path) as persist:
            await self._nothing_is_lost(persist, writer)
            await self._can_be_used(persist)

    @pytest.mark.parametrize(("moment", "domain"), [(1, "log"), (10, "state"), (14, "storage")])
    async def test_a_kill_as_soon_as_a_write_is_seen_finds_it_whole(
        self, tmp_path: Path, moment: int, domain: str
    ) -> None:
        """The write after an acknowledged one is looked for, and its writer killed when there is a trace of it."""
        async with self.open(tmp_path) as before:
            async with running(self, tmp_path, "counting") as writer:
                await writer.acknowledges(moment)
                known = writer.acknowledged.count(domain)

                async def goes_on() -> bool:
                    return await self._latest(before, domain) > known

                await writer.sees(goes_on)
                await writer.kill()
            await self._nothing_is_lost(before, writer)
        async with self.open(tmp_path) as persist:
            await self._nothing_is_lost(persist, writer)

    async def _latest(self, persist: Registry, domain: str) -> int:
        match domain:
            case "state":
                value = await (await persist.state("s", "b")).read_state_data()
                values = [value] if value else []
            case "log":
                values = await (await persist.log()).read_log_data()
            case _:
                values = await (await persist.storage(False)).read_storage_data()
        for value in values:
            assert value["copies"] == _whole(value["n"])["copies"]
        return max((value["n"] for value in values), default=0)

    async def _nothing_is_lost(self, persist: Registry, writer: Writer) -> None:
        def possible(domain: str) -> tuple[int, int]:
            return writer.acknowledged.count(domain), writer.acknowledged.count(domain) + 1

        state = await (await persist.state("s", "b")).read_state_data()
        assert state in [_whole(n) if n else None for n in possible("state")]

        log = await (await persist.log()).read_log_data()
        assert len(log) in possible("log")
        assert log == [{"id": str(n), **_whole(n)} for n in range(1, len(log) + 1)]

        measure = await persist.measure("b")
        answer = await measure.read_measure_data("k")
        assert answer in [_whole(n) if n % 2 else None for n in possible("measure")]
        assert [key async for key in measure.list_measure_data()] == ["k"] * (answer is not None)

        series = await persist.candle("BTCUSDT", "1m", "binance")
        surely = 2 * possible("candle")[0]
        assert await series.read_candles_data(surely, START) == [candle(n) for n in range(surely)]
        for n in range(surely, surely + 4):
            found = await series.read_candles_data(1, START + n * MINUTE)
            assert found is None or (found == [candle(n)] and n < surely + 2)

        storage = await (await persist.storage(False)).read_storage_data()
        assert [entry["id"] for entry in storage] == list("abc")[: len(storage)] or possible("storage")[0] == 0
        assert len(storage) == 3 or possible("storage")[0] == 0
        for entry in storage:
            assert entry in [{"id": entry["id"], **_whole(n)} for n in possible("storage")]

    async def _can_be_used(self, persist: Registry) -> None:
        state, log, measure = await persist.state("s", "b"), await persist.log(), await persist.measure("b")
        await state.write_state_data({"after": 1}, 0)
        assert await state.read_state_data() == {"after": 1}
        entries = await log.read_log_data()
        await log.write_log_data([{"id": "after"}])
        assert await log.read_log_data() == [*entries, {"id": "after"}]
        await measure.write_measure_data({"after": 1}, "k", 0)
        assert await measure.read_measure_data("k") == {"after": 1}
        series, storage = await persist.candle("BTCUSDT", "1m", "binance"), await persist.storage(False)
        await series.write_candles_data([candle(n) for n in range(200)])
        assert await series.read_candles_data(200, START) == [candle(n) for n in range(200)]
        await storage.write_storage_data([{"id": name} for name in "abcd"])
        assert sorted(entry["id"] for entry in await storage.read_storage_data()) == list("abcd")
