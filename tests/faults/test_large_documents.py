"""Large documents: many at once succeed as they do one by one, and the event loop stays free meanwhile."""

import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from backtest_persist import Container, InvalidPayloadError, Registry, Settings
from tests.support.stopwatch import pauses

STRUCTURED = {"id": "x", "rows": [{"a": n, "b": n * 0.5, "c": f"t{n}"} for n in range(180_000)]}
"""Some 8 MB of BSON."""
WHEN = 1_700_000_000_000


async def test_many_large_documents_at_once_are_written_and_read(settings: Settings) -> None:
    """60 of 5 MB take longer than one deadline; every call succeeds, as each would alone.

    The deadline is that of a dozen, at the pace of the disk just now.
    """
    count, blob = 60, os.urandom(5_000_000)
    async with Container(settings) as container:
        started = time.monotonic()
        for n in range(4):
            await container.signal_db_service.upsert("pace", "t", "e", {"n": n, "blob": blob})
        milliseconds = max(2000, int(3000 * (time.monotonic() - started)))
    async with Container(settings.model_copy(update={"mongo_timeout_ms": milliseconds})) as container:
        db = container.signal_db_service
        rows = await asyncio.gather(*(db.upsert(f"s{n}", "t", "e", {"n": n, "blob": blob}) for n in range(count)))
        assert [row.payload["n"] for row in rows if row.payload is not None] == list(range(count))
        found = await asyncio.gather(*(db.find_by_context(f"s{n}", "t", "e") for n in range(count)))
        assert [row and row.payload for row in found] == [{"n": n, "blob": blob} for n in range(count)]


async def test_large_entries_of_one_call_are_written(container: Container) -> None:
    """A call of many items is cut by their bytes as well as by their number."""
    db = container.storage_db_service
    blob = os.urandom(3_000_000)
    assert await db.upsert_many(True, [{"id": f"x{n}", "n": n, "blob": blob} for n in range(20)]) == 20
    rows = await db.list_by_mode(True)
    assert [row.payload["n"] for row in rows] == list(range(20))


async def measured(call: Awaitable[Any]) -> tuple[Any, float, float]:
    """Return the answer of a call, its seconds, and the longest in which nothing else ran."""
    started, calling = time.monotonic(), asyncio.ensure_future(call)
    longest = (await pauses(calling))[-1]
    return calling.result(), time.monotonic() - started, longest


async def test_a_large_structured_payload_leaves_the_event_loop_free(container: Container, tmp_path: Path) -> None:
    """Encoding and decoding 8 MB takes long, in threads; the loop runs other tasks meanwhile, on each backend."""
    db = container.signal_db_service
    await db.upsert("s", "t", "e", {})
    row, seconds, longest = await measured(db.upsert("s", "t", "e", STRUCTURED))
    assert row.payload == STRUCTURED
    assert longest < seconds / 3, f"{longest:.3f} of {seconds:.3f} s"
    reads: list[Callable[[], Awaitable[Any]]] = [lambda: db.find_by_context("s", "t", "e"), db.find_all]
    for read in reads:
        found, seconds, longest = await measured(read())
        assert [each.payload for each in (found if read is reads[1] else [found])] == [STRUCTURED]
        assert longest < seconds * 0.7, f"{longest:.3f} of {seconds:.3f} s"
    lists: list[Any] = [{"id": f"e{n}", "rows": STRUCTURED["rows"][:2_000]} for n in range(90)]
    _, seconds, longest = await measured(container.log_db_service.create_many(lists))
    assert longest < seconds / 3, f"{longest:.3f} of {seconds:.3f} s"
    persist = Registry(container)
    for choose in (lambda: persist.use_json(tmp_path), persist.use_dummy):
        choose()
        adapter = await persist.signal("s", "t", "e")
        _, seconds, longest = await measured(adapter.write_signal_data(STRUCTURED))
        assert longest < seconds / 3, f"{longest:.3f} of {seconds:.3f} s"


LARGE_AND_BAD = {"rows": [{"n": n} for n in range(50_000)], "bad": object()}


@pytest.mark.parametrize("driver", ["motor"], indirect=True)
@pytest.mark.parametrize("backend", ["mongo", "json", "dummy"])
async def test_what_is_wrong_in_a_large_payload_is_refused(container: Container, tmp_path: Path, backend: str) -> None:
    """It is found in a thread, and nothing is sent; of several entries none is stored."""
    persist = Registry(container)
    {"mongo": persist.use_mongo, "json": lambda: persist.use_json(tmp_path), "dummy": persist.use_dummy}[backend]()
    memory, storage = await persist.memory("s", "b"), await persist.storage(True)
    with pytest.raises(InvalidPayloadError, match="bad is of type object"):
        await memory.write_memory_data(LARGE_AND_BAD, "m", WHEN)
    with pytest.raises(InvalidPayloadError, match=r"entry 1.* bad is of type object"):
        await storage.write_storage_data([{"id": "a"}, {"id": "b", **LARGE_AND_BAD}])
    assert await memory.read_memory_data("m") is None
    assert await storage.read_storage_data() == []
    await memory.write_memory_data({**LARGE_AND_BAD, "bad": 1, "removed": True}, "m", WHEN)
    await storage.write_storage_data([{"id": "a"}, {"id": "b", **LARGE_AND_BAD, "bad": 1}])
    assert await memory.read_memory_data("m") is None
    assert [entry async for entry in memory.list_memory_data()] == []
    assert [entry["id"] for entry in await storage.read_storage_data()] == ([] if backend == "dummy" else ["a", "b"])


async def test_a_large_payload_that_is_changed_meanwhile_is_no_error_of_python(container: Container) -> None:
    """Its writer is told; afterwards it can be written."""
    rows = {str(n): {"n": n} for n in range(100_000)}
    writing = asyncio.create_task(container.signal_db_service.upsert("s", "t", "e", {"rows": rows}))
    while not writing.done():
        rows[str(len(rows))] = {"n": 0}
        await asyncio.sleep(0)
    with pytest.raises(InvalidPayloadError, match="was changed while it was encoded"):
        await writing
    assert (await container.signal_db_service.upsert("s", "t", "e", {"rows": rows})).payload == {"rows": rows}
