"""The next batch of writes: what shares a bulk, what waits for what, and whose turn it is."""

import asyncio
from collections import Counter, deque
from typing import Any

import pytest

from backtest_persist.core.batching import BATCH_BYTES, Call
from backtest_persist.core.write_queue import Deletion, Upserts, Write, WriteQueue
from backtest_persist.domains.state import StateContext


class Queue(WriteQueue[Any, Any]):
    """A write queue that sends nothing: a test takes its batches."""

    def __init__(self, max_size: int = 100) -> None:
        self._pending = deque()
        self._max_size = max_size
        self._timeout = 60.0
        self._bytes = 0
        self._succeeded_at = 0.0
        self._last_sent = None

    def add(self, *items: Any) -> None:
        self._pending.extend(Call[Any, Any](item, 1.0) for item in items)

    def batches(self) -> list[list[Any]]:
        """Take batches until nothing can be sent, and send what they hold of a call of many items."""
        found: list[list[Any]] = []
        while batch := self.next_batch(1.0):
            found.append([call.item for call in batch])
            item = batch[0].item
            if isinstance(item, Upserts) and item.take() and item.updates:
                self._pending.extendleft(batch)
        return found


@pytest.fixture
async def queue() -> Queue:
    """A queue in a running event loop."""
    return Queue()


def write(name: str, **options: Any) -> Write[Any]:
    """Return an upsert of all fields of a context."""
    options = {"update": {}, "replaces": True, **options}
    return Write(StateContext(signal_id=name, bucket_name="b"), **options)


def upserts(*names: str, size: int = 0) -> Upserts[Any]:
    """Return a call of many items."""
    contexts = [StateContext(signal_id=name, bucket_name="b") for name in names]
    updates: deque[Any] = deque((context, {}, size) for context in contexts)
    return Upserts(Counter(context.cache_key for context in contexts), len(names), updates)


async def test_writes_of_different_contexts_and_kinds_share_a_batch(queue: Queue) -> None:
    """In the order of their calls, as many as there is room for."""
    items = [write("a"), write("b", replaces=False), write("c", upsert=False, replaces=False), write("d")]
    queue.add(*items)
    assert queue.batches() == [items]
    queue._max_size = 3
    queue.add(*items)
    assert queue.batches() == [items[:3], items[3:]]
    large = [write("a", size=BATCH_BYTES), write("b", size=BATCH_BYTES - 1), write("c", size=1), write("d", size=1)]
    queue.add(*large)
    assert queue.batches() == [large[:1], large[1:3], large[3:]]


async def test_writes_of_one_context_share_a_batch_only_if_the_last_makes_up_for_the_others(queue: Queue) -> None:
    """An update of another kind is sent by itself between the upserts around it."""
    first, second, removal, third = write("a"), write("a"), write("a", replaces=False), write("a")
    other = write("b")
    queue.add(first, other, second, removal, third)
    assert queue.batches() == [[first, other, second], [removal], [third]]


async def test_a_write_that_is_being_encoded_keeps_its_place(queue: Queue) -> None:
    """Others pass it, but for those of its context and deletions."""
    large, same, other, deletion, last = write("a", update=None), write("a"), write("b"), Deletion({}), write("c")
    queue.add(large, same, other, deletion, last)
    assert queue.batches() == [[other]]
    large.update = {}
    assert queue.batches() == [[large, same], [deletion], [last]]


async def test_calls_of_many_items_let_others_have_their_turn(queue: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between its bulks go writes of other contexts, and the bulks of another such call."""
    monkeypatch.setattr("backtest_persist.core.write_queue.BULK_SIZE", 2)
    many, few = upserts(*"abcdef"), upserts(*"uvw")
    free, bound, late = write("z"), write("f"), write("a")
    queue.add(many, free, bound, few, late)
    assert queue.batches() == [[many], [free, late], [many], [few], [many], [few], [bound]]
    assert (many.keys, few.keys) == (Counter(), Counter())
    many, few, last = upserts(*"abcdef"), upserts(*"uvw"), write("z")
    queue.add(many, few, last)
    assert queue.batches() == [[many], [last], [many], [few], [many], [few]]


async def test_small_calls_of_many_items_share_a_bulk(queue: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as there is room for, unless they have a context in common; single writes are another bulk."""
    monkeypatch.setattr("backtest_persist.core.write_queue.BULK_SIZE", 4)
    a, b, single, c, again, large = (
        upserts("a", "b"),
        upserts("c"),
        write("z"),
        upserts("d"),
        upserts("a"),
        upserts(*"efghi"),
    )
    queue.add(a, b, single, c, again, large)
    assert queue.batches() == [[a, b, c], [single], [again], [large], [large]]


async def test_a_call_of_many_items_waits_for_earlier_ones_of_its_contexts(
    queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two calls with a common context are sent one after the other, also if a single write stands between them."""
    monkeypatch.setattr("backtest_persist.core.write_queue.BULK_SIZE", 1)
    first, second, third = upserts("a", "b", "a"), upserts("c", "a"), upserts("d")
    queue.add(first, write("a", update=None), second, third)
    assert queue.batches() == [[first], [third], [first], [first]]


async def test_a_call_of_many_items_is_cut_by_bytes(queue: Queue) -> None:
    """Each of its bulks carries as much as a batch may, or one item."""
    large = upserts(*"abcd", size=BATCH_BYTES // 2)
    assert [len(large.take()), len(large.take()), len(large.take())] == [2, 2, 0]
    assert len(upserts("a", "b", size=2 * BATCH_BYTES).take()) == 1
    twice = upserts("a", "b", "a")  # the later one has to be the last, and a bulk has no order
    assert [len(twice.take()), len(twice.take())] == [2, 1]
    await asyncio.sleep(0)


async def test_a_caller_that_has_gone_holds_up_nobody(queue: Queue) -> None:
    """What is not sent any more is not waited for."""
    gone, same = write("a", update=None), write("a")
    queue.add(gone, same)
    queue._pending[0].future.cancel()
    assert queue.batches() == [[same]]
