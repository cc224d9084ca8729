"""ReadAfterWrite: a write that has returned is seen by every later read, whoever reads, however many write at once."""

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from backtest_persist.testing.domains import DOMAINS, LISTS, OVERWRITTEN, REMOVABLE, STATE, Domain
from backtest_persist.testing.suite import Suite
from backtest_persist.testing.writer import running

__all__ = ("ReadAfterWrite",)


class ReadAfterWrite(Suite):
    """A write that has returned is seen by every later read."""

    @pytest.mark.parametrize("domain", OVERWRITTEN, ids=str)
    async def test_a_write_is_seen_by_the_next_read_of_another_instance(self, tmp_path: Path, domain: Domain) -> None:
        """Two registries on one store write in turn; after each write both read it, also by instances made anew."""
        async with self.open(tmp_path) as one, self.open(tmp_path) as two:
            for reader in (one, two):
                assert await domain.read(reader, domain.sample) is None
            for n in range(10):
                await domain.write((one, two)[n // 2 % 2], domain.sample, {"n": n})
                for reader in (one, two):
                    assert await domain.read(reader, domain.sample) == {"n": n}
                if n % 3 == 2:
                    getattr(two, domain.name).clear()

    @pytest.mark.parametrize("domain", REMOVABLE, ids=str)
    async def test_a_removal_is_seen_by_the_next_read_of_another_instance(self, tmp_path: Path, domain: Domain) -> None:
        """So is the write that revives, in reads and lists."""
        async with self.open(tmp_path) as one, self.open(tmp_path) as two:
            for n in range(6):
                writer = (one, two)[n // 2 % 2]
                await domain.write(writer, domain.sample, {"n": n})
                for reader in (one, two):
                    assert await domain.read(reader, domain.sample) == {"n": n}
                    assert await domain.keys(reader, domain.sample) == [domain.sample[-1]]
                await domain.remove(writer, domain.sample)
                for reader in (one, two):
                    assert await domain.read(reader, domain.sample) is None
                    assert await domain.keys(reader, domain.sample) == []

    async def test_a_write_of_another_process_is_seen_by_the_next_read(self, tmp_path: Path) -> None:
        """A reader that knows the old values of all domains reads the new ones once the other process has told."""
        async with self.open(tmp_path) as persist:
            for domain in OVERWRITTEN:
                await domain.write(persist, domain.sample, {"n": 1})
                assert await domain.read(persist, domain.sample) == {"n": 1}
            async with running(self, tmp_path, "everywhere") as writer:
                for number, domain in enumerate(DOMAINS, start=1):
                    await writer.acknowledges(number)
                    assert writer.acknowledged[-1] == domain.name
                await writer.ends()
            for domain in DOMAINS:
                assert await domain.read(persist, domain.sample) == {"n": 2}

    async def test_a_write_of_another_event_loop_is_seen_by_the_next_read(self, tmp_path: Path) -> None:
        """A thread with a loop of its own opens the store, and each sees what the other has written."""

        async def elsewhere() -> Any:
            async with self.open(tmp_path) as other:
                seen = await STATE.read(other, STATE.sample)
                await STATE.write(other, STATE.sample, {"n": 2})
                return seen

        async with self.open(tmp_path) as persist:
            await STATE.write(persist, STATE.sample, {"n": 1})
            assert await asyncio.to_thread(asyncio.run, elsewhere()) == {"n": 1}
            assert await STATE.read(persist, STATE.sample) == {"n": 2}

    @pytest.mark.parametrize("domain", OVERWRITTEN, ids=str)
    async def test_of_first_writes_at_once_one_stands_for_all(self, tmp_path: Path, domain: Domain) -> None:
        """Twenty first writes of one context, by two registries, make one value, the same for every reader."""
        async with self.open(tmp_path) as one, self.open(tmp_path) as two:
            payloads = [{"n": n, "copies": [n] * 20} for n in range(20)]
            await asyncio.gather(
                *(domain.write((one, two)[n % 2], domain.sample, payload) for n, payload in enumerate(payloads))
            )
            found = await domain.read(one, domain.sample)
            assert found in payloads
            assert await domain.read(two, domain.sample) == found
            if domain.kind in ("removable", "list"):
                assert await domain.keys(two, domain.sample) == [domain.sample[-1]]
            await domain.write(two, domain.sample, {"n": -1})
            assert await domain.read(one, domain.sample) == {"n": -1}

    async def test_writes_of_many_contexts_at_once_do_not_mix(self, tmp_path: Path) -> None:
        """Ten contexts of each domain are written by tasks at once: each reads its own, from both registries."""
        many = [(domain, domain.numbered(n), {"n": n}) for n in range(10) for domain in DOMAINS]
        async with self.open(tmp_path) as one, self.open(tmp_path) as two:
            await asyncio.gather(
                *(domain.write((one, two)[payload["n"] % 2], parts, payload) for domain, parts, payload in many)
            )
            for reader in (one, two):
                found = await asyncio.gather(*(domain.read(reader, parts) for domain, parts, _ in many))
                assert found == [payload for _, _, payload in many]

    @pytest.mark.parametrize("domain", LISTS, ids=str)
    async def test_entries_appended_at_once_are_all_there_once(self, tmp_path: Path, domain: Domain) -> None:
        """Sixteen calls of forty entries by two registries: none is lost or doubled, each call is in order."""
        async with self.open(tmp_path) as one, self.open(tmp_path) as two:
            instances = [await domain.instance(registry, domain.sample) for registry in (one, two)]
            write = f"write_{domain.name}_data"
            calls = [[{"id": f"{call}-{n}", "call": call, "n": n} for n in range(40)] for call in range(16)]
            await asyncio.gather(
                *(getattr(instances[number % 2], write)(entries) for number, entries in enumerate(calls))
            )
            for reader in (one, two):
                found = await domain.read_as_is(reader, domain.sample)
                assert len(found) == 640
                for number, entries in enumerate(calls):
                    assert [entry for entry in found if entry["call"] == number] == entries

    @pytest.mark.parametrize("domain", LISTS, ids=str)
    async def test_the_same_ids_written_at_once_make_one_entry_each(self, tmp_path: Path, domain: Domain) -> None:
        """Eight calls with the same forty ids: each id has one entry, which one call has written entirely."""
        async with self.open(tmp_path) as one, self.open(tmp_path) as two:
            instances = [await domain.instance(registry, domain.sample) for registry in (one, two)]
            write = f"write_{domain.name}_data"
            calls = [[{"id": str(n), "call": call, "copies": [call] * 20} for n in range(40)] for call in range(8)]
            await asyncio.gather(
                *(getattr(instances[number % 2], write)(entries) for number, entries in enumerate(calls))
            )
            found = await domain.read_as_is(one, domain.sample)
            assert await domain.read_as_is(two, domain.sample) == found
            assert Counter(entry["id"] for entry in found) == Counter(str(n) for n in range(40))
            for entry in found:
                assert entry["copies"] == [entry["call"]] * 20

    @pytest.mark.parametrize("domain", OVERWRITTEN, ids=str)
    async def test_a_reader_among_writes_sees_whole_values_and_no_old_ones(
        self, tmp_path: Path, domain: Domain
    ) -> None:
        """While one registry overwrites a value, the other reads: always one whole, never older than acknowledged."""
        async with self.open(tmp_path) as one, self.open(tmp_path) as two:
            await domain.write(one, domain.sample, {"n": 0, "copies": [0] * 200})
            acknowledged = 0
            done = asyncio.Event()

            async def write() -> None:
                nonlocal acknowledged
                try:
                    for n in range(1, 21):
                        await domain.write(one, domain.sample, {"n": n, "copies": [n] * 200})
                        acknowledged = n
                        await asyncio.sleep(0)
                finally:
                    done.set()

            async def read() -> None:
                while not done.is_set():
                    known = acknowledged
                    found = await domain.read(two, domain.sample)
                    assert found == {"n": found["n"], "copies": [found["n"]] * 200}
                    assert known <= found["n"] <= acknowledged + 1
                    await asyncio.sleep(0)

            await asyncio.gather(write(), read(), read())
            assert await domain.read(two, domain.sample) == {"n": 20, "copies": [20] * 200}

    @pytest.mark.parametrize("domain", LISTS, ids=str)
    async def test_a_reader_among_appends_sees_all_that_were_acknowledged(self, tmp_path: Path, domain: Domain) -> None:
        """A list that is being appended to is read without gaps, in order."""
        async with self.open(tmp_path) as one, self.open(tmp_path) as two:
            acknowledged = 0
            done = asyncio.Event()

            async def write() -> None:
                nonlocal acknowledged
                try:
                    for n in range(30):
                        await domain.write(one, (*domain.sample[:-1], str(n)), {"n": n})
                        acknowledged = n + 1
                        await asyncio.sleep(0)
                finally:
                    done.set()

            async def read() -> None:
                while not done.is_set():
                    known = acknowledged
                    found = await domain.keys(two, domain.sample)
                    assert found == [str(n) for n in range(len(found))]
                    assert known <= len(found) <= acknowledged + 1
                    await asyncio.sleep(0)

            await asyncio.gather(write(), read())
            assert len(await domain.keys(two, domain.sample)) == 30
