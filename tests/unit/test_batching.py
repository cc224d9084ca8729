"""Batches: which calls share one, in which order they are sent, and what a cancelled call leaves behind."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import nullcontext
from typing import Any

import pytest

from backtest_persist import StoreUnavailableError
from backtest_persist.core.batching import BATCH_BYTES, Batcher, Call


def timed_out(item: Any) -> Exception:
    return StoreUnavailableError(f"{item} timed out")


class Recorder:
    """Records the batches that are sent; each is answered when the test sets its reply."""

    def __init__(
        self, *, max_in_flight: int = 1, max_size: int = 100, timeout: float = 60.0, limit: Any = nullcontext
    ) -> None:
        self.sent: list[list[Any]] = []
        self.seconds: list[float] = []
        self.replies: list[asyncio.Event] = []
        self.batcher: Batcher[Any, Any] = Batcher(
            self.answer,
            max_in_flight=max_in_flight,
            max_size=max_size,
            timeout=timeout,
            timed_out=timed_out,
            limit=limit,
        )

    async def answer(self, calls: Sequence[Call[Any, Any]], seconds: float) -> Sequence[Call[Any, Any]]:
        self.sent.append([call.item for call in calls])
        self.seconds.append(seconds)
        reply = asyncio.Event()
        self.replies.append(reply)
        await reply.wait()
        for call in calls:
            if isinstance(call.item, Exception):
                call.fail(call.item)
            else:
                call.resolve(call.item)
        return ()

    async def close(self) -> None:
        """Answer everything."""
        while self.batcher._in_flight:
            for reply in self.replies:
                reply.set()
            await asyncio.sleep(0)

    async def turn(self) -> None:
        """Let everything that can happen now happen."""
        for _ in range(10):
            await asyncio.sleep(0)


RecorderMaker = Callable[..., Recorder]


@pytest.fixture
async def make_recorder() -> AsyncIterator[RecorderMaker]:
    """Makes recorders, and answers everything at the end of the test."""
    recorders: list[Recorder] = []

    def make_recorder(**options: Any) -> Recorder:
        recorders.append(Recorder(**options))
        return recorders[-1]

    yield make_recorder
    for recorder in recorders:
        await recorder.close()


async def submit_behind_one(recorder: Recorder, items: str) -> list[asyncio.Future[Any]]:
    """Send a batch of the first item alone, and submit the others, which have to wait for it."""
    first = recorder.batcher.submit(items[0])
    await recorder.turn()
    return [first, *(recorder.batcher.submit(item) for item in items[1:])]


async def test_a_single_call_is_sent_at_once(make_recorder: RecorderMaker) -> None:
    """With no batch in flight a call is sent in the same turn of the loop, without waiting for others."""
    recorder = make_recorder()
    first = recorder.batcher.submit("a")
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert recorder.sent == [["a"]]
    recorder.replies[0].set()
    assert await first == "a"


async def test_a_single_read_takes_no_task(make_recorder: RecorderMaker) -> None:
    """It is sent before anything else has a turn, and cancelled with its caller; the next call waits for it."""
    recorder = make_recorder()
    asking = asyncio.create_task(recorder.batcher.ask("a"))
    await asyncio.sleep(0)
    assert recorder.sent == [["a"]]
    tasks = asyncio.all_tasks()
    assert tasks == {asking, asyncio.current_task()}
    second = recorder.batcher.submit("b")
    await recorder.turn()
    assert recorder.sent == [["a"]]
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    await recorder.turn()
    recorder.replies[1].set()
    assert await second == "b"
    await recorder.batcher.drain()


async def test_a_read_is_resolved_or_fails_as_its_batch_does(make_recorder: RecorderMaker) -> None:
    """In the task of the caller and in a batch, an answer is returned and an error is raised."""
    recorder = make_recorder(max_in_flight=2)
    for company in (0, 3):
        items: list[Any] = ["a", LookupError("mine"), *range(company)]
        asking = [asyncio.create_task(recorder.batcher.ask(item)) for item in items]
        while not all(task.done() for task in asking):
            await recorder.turn()
            for reply in recorder.replies:
                reply.set()
        assert asking[0].result() == "a"
        assert str(asking[1].exception()) == "mine"


async def test_calls_that_one_batch_resolved_share_the_next_one(make_recorder: RecorderMaker) -> None:
    """Callers whom one batch woke read again in the same turn of the loop, and are sent together."""
    recorder = make_recorder()
    first = await submit_behind_one(recorder, "abc")
    recorder.replies[0].set()
    await recorder.turn()
    recorder.replies[1].set()
    await asyncio.gather(*first)
    asking = [asyncio.create_task(recorder.batcher.ask(item)) for item in "de"]
    await recorder.turn()
    assert recorder.sent == [["a"], ["b", "c"], ["d", "e"]]
    recorder.replies[2].set()
    assert await asyncio.gather(*asking) == ["d", "e"]


async def test_callers_that_read_at_the_same_time_share_a_batch_from_the_second_time_on(
    make_recorder: RecorderMaker,
) -> None:
    """Two callers that read in the same turn, again and again, wait for each other; a single caller does not wait."""
    recorder = make_recorder(max_in_flight=2)
    for items in ("ab", "cd", "e", "f"):
        asking = [asyncio.create_task(recorder.batcher.ask(item)) for item in items]
        while not all(task.done() for task in asking):
            await recorder.turn()
            for reply in recorder.replies:
                reply.set()
    assert recorder.sent == [["a"], ["b"], ["c", "d"], ["e"], ["f"]]
    assert not recorder.batcher._contended


async def test_calls_of_one_turn_share_a_batch(make_recorder: RecorderMaker) -> None:
    """Calls that are submitted before the event loop comes round are sent together."""
    recorder = make_recorder()
    answers = [recorder.batcher.submit(item) for item in "abc"]
    await recorder.turn()
    assert recorder.sent == [["a", "b", "c"]]
    recorder.replies[0].set()
    assert await asyncio.gather(*answers) == ["a", "b", "c"]


async def test_pending_calls_share_a_batch_in_their_order(make_recorder: RecorderMaker) -> None:
    """Calls submitted while a batch is in flight share the next one, in the order of submission."""
    recorder = make_recorder()
    answers = await submit_behind_one(recorder, "abcd")
    recorder.replies[0].set()
    await recorder.turn()
    assert recorder.sent == [["a"], ["b", "c", "d"]]
    recorder.replies[1].set()
    assert await asyncio.gather(*answers) == ["a", "b", "c", "d"]


async def test_a_call_never_joins_a_batch_that_was_sent(make_recorder: RecorderMaker) -> None:
    """A second batch is sent beside the first one where the limit allows it, and the call is part of that."""
    recorder = make_recorder(max_in_flight=2)
    recorder.batcher.submit("a")
    await recorder.turn()
    recorder.batcher.submit("b")
    recorder.batcher.submit("c")
    await recorder.turn()
    recorder.batcher.submit("d")
    await recorder.turn()
    assert recorder.sent == [["a"], ["b", "c"]]
    recorder.replies[1].set()
    await recorder.turn()
    assert recorder.sent == [["a"], ["b", "c"], ["d"]]


async def test_a_batch_has_a_limited_size(make_recorder: RecorderMaker) -> None:
    """Calls beyond it are sent with the following batches."""
    recorder = make_recorder(max_size=2)
    await submit_behind_one(recorder, "abcde")
    for reply in range(4):
        await recorder.turn()
        if reply < len(recorder.replies):
            recorder.replies[reply].set()
    assert recorder.sent == [["a"], ["b", "c"], ["d", "e"]]


async def test_a_cancelled_call_leaves_the_others_of_its_batch(make_recorder: RecorderMaker) -> None:
    """Cancelled before the dispatch it is not sent; cancelled later, its batch goes on with it."""
    recorder = make_recorder()
    first, second, third = await submit_behind_one(recorder, "abc")
    second.cancel()
    await recorder.turn()
    first.cancel()
    recorder.replies[0].set()
    await recorder.turn()
    assert recorder.sent == [["a"], ["c"]]
    recorder.replies[1].set()
    assert await third == "c"


async def test_each_call_has_its_own_error(make_recorder: RecorderMaker) -> None:
    """A call is resolved or fails by itself; when a batch fails as a whole, each of its calls fails."""
    recorder = make_recorder()
    await submit_behind_one(recorder, "a")
    good, bad = recorder.batcher.submit("b"), recorder.batcher.submit(LookupError("mine"))
    await recorder.turn()
    recorder.replies[0].set()
    await recorder.turn()
    recorder.replies[1].set()
    assert await good == "b"
    with pytest.raises(LookupError, match="mine"):
        await bad

    async def fail(calls: Sequence[Call[Any, Any]], seconds: float) -> Sequence[Call[Any, Any]]:
        raise ConnectionError("all")

    batcher: Batcher[Any, Any] = Batcher(fail, max_in_flight=1, max_size=9, timeout=60.0, timed_out=timed_out)
    answers = [batcher.submit(item) for item in "abc"]
    assert [str(error) for error in await asyncio.gather(*answers, return_exceptions=True)] == ["all"] * 3
    await batcher.drain()
    assert not batcher._in_flight


class Sized(Batcher[Any, Any]):
    """Sends items that are as large as they say."""

    def size_of(self, item: Any) -> int:
        return item


async def test_a_batch_carries_a_limited_number_of_bytes() -> None:
    """An item that is larger than a batch goes alone; what is sent again comes first."""
    sent: list[list[Any]] = []
    again = {5}

    async def send(calls: Sequence[Call[Any, Any]], seconds: float) -> Sequence[Call[Any, Any]]:
        sent.append([call.item for call in calls])
        left = [call for call in calls if call.item in again]
        again.difference_update(call.item for call in calls)
        for call in calls:
            if call not in left:
                call.resolve(call.item)
        return left

    batcher = Sized(send, max_in_flight=1, max_size=9, timeout=60.0, timed_out=timed_out)
    items = [BATCH_BYTES, 2 * BATCH_BYTES, 5, BATCH_BYTES - 5, 1]
    assert await asyncio.gather(*map(batcher.submit, items)) == items
    assert sent == [[BATCH_BYTES], [2 * BATCH_BYTES], [5, BATCH_BYTES - 5], [5, 1]]
    assert batcher._bytes == 0


async def test_the_size_of_an_item_is_that_which_is_known_when_it_is_sent() -> None:
    """What was unknown when it was submitted counts as soon as it is known."""
    sent: list[int] = []
    sizes = {"now": 0}

    class Learning(Batcher[Any, Any]):
        def size_of(self, item: Any) -> int:
            return sizes["now"]

    async def send(calls: Sequence[Call[Any, Any]], seconds: float) -> Sequence[Call[Any, Any]]:
        sent.append(len(calls))
        sizes["now"] = BATCH_BYTES // 2
        for call in calls:
            call.resolve(call.item)
        return ()

    batcher = Learning(send, max_in_flight=1, max_size=3, timeout=60.0, timed_out=timed_out)
    await asyncio.gather(*map(batcher.submit, range(8)))
    assert sent == [3, 2, 2, 1]


async def test_the_time_of_a_call_behind_many_bytes_begins_when_it_is_sent() -> None:
    """As long as batches succeed; once they do not, it fails as any other, unsent."""
    succeeds = True
    seconds_given: list[float] = []

    async def send(calls: Sequence[Call[Any, Any]], seconds: float) -> Sequence[Call[Any, Any]]:
        seconds_given.append(seconds)
        await asyncio.sleep(0.15)
        for call in calls:
            if succeeds:
                call.resolve(call.item)
            else:
                call.fail(LookupError("no"))
        return ()

    batcher = Sized(send, max_in_flight=1, max_size=9, timeout=0.4, timed_out=timed_out)
    items = [BATCH_BYTES + n for n in range(6)]
    assert await asyncio.gather(*map(batcher.submit, items)) == items
    assert min(seconds_given) > 0
    succeeds = False
    ends = await asyncio.gather(*map(batcher.submit, items), return_exceptions=True)
    assert [type(end) for end in ends[:1]] == [LookupError]
    assert "nothing was sent" in str(ends[-1])
    assert len(seconds_given) < 2 * len(items)
    await batcher.drain()


async def test_a_call_that_was_pending_for_its_whole_deadline_is_not_sent(make_recorder: RecorderMaker) -> None:
    """Time in the queue counts: a call without time left fails, and a batch has the time that is left."""
    recorder = make_recorder(timeout=0.05)
    first, second = await submit_behind_one(recorder, "ab")
    await asyncio.sleep(0.06)  # the deadline itself is what passes here
    third = recorder.batcher.submit("c")
    recorder.replies[0].set()
    async with asyncio.timeout(5):
        with pytest.raises(StoreUnavailableError, match="nothing was sent"):
            await second
    assert await first == "a"
    await recorder.turn()
    assert recorder.sent == [["a"], ["c"]]
    assert 0 < recorder.seconds[1] <= 0.05
    recorder.replies[1].set()
    assert await third == "c"


async def test_a_call_times_out_while_its_batch_goes_on(make_recorder: RecorderMaker) -> None:
    """Calls in flight and pending calls fail in time; the batch counts against the limit until it ends.

    Of a call that was never sent the error says so.
    """
    recorder = make_recorder(timeout=0.05)
    answers = await submit_behind_one(recorder, "ab")
    async with asyncio.timeout(5):
        for answer, problem in zip(answers, ("a timed out", "nothing was sent"), strict=True):
            with pytest.raises(StoreUnavailableError, match=problem):
                await answer
    third = recorder.batcher.submit("c")
    await recorder.turn()
    assert recorder.sent == [["a"]]
    recorder.replies[0].set()
    await recorder.turn()
    assert recorder.sent == [["a"], ["c"]]
    recorder.replies[1].set()
    assert await third == "c"


async def test_a_busy_event_loop_times_out_no_call(make_recorder: RecorderMaker) -> None:
    """An answer that came while the loop was busy with something else is given to its caller."""
    recorder = make_recorder(timeout=0.05)
    (answer,) = await submit_behind_one(recorder, "a")
    loop = asyncio.get_running_loop()
    loop.call_soon(loop.call_soon, recorder.replies[0].set)
    time.sleep(0.2)  # noqa: ASYNC251  # the strategy computes something
    assert await answer == "a"


async def test_a_single_read_is_bounded_in_the_task_of_its_caller(make_recorder: RecorderMaker) -> None:
    """It has the timeout it was given there; without one it is submitted, and goes on when its caller is cancelled."""

    def impatient(seconds: float) -> asyncio.Timeout:
        return asyncio.timeout(seconds / 10)

    recorder = make_recorder(timeout=0.1, limit=impatient)
    with pytest.raises(StoreUnavailableError, match="a timed out"):
        await recorder.batcher.ask("a")
    assert not recorder.batcher._in_flight
    recorder = make_recorder(limit=None)
    asking = asyncio.create_task(recorder.batcher.ask("b"))
    await recorder.turn()
    asking.cancel()
    await recorder.turn()
    assert (asking.cancelled(), len(recorder.batcher._in_flight)) == (True, 1)


async def test_draining_waits_for_pending_calls(make_recorder: RecorderMaker) -> None:
    """After it no batch is in flight and no call is pending."""
    recorder = make_recorder()
    answers = await submit_behind_one(recorder, "ab")
    draining = asyncio.create_task(recorder.batcher.drain())
    for reply in range(2):
        await recorder.turn()
        assert not draining.done()
        recorder.replies[reply].set()
    await draining
    assert [answer.result() for answer in answers] == ["a", "b"]


def test_a_call_submitted_at_the_end_of_the_loop_is_sent() -> None:
    """The end cancels calls in flight, and a call that is submitted in a `finally` meanwhile is still answered."""
    answers: list[Any] = []

    async def main() -> None:
        recorder = Recorder()
        dispatched = recorder.batcher.submit("a")

        async def strategy() -> None:
            try:
                await asyncio.Event().wait()
            finally:
                last = recorder.batcher.submit("last")
                asyncio.get_running_loop().call_later(0.01, lambda: recorder.replies[-1].set())
                answers.append(await last)

        running = asyncio.create_task(strategy())
        await recorder.turn()
        answers.extend((dispatched, running))

    asyncio.run(main())
    dispatched, running, last = answers
    assert dispatched.cancelled()
    assert running.cancelled()
    assert last == "last"


async def test_a_batch_that_is_cancelled_before_it_begins_does_not_count(make_recorder: RecorderMaker) -> None:
    """The end of a loop may come just then; pending calls are sent, and draining ends."""
    recorder = make_recorder()
    first = recorder.batcher.submit("a")
    await asyncio.sleep(0)
    (task,) = recorder.batcher._in_flight
    task.cancel()
    second = recorder.batcher.submit("b")
    await recorder.turn()
    assert first.cancelled()
    assert recorder.sent == [["b"]]
    recorder.replies[0].set()
    assert await second == "b"
    await recorder.batcher.drain()
