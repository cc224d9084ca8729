"""What belongs to an event loop, in several threads at once."""

import asyncio
import threading

from backtest_persist.connections.per_loop import PerLoop


class Value:
    """What a loop holds."""

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
