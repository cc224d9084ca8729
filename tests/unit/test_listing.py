"""Lists: batches as they come from the server, and how a query goes on when the server has no time left for it."""

import asyncio
from collections.abc import AsyncGenerator, Coroutine, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import Any, Self

import pytest
from bson import ObjectId, encode
from bson.raw_bson import RawBSONDocument
from pymongo.errors import OperationFailure

from backtest_persist.core.listing import Batches, Finder, Listing

OUT_OF_TIME = OperationFailure("operation exceeded time limit", 50)
ID = ObjectId("65a1b2c3d4e5f60718293a4b")
SORT = (("createDate", 1), ("_id", 1))


class Cursor:
    """Gives the documents of each batch as the server encodes them, and raises the errors among them."""

    def __init__(self, batches: Sequence[Any]) -> None:
        self._batches = list(batches)
        self.alive = True
        self.closed = 0

    async def __anext__(self) -> bytes:
        if not self._batches:
            self.alive = False
            raise StopAsyncIteration
        batch = self._batches.pop(0)
        if isinstance(batch, Exception):
            raise batch
        return b"".join(encode(document) for document in batch)

    async def close(self) -> None:
        self.closed += 1


class Background:
    """Runs what goes on in the background, and knows its tasks."""

    def __init__(self) -> None:
        self.tasks: list[asyncio.Task[None]] = []

    def __call__(self, work: Coroutine[Any, Any, None]) -> None:
        self.tasks.append(asyncio.create_task(work))

    async def finish(self) -> None:
        await asyncio.gather(*self.tasks)


class Collection:
    """Answers each query with the next cursor, and records the queries."""

    def __init__(self, *cursors: Sequence[Any]) -> None:
        self.cursors = [Cursor(batches) for batches in cursors]
        self.queries: list[dict[str, Any]] = []

    def find_raw_batches(self, query: Any, **options: Any) -> Cursor:
        self.queries.append({"query": query, **options})
        return self.cursors[len(self.queries) - 1]

    def with_options(self, **_: Any) -> "Collection":
        return self

    def find(self, query: Any, projection: Any, batch_size: int) -> Self:
        self.queries.append({"query": query, "projection": projection, "batch_size": batch_size})
        self._found = self.cursors[len(self.queries) - 1]._batches
        return self

    async def to_list(self, length: None) -> list[RawBSONDocument]:
        return [RawBSONDocument(encode(document)) for document in self._found]

    async def find_one(self, query: Any, projection: Any) -> RawBSONDocument | None:
        self.queries.append({"one": query, "projection": projection})
        batch = next(iter(self.cursors[0]._batches), None)
        return None if batch is None else RawBSONDocument(encode(batch))


def documents(*numbers: int) -> list[dict[str, Any]]:
    return [{"_id": n, "createDate": n // 2} for n in numbers]


async def collected(collection: Any, **options: Any) -> list[Any]:
    background = Background()
    async with aclosing(Batches(collection, {"symbol": "s"}, background=background, **options)) as batches:
        found = [document async for batch in batches for document in batch]
    await background.finish()
    return found


async def test_a_query_is_passed_on() -> None:
    """Every batch is decoded; a cursor that has given all is not closed once more."""
    collection = Collection([documents(1, 2), documents(3)])
    assert await collected(collection, sort=SORT, skip=1, batch_size=2) == documents(1, 2, 3)
    assert collection.queries == [{"query": {"symbol": "s"}, "sort": SORT, "limit": 0, "skip": 1, "batch_size": 2}]
    assert collection.cursors[0].closed == 0


async def test_a_query_that_is_left_closes_its_cursor_behind_the_caller() -> None:
    """Whoever leaves waits for nothing: the driver finishes the batch that it reads and closes the cursor then."""
    background = Background()
    collection: Any = Collection([documents(1), documents(2)])
    cursor = collection.cursors[0]
    read, reply = cursor.__class__.__anext__, asyncio.Event()

    async def slow(self: Any) -> bytes:
        await reply.wait()
        return await read(self)

    cursor.__class__ = type("SlowCursor", (Cursor,), {"__anext__": slow})
    batches = Batches(collection, {}, background=background)
    reading = asyncio.create_task(anext(batches))
    await asyncio.sleep(0)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    await batches.aclose()
    await asyncio.sleep(0)
    assert (cursor.closed, len(background.tasks)) == (0, 1)
    reply.set()
    await background.finish()
    assert cursor.closed == 1
    unread = Batches(Collection([]), {}, background=background)  # pyright: ignore[reportArgumentType]
    await unread.aclose()
    assert len(background.tasks) == 1


async def test_documents_keep_what_looks_like_a_reference() -> None:
    """A payload with the keys of a DBRef stays a dict with these keys, in their order."""
    reference = {"$ref": "c", "$id": 1, "$db": None, "more": 2}
    for payload in (reference, {"inner": [reference]}):
        (document,) = await collected(Collection([[{"_id": 1, "payload": payload}]]))
        assert dict(document["payload"]) == payload


async def test_a_limit_ends_a_list_without_asking_for_more() -> None:
    """A server may keep the cursor of a query that has given all, and fail on it later."""
    collection = Collection([documents(1, 2), documents(3), AssertionError("asked for more")])
    assert await collected(collection, limit=3) == documents(1, 2, 3)


async def test_a_list_goes_on_behind_its_last_document() -> None:
    """When time is over, the rest is asked for anew: greater values, or values of a type that comes later."""
    collection = Collection([documents(1, 2), OUT_OF_TIME], [documents(3), OUT_OF_TIME], [documents(4)])
    found = await collected(collection, sort=SORT, limit=9, skip=4, resumable=True, batch_size=2)
    assert found == documents(1, 2, 3, 4)
    assert [query["limit"] for query in collection.queries] == [9, 7, 6]
    assert ["skip" in query for query in collection.queries] == [True, False, False]
    assert [query["batch_size"] for query in collection.queries] == [2, 2, 2]
    assert [cursor.closed for cursor in collection.cursors] == [1, 1, 0]  # the last one has given all
    first, after = collection.queries[2]["query"]["$and"]
    assert first == {"symbol": "s"}
    by_date, by_date_type, by_id, by_id_type = after["$or"]
    assert (by_date, by_id) == ({"createDate": {"$gt": 1}}, {"createDate": 1, "_id": {"$gt": 3}})
    assert (list(by_date_type), list(by_id_type)) == (["createDate"], ["createDate", "_id"])
    assert by_date_type["createDate"]["$type"] == by_id_type["_id"]["$type"]
    assert "number" not in by_id_type["_id"]["$type"]
    assert {"string", "objectId", "date"} <= set(by_id_type["_id"]["$type"])


@pytest.mark.parametrize(
    ("value", "before", "after"),
    [
        (None, "", "number"),
        ("text", "string", "object"),
        (ID, "objectId", "bool"),
        (True, "bool", "date"),
    ],
    ids=str,
)
async def test_types_come_in_the_order_of_the_server(value: Any, before: str, after: str) -> None:
    """Behind a value come the types that the server sorts behind its own."""
    collection = Collection([[{"_id": value}], OUT_OF_TIME], [])
    await collected(collection, sort=[("_id", 1)], resumable=True)
    types = collection.queries[1]["query"]["$and"][1]["$or"][1]["_id"]["$type"]
    assert types[0] == after
    assert before not in types


@pytest.mark.parametrize("value", [float("nan"), [1], {"a": 1}, b"a"], ids=repr)
async def test_a_list_does_not_go_on_behind_a_value_without_a_place(value: Any) -> None:
    """Rows could be lost or come twice behind NaN, a list or a document: the error is passed on."""
    collection = Collection([[{"_id": value}], OUT_OF_TIME])
    with pytest.raises(OperationFailure):
        await collected(collection, sort=[("_id", 1)], resumable=True)
    assert len(collection.queries) == 1


@pytest.mark.parametrize(
    ("batches", "resumable"),
    [([OUT_OF_TIME], True), ([documents(1), OUT_OF_TIME], False), ([documents(1), OperationFailure("no", 13)], True)],
    ids=["nothing found yet", "not resumable", "another error"],
)
async def test_any_other_error_ends_a_list(batches: Any, resumable: bool) -> None:
    """Only a query that has given something, and is in an order to go on with, is asked for anew."""
    collection = Collection(batches)
    with pytest.raises(OperationFailure):
        await collected(collection, sort=SORT, resumable=resumable)
    assert len(collection.queries) == 1


async def test_a_query_without_any_progress_is_not_repeated_for_ever() -> None:
    """A second time that is over before there was anything is an error."""
    collection = Collection([documents(1), OUT_OF_TIME], [OUT_OF_TIME])
    with pytest.raises(OperationFailure):
        await collected(collection, sort=SORT, resumable=True)
    assert len(collection.queries) == 2


# --- listings ---


class Client:
    """Makes listings, and counts their operations."""

    def __init__(self, *batches: Any) -> None:
        self.collection = Collection(batches)
        self.begun = 0
        self.opened = 0
        self.is_open = True
        self.background = Background()

    @asynccontextmanager
    async def operation(self) -> AsyncGenerator[None]:
        self.begun += 1
        yield

    async def find(self) -> Batches:
        self.opened += 1
        anything: Any = self.collection
        return Batches(anything, {}, background=self.background)

    def list(self) -> Listing[list[int]]:
        return Listing(self.find, self.operation, lambda: self.is_open, lambda batch: [each["_id"] for each in batch])


async def test_each_batch_of_a_listing_is_an_operation() -> None:
    """A caller may look at a batch for as long as it likes; nothing is sent before the first is asked for."""
    client = Client(documents(1, 2), documents(3))
    async with aclosing(client.list()) as listing:
        assert client.opened == 0
        assert [batch async for batch in listing] == [[1, 2], [3]]
    assert (client.opened, client.begun) == (1, 3)  # two batches and the end


async def test_a_listing_that_is_left_is_closed_while_there_is_a_client() -> None:
    """Without a client the server has forgotten it, and none is opened to say so."""
    for is_open in (True, False):
        client = Client(documents(1), documents(2))
        listing = client.list()
        assert await anext(listing) == [1]
        client.is_open = is_open
        await listing.aclose()
        await client.background.finish()
        assert client.collection.cursors[0].closed == is_open
    unused = Client()
    await unused.list().aclose()
    assert (unused.opened, unused.begun) == (0, 0)


# --- many documents by one query ---


async def test_one_document_is_found_by_one_simple_query() -> None:
    """A lone id or context costs no cursor."""
    one: Any = Collection([{"_id": ID}])
    finder = Finder(one)
    assert await finder.by_ids([ID]) == [{"_id": ID}]
    assert await finder.by_each([{"symbol": "s"}], ["symbol"]) == [{"_id": ID}]
    assert one.queries == [
        {"one": {"_id": ID}, "projection": None},
        {"one": {"symbol": "s"}, "projection": ["symbol"]},
    ]
    nothing = Finder(Collection([]))  # pyright: ignore[reportArgumentType]
    assert await nothing.by_ids([ID]) == await nothing.by_each([{}]) == []


async def test_many_documents_are_found_in_one_batch() -> None:
    """One query finds them all, and the first batch has room for them; of none nothing is asked."""
    ids = [ObjectId() for _ in range(3)]
    many: Any = Collection([{"_id": ids[0]}], [{"_id": ids[1]}, {"_id": ids[2]}])
    finder = Finder(many)
    assert await finder.by_ids(ids) == [{"_id": ids[0]}]
    contexts = [{"symbol": "s"}, {"symbol": "t"}]
    assert await finder.by_each(contexts) == [{"_id": ids[1]}, {"_id": ids[2]}]
    assert [query["query"] for query in many.queries] == [{"_id": {"$in": ids}}, {"$or": contexts}]
    assert [query["batch_size"] for query in many.queries] == [4, 3]
    assert await finder.by_ids([]) == await finder.by_each([]) == []


async def test_the_mean_size_of_documents_is_learned_from_whole_ones() -> None:
    """It grows at once and shrinks by halves, so that large documents among small ones are remembered for a while."""
    large, small = {"_id": ID, "x": "x" * 3_000_000}, {"_id": ID}
    collection: Any = Collection([large])
    finder = Finder(collection)
    await finder.by_ids([ID], ["x"])
    assert finder.mean_size is None
    await finder.by_ids([ID])
    assert finder.mean_size == len(encode(large))
    collection.cursors[0]._batches[0] = small
    await finder.by_ids([ID])
    assert finder.mean_size == (len(encode(large)) + len(encode(small))) // 2
