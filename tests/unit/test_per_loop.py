"""Values that belong to an event loop, in several loops, threads and tasks."""

import asyncio
import gc
import threading
import weakref

import pytest

from backtest_persist.connections.per_loop import LoopAffinity, PerLoop, uncancelled
from backtest_persist.errors import ClosedError


class Value:
    """A value of one event loop, which counts how often it was closed."""

    def __init__(self) -> None:
        self.closed = 0

    async def close(self) -> None:
        self.closed += 1


class Ended(asyncio.SelectorEventLoop):
    """A loop that was closed without a word; one thread that looks for such has to wait until another was here."""

    patient: threading.Thread | None = None

    def __init__(self) -> None:
        super().__init__()
        self.asked = threading.Event()
        self.answered = threading.Event()

    def is_closed(self) -> bool:
        if threading.current_thread() is self.patient and not self.asked.is_set():
            self.asked.set()
            self.answered.wait(5)
        return super().is_closed()


def test_loops_that_begin_in_two_threads_at_once_have_a_value_each() -> None:
    """Both find the loop that has ended, while the other one is about to add its own; no value is lost."""
    values = PerLoop(Value, Value.close)
    outcomes: list[tuple[bool, int]] = []
    ended = Ended()

    async def get() -> Value:
        return values.get()

    async def first() -> None:
        value = values.get()
        outcomes.append((values.get() is value, value.closed))

    async def second() -> None:
        value = values.get()
        ended.answered.set()
        await asyncio.to_thread(thread.join)
        outcomes.append((values.get() is value, value.closed))

    ended.run_until_complete(get())
    ended.close()
    thread = ended.patient = threading.Thread(target=lambda: asyncio.run(first()))
    thread.start()
    assert ended.asked.wait(5)
    asyncio.run(second())
    assert outcomes == [(True, 0), (True, 0)]
    assert values._entries == {}


def test_a_value_is_closed_with_its_loop() -> None:
    """A loop that is run to its end has closed its value; the next one gets another."""
    values = PerLoop(Value, Value.close)

    async def get() -> Value:
        assert values.get() is values.get() is values.current_value
        return values.get()

    first, second = asyncio.run(get()), asyncio.run(get())
    assert first is not second
    assert (first.closed, second.closed) == (1, 1)


def test_retired_values_are_closed_by_close() -> None:
    """They are those of before; the value of after stays open, unless it is the end."""
    values = PerLoop(Value, Value.close)

    async def use() -> None:
        old = values.get()
        values.retire()
        assert values.current_value is None
        new = values.get()
        assert values.retired_values == [old]
        assert values.open_values == [old, new]
        await values.close()
        assert (old.closed, new.closed) == (1, 0)
        values.closed = True
        await asyncio.gather(values.close(), values.close())
        assert (old.closed, new.closed) == (1, 1)
        with pytest.raises(ClosedError):
            values.get()

    asyncio.run(use())


@pytest.mark.parametrize("end", ["asyncio.run", "close"])
def test_a_retired_value_is_let_go_with_its_loop(end: str) -> None:
    """Whether its loop was run to its end or only closed: nothing but a later loop comes after it."""
    values = PerLoop(Value, Value.close)

    async def retire() -> "weakref.ref[Value]":
        value = values.get()
        values.retire()
        return weakref.ref(value)

    async def get() -> None:
        values.get()

    if end == "close":
        loop = asyncio.new_event_loop()
        retired = loop.run_until_complete(retire())
        loop.close()
        del loop
    else:
        retired = asyncio.run(retire())
        gc.collect()
        assert values._retired == []
    asyncio.run(get())
    gc.collect()
    assert values._retired == []
    assert retired() is None


def test_work_is_not_cancelled_with_its_caller() -> None:
    """It runs to its end, and then the caller is cancelled all the same."""
    done: list[str] = []

    async def work() -> None:
        await asyncio.sleep(0.02)
        done.append("work")

    async def main() -> None:
        task = asyncio.create_task(uncancelled(work))
        for _ in range(3):
            await asyncio.sleep(0.001)
            task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        assert done == ["work"]

    asyncio.run(main())


def test_the_error_of_work_that_is_not_cancelled_is_raised() -> None:
    """As if it had been awaited."""

    async def work() -> None:
        raise LookupError("work")

    with pytest.raises(LookupError):
        asyncio.run(uncancelled(work))


def test_a_client_that_was_given_is_used_in_one_event_loop() -> None:
    """In that of its first use; what another one is told says what to do."""
    affinity = LoopAffinity("MongoDB")

    async def conflict() -> str | None:
        return affinity.conflict() or affinity.conflict()

    assert asyncio.run(conflict()) is None
    said = asyncio.run(conflict())
    assert said is not None
    assert "MongoDB client" in said
    assert "or give none" in said
