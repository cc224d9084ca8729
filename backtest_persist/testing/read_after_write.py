"""ReadAfterWrite: a write that has returned is seen by every later read, also among concurrent writes."""

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

from backtest_persist.testing.subjects import (
    Subject,
    has_many_contexts,
    is_list,
    is_listed,
    is_overwritten,
    is_removable,
    is_replacing_list,
)
from backtest_persist.testing.suite import Suite, for_each, for_first
from backtest_persist.testing.writer import running

__all__ = ("ReadAfterWrite",)


class ReadAfterWrite(Suite):
    """A write that has returned is seen by every later read."""

    @for_each(is_overwritten)
    async def test_a_write_is_seen_by_the_next_read_of_another_instance(self, tmp_path: Path, subject: Subject) -> None:
        """Two registries on one store write in turn; after each write both read it, also through new instances."""
        async with self.open(tmp_path) as one, self.open(tmp_path) as two:
            for reader in (one, two):
                assert await subject.read(reader, subject.sample) is None
            for n in range(10):
                await subject.write((one, two)[n // 2 % 2], subject.sample, {"n": n})
                for reader in (one, two):
                    assert await subject.read(reader, subject.sample) == {"n": n}
                if n % 3 == 2:
                    two.entry(subject.domain).clear()

    @for_each(is_removable)
    async def test_a_removal_is_seen_by_the_next_read_of_another_instance(
        self, tmp_path: Path, subject: Subject
    ) -> None:
        """So is the write that revives the value, in reads and lists."""
        async with self.open(tmp_path) as one, self.open(tmp_path) as two:
            for n in range(6):
                writer = (one, two)[n // 2 % 2]
                await subject.write(writer, subject.sample, {"n": n})
                for reader in (one, two):
                    assert await subject.read(reader, subject.sample) == {"n": n}
                    assert await subject.keys(reader, subject.sample) == [subject.sample[-1]]
                await subject.remove(writer, subject.sample)
                for reader in (one, two):
                    assert await subject.read(reader, subject.sample) is None
                    assert await subject.keys(reader, subject.sample) == []

    async def test_a_write_of_another_process_is_seen_by_the_next_read(self, tmp_path: Path) -> None:
        """A reader of the old values of all domains reads the new ones once the other process acknowledges them."""
        async with self.open(tmp_path) as persist:
            for subject in filter(is_overwritten, self.subjects):
                await subject.write(persist, subject.sample, {"n": 1})
                assert await subject.read(persist, subject.sample) == {"n": 1}
            async with running(self, tmp_path, "write each", self.subjects) as writer:
                for number, subject in enumerate(self.subjects, start=1):
                    await writer.wait_for_acknowledgements(number)
                    assert writer.acknowledged[-1] == subject.name
                await writer.wait_for_exit()
            for subject in self.subjects:
                assert await subject.read(persist, subject.sample) == {"n": 2}

    @for_first(is_overwritten)
    async def test_a_write_of_another_event_loop_is_seen_by_the_next_read(
        self, tmp_path: Path, subject: Subject
    ) -> None:
        """A thread with another loop opens the store, and each sees what the other has written."""

        async def replace() -> Any:
            async with self.open(tmp_path) as other:
                seen = await subject.read(other, subject.sample)
                await subject.write(other, subject.sample, {"n": 2})
                return seen

        async with self.open(tmp_path) as persist:
            await subject.write(persist, subject.sample, {"n": 1})
            assert await asyncio.to_thread(asyncio.run, replace()) == {"n": 1}
            assert await subject.read(persist, subject.sample) == {"n": 2}

    @for_each(is_overwritten)
    async def test_concurrent_first_writes_leave_one_value(self, tmp_path: Path, subject: Subject) -> None:
        """After twenty first writes of one context by two registries every reader finds the same value."""
        async with self.open(tmp_path) as one, self.open(tmp_path) as two:
            payloads = [{"n": n, "copies": [n] * 20} for n in range(20)]
            await asyncio.gather(
                *(subject.write((one, two)[n % 2], subject.sample, payload) for n, payload in enumerate(payloads))
            )
            found = await subject.read(one, subject.sample)
            assert found in payloads
            assert await subject.read(two, subject.sample) == found
            if is_listed(subject):
                assert await subject.keys(two, subject.sample) == [subject.sample[-1]]
            await subject.write(two, subject.sample, {"n": -1})
            assert await subject.read(one, subject.sample) == {"n": -1}

    @for_first(is_overwritten)
    async def test_concurrent_writes_of_one_value_are_kept_in_their_order(
        self, tmp_path: Path, subject: Subject
    ) -> None:
        """Of writes by one instance that wait at the same time the last one wins, also after a much larger one."""
        large = {"rows": [{"n": n, "name": f"row {n}"} for n in range(20_000)]}
        async with self.open(tmp_path) as persist:
            await asyncio.gather(
                *(subject.write(persist, subject.sample, value) for value in ({"n": 1}, large, {"n": 2}, {"n": 3}))
            )
            assert await subject.read(persist, subject.sample) == {"n": 3}
            await asyncio.gather(*(subject.write(persist, subject.sample, value) for value in ({"n": 4}, large)))
            assert await subject.read(persist, subject.sample) == large

    @for_first(is_replacing_list)
    async def test_a_call_of_many_entries_keeps_its_place(self, tmp_path: Path, subject: Subject) -> None:
        """An entry that is written after it stays, and one that is written before it is replaced."""
        many = [{"id": f"e{n}", "by": "many"} for n in range(2_500)]
        async with self.open(tmp_path) as persist:
            await asyncio.gather(
                subject.write_entries(persist, subject.sample, [{"id": "e2400", "by": "earlier"}]),
                subject.write_entries(persist, subject.sample, many),
                subject.write_entries(persist, subject.sample, [{"id": "e2401", "by": "later"}]),
            )
            found = {entry["id"]: entry["by"] for entry in await subject.read_result(persist, subject.sample)}
            assert found == {entry["id"]: "later" if entry["id"] == "e2401" else "many" for entry in many}

    async def test_concurrent_writes_of_many_contexts_do_not_mix(self, tmp_path: Path) -> None:
        """Ten contexts of each domain are written at once: each has its value, in both registries."""
        subjects = list(filter(has_many_contexts, self.subjects))
        many = [(subject, subject.numbered(n), {"n": n}) for n in range(10) for subject in subjects]
        async with self.open(tmp_path) as one, self.open(tmp_path) as two:
            await asyncio.gather(
                *(subject.write((one, two)[payload["n"] % 2], parts, payload) for subject, parts, payload in many)
            )
            for reader in (one, two):
                found = await asyncio.gather(*(subject.read(reader, parts) for subject, parts, _ in many))
                assert found == [payload for _, _, payload in many]

    @for_each(is_list)
    async def test_entries_appended_concurrently_are_each_there_once(self, tmp_path: Path, subject: Subject) -> None:
        """Sixteen calls of forty entries by two registries: no entry is lost or doubled, and each call is in order."""
        async with self.open(tmp_path) as one, self.open(tmp_path) as two:
            calls = [[{"id": f"{call}-{n}", "call": call, "n": n} for n in range(40)] for call in range(16)]
            await asyncio.gather(
                *(
                    subject.write_entries((one, two)[number % 2], subject.sample, entries)
                    for number, entries in enumerate(calls)
                )
            )
            for reader in (one, two):
                found = await subject.read_result(reader, subject.sample)
                assert len(found) == 640
                for number, entries in enumerate(calls):
                    assert [entry for entry in found if entry["call"] == number] == entries

    @for_each(is_list)
    async def test_the_same_ids_written_concurrently_make_one_entry_each(
        self, tmp_path: Path, subject: Subject
    ) -> None:
        """Eight calls with the same forty ids: each id has one entry, all of which was written by one call."""
        async with self.open(tmp_path) as one, self.open(tmp_path) as two:
            calls = [[{"id": str(n), "call": call, "copies": [call] * 20} for n in range(40)] for call in range(8)]
            await asyncio.gather(
                *(
                    subject.write_entries((one, two)[number % 2], subject.sample, entries)
                    for number, entries in enumerate(calls)
                )
            )
            found = await subject.read_result(one, subject.sample)
            assert await subject.read_result(two, subject.sample) == found
            assert Counter(entry["id"] for entry in found) == Counter(str(n) for n in range(40))
            for entry in found:
                assert entry["copies"] == [entry["call"]] * 20

    @for_each(is_overwritten)
    async def test_a_reader_during_writes_sees_whole_values_and_no_old_ones(
        self, tmp_path: Path, subject: Subject
    ) -> None:
        """Another registry reads one whole value, never older than the last acknowledged one."""
        async with self.open(tmp_path) as one, self.open(tmp_path) as two:
            await subject.write(one, subject.sample, {"n": 0, "copies": [0] * 200})
            acknowledged = 0
            done = asyncio.Event()

            async def write() -> None:
                nonlocal acknowledged
                try:
                    for n in range(1, 21):
                        await subject.write(one, subject.sample, {"n": n, "copies": [n] * 200})
                        acknowledged = n
                        await asyncio.sleep(0)
                finally:
                    done.set()

            async def read() -> None:
                while not done.is_set():
                    known = acknowledged
                    found = await subject.read(two, subject.sample)
                    assert found == {"n": found["n"], "copies": [found["n"]] * 200}
                    assert known <= found["n"] <= acknowledged + 1
                    await asyncio.sleep(0)

            await asyncio.gather(write(), read(), read())
            assert await subject.read(two, subject.sample) == {"n": 20, "copies": [20] * 200}

    @for_each(is_list)
    async def test_a_reader_during_appends_sees_all_acknowledged_entries(
        self, tmp_path: Path, subject: Subject
    ) -> None:
        """The list is read without gaps, in order."""
        async with self.open(tmp_path) as one, self.open(tmp_path) as two:
            acknowledged = 0
            done = asyncio.Event()

            async def write() -> None:
                nonlocal acknowledged
                try:
                    for n in range(30):
                        await subject.write(one, (*subject.sample[:-1], str(n)), {"n": n})
                        acknowledged = n + 1
                        await asyncio.sleep(0)
                finally:
                    done.set()

            async def read() -> None:
                while not done.is_set():
                    known = acknowledged
                    found = await subject.keys(two, subject.sample)
                    assert found == [str(n) for n in range(len(found))]
                    assert known <= len(found) <= acknowledged + 1
                    await asyncio.sleep(0)

            await asyncio.gather(write(), read())
            assert len(await subject.keys(two, subject.sample)) == 30
