"""Much at once: many processes that write the same new keys, and lists that are long."""

import asyncio
from datetime import UTC, datetime
from typing import Any

import pytest

from backtest_persist import Container, Settings
from tests.support.cases import CASES
from tests.support.processes import settings_environment, start_python
from tests.support.stopwatch import HANG

PROCESSES = 8
TASKS = 50
KEYS = 20

_WRITER = """
import asyncio, random, sys, time
from backtest_persist import Container

async def start():
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.readline)

async def main(name, database):
    if database == "empty":
        await start()
    async with Container() as container:
        async def work(task):
            choice = random.Random(f"{name} {task}")
            for n in choice.sample(range(KEYS), KEYS):
                started = time.monotonic()
                row = await container.signal_db_service.upsert("s", "t", f"e{n}", {"by": f"{name} {task}"})
                ids.setdefault(n, set()).add(row.id)
                assert time.monotonic() - started < 30.25

        ids = {}
        if database == "prepared":
            await start()
        await asyncio.gather(*(work(task) for task in range(TASKS)))
        print(sorted((n, *found) for n, found in ids.items()))

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.mark.parametrize("driver", ["motor"], indirect=True)  # of the witness; the processes have both
@pytest.mark.parametrize("database", ["prepared", "empty"])
async def test_processes_that_write_the_same_new_keys_make_one_document_each(settings: Settings, database: str) -> None:
    """Eight processes of 50 tasks, half by each driver: no error, one document for each key, known to all.

    An empty database gets its unique indexes from all of them at once.
    """
    container = Container(settings)
    if database == "prepared":
        await container.wait_for_init()
    try:
        code = _WRITER.replace("KEYS", str(KEYS)).replace("TASKS", str(TASKS))
        processes = [
            await start_python(
                *("-c", code, str(n), database),
                environment={**settings_environment(settings), "CC_MONGO_DRIVER": ["motor", "pymongo"][n % 2]},
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
            )
            for n in range(PROCESSES)
        ]
        try:
            async with asyncio.timeout(2 * HANG):
                for process in processes:
                    assert process.stdout is not None
                    assert await process.stdout.readline() == b"ready\n"
                ends = await asyncio.gather(*(process.communicate(b"go\n") for process in processes))
        finally:
            for process in processes:
                if process.returncode is None:
                    process.kill()
        assert [process.returncode for process in processes] == [0] * PROCESSES
        rows = await container.signal_db_service.find_all()
        stored = sorted((int(row.exchange_name[1:]), row.id) for row in rows)
        assert [n for n, _ in stored] == list(range(KEYS))
        assert {said.decode().strip() for said, _ in ends} == {str(stored)}
        for case in CASES:
            indexes = await container.mongo_service.database[case.collection].index_information()
            unique = [tuple(field for field, _ in index["key"]) for index in indexes.values() if index.get("unique")]
            assert unique == [case.index]
    finally:
        await container.close()


ENTRIES = 5000


@pytest.mark.parametrize(
    ("driver", "domain"), [("motor", "storage"), ("pymongo", "log"), ("motor", "memory")], indirect=["driver"]
)
async def test_entries_of_one_instant_are_all_listed_in_one_order(container: Container, domain: str) -> None:
    """5,000 entries with equal timestamps: lists and pages of them have each once, and always in the same order."""
    names = [f"e{(n * 7919) % ENTRIES}" for n in range(ENTRIES)]
    entries = [{"id": name} for name in names]
    db: Any = getattr(container, f"{domain}_db_service")
    match domain:
        case "storage":
            assert await db.upsert_many(True, entries) == ENTRIES
        case "log":
            assert await db.create_many(entries) == ENTRIES
        case _:
            await asyncio.gather(*(db.upsert("s", "b", entry["id"], entry, 0) for entry in entries))
    instant = {"createDate": datetime(2026, 1, 1, tzinfo=UTC), "updatedDate": datetime(2026, 1, 1, tzinfo=UTC)}
    collection = container.mongo_service.database[f"{domain}-items"]
    documents: list[dict[str, Any]] = [{**document, **instant} async for document in collection.find().sort("_id")]
    await collection.delete_many({})
    await collection.insert_many([documents[n * 7919 % ENTRIES] for n in range(ENTRIES)])  # not in the order of ids

    async def listed() -> list[str]:
        match domain:
            case "storage":
                rows = await db.list_by_mode(True)
            case "log":
                rows = await db.list_all()
            case _:
                rows = await db.list_entries("s", "b")
        return [row.payload["id"] for row in rows]

    order = await listed()
    assert order == [document["payload"]["id"] for document in documents]
    assert await listed() == order
    assert [row.payload["id"] async for row in db.iterate()] == order
    pages = [await db.paginate({}, limit=999, offset=offset) for offset in range(0, ENTRIES, 999)]
    assert [row.payload["id"] for page in pages for row in page.rows] == order
    if domain != "memory":
        assert order == names
