"""The ids that a process keeps: those used last, as many as the setting allows."""

import threading

from bson import ObjectId

from backtest_persist.core.id_memory import IdMemory

IDS = [ObjectId() for _ in range(6)]
KEYS = [f"k{number}" for number in range(6)]


def kept(memory: IdMemory) -> list[str]:
    """Return the keys that a memory knows, without using them."""
    return list(memory._entries)  # pyright: ignore[reportPrivateUsage]


def test_the_ids_used_last_are_kept() -> None:
    """A read counts as use; beyond the size the id goes that was used least lately, and a smaller size drops more."""
    size = 3
    memory = IdMemory(lambda: size)
    memory.put(zip(KEYS[:3], IDS, strict=False), 1)
    assert memory.recall([KEYS[0]]) == {KEYS[0]: IDS[0]}
    memory.put([(KEYS[3], IDS[3])], 1)
    assert kept(memory) == [KEYS[2], KEYS[0], KEYS[3]]
    assert memory.recall(KEYS[1:3]) == {KEYS[2]: IDS[2]}
    memory.put([(KEYS[2], IDS[4])], 1)
    assert memory.recall([KEYS[2]]) == {KEYS[2]: IDS[4]}
    size = 1
    memory.put([(KEYS[5], IDS[5])], 1)
    assert kept(memory) == [KEYS[5]]


def test_a_size_of_0_keeps_nothing() -> None:
    """Nothing is kept, and what was kept before another setting took effect is not used."""
    size = 1
    memory = IdMemory(lambda: size)
    memory.put([(KEYS[0], IDS[0])], 1)
    size = 0
    assert memory.recall(KEYS) == {}
    assert not memory.is_in_redis(KEYS[0], IDS[0], 1)
    memory.put([(KEYS[1], IDS[1])], 1)
    assert kept(memory) == []


def test_redis_is_known_to_hold_an_id_in_one_epoch() -> None:
    """It may have lost the id in the next one, and does not hold another id, nor one that it was not told."""
    memory = IdMemory(lambda: 9)
    memory.put([(KEYS[0], IDS[0])], 1)
    memory.put([(KEYS[1], IDS[1])], None)
    answers = [memory.is_in_redis(KEYS[0], id, epoch) for id in IDS[:2] for epoch in (1, 2)]
    assert answers == [True, False, False, False]
    assert not memory.is_in_redis(KEYS[1], IDS[1], 1)


def test_a_wrong_id_is_dropped_and_no_other() -> None:
    """An id that was put in its place meanwhile stays; `forget` drops whatever is there, or everything."""
    memory = IdMemory(lambda: 9)
    memory.put(zip(KEYS, IDS, strict=True), 1)
    memory.drop(KEYS[0], IDS[0])
    memory.drop(KEYS[1], IDS[0])
    memory.drop("unknown", IDS[0])
    memory.forget(KEYS[2])
    assert kept(memory) == [KEYS[1], *KEYS[3:]]
    memory.forget(None)
    assert kept(memory) == []


def test_threads_share_a_memory() -> None:
    """Event loops in several threads use it at the same time: no error, no foreign id, and never too many."""
    memory = IdMemory(lambda: 50)
    ids = {f"k{number}": ObjectId() for number in range(200)}
    problems: list[object] = []

    def use(step: int) -> None:
        try:
            for number in range(20_000):
                key = f"k{number * step % 200}"
                if memory.recall([key]) not in ({}, {key: ids[key]}):
                    problems.append(key)
                memory.put([(key, ids[key])], 1)
                if number % 7 == 0:
                    memory.drop(key, ids[key])
        except Exception as error:
            problems.append(error)

    threads = [threading.Thread(target=use, args=(step,)) for step in (1, 3, 7, 11)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []
    assert len(kept(memory)) <= 50
