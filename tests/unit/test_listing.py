"""Lists: batches as they come from the server, and how a query goes on when the server has no time left for it."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import Any

import pytest
from bson import ObjectId, encode
from pymongo.errors import OperationFailure

from backtest_persist import StoreUnavailableError
from backtest_persist.core.listing import Batches, Listing, find_each, find_ids

OUT_OF_TIME = OperationFailure("operation exceeded time limit", 50)
ID = ObjectId("65a1b2c3d4e5f60718293a4b")
SORT = (("createDate", 1), ("_id", 1))


class Cursor:
    """Gives the documents of each batch as the server encodes them, and raises the errors among them."""

    def __init__(self, batches: Sequence[Any]) -> None:
        self._batches = list(batches)
        self.closed = 0

    async def __anext__(self) -> bytes:
        if not self._batches:
            raise StopAsyncIteration
        batch = self._batches.pop(0)
        if isinstance(batch, Exception):
            raise batch
        return b"".join(encode(document) for document in batch)

    async def close(self) -> None:
        self.closed += 1


class Collection:
    """Answers each query with the next cursor, and records the queries."""

    def __init__(self, *cursors: Sequence[Any]) -> None:
        self.cursors = [Cursor(batches) for batches in cursors]
        self.queries: list[dict[str, Any]] = []

    def find_raw_batches(self, query: Any, **options: Any) -> Cursor:
        self.queries.append({"query": query, **options})
        return self.cursors[len(self.queries) - 1]

    async def find_one(self, query: Any) -> Any:
        self.queries.append({"one": query})
        return next(iter(self.cursors[0]._batches), None)


def documents(*numbers: int) -> list[dict[str, Any]]:
    return [{"_id": n, "createDate": n // 2} for n in numbers]


async def collected(collection: Any, **options: Any) -> list[Any]:
    async with aclosing(Batches(collection, {"symbol": "s"}, **options)) as batches:
        return [document async for batch in batches for document in batch]


async def test_a_query_is_passed_on_and_its_cursor_is_closed() -> None:
    """Every batch is decoded, and the server may forget the rest when the list is over."""
    collection = Collection([documents(1, 2), documents(3)])
    assert await collected(collection, sort=SORT, skip=1, batch_size=2) == documents(1, 2, 3)
    assert collection.queries == [{"query": {"symbol": "s"}, "sort": SORT, "limit": 0, "skip": 1, "batch_size": 2}]
    assert collection.cursors[0].closed == 1


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
    assert [cursor.closed for cursor in collection.cursors] == [1, 1, 1]
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

    @asynccontextmanager
    async def operation(self) -> AsyncGenerator[None]:
        self.begun += 1
        yield

    async def find(self) -> Batches:
        self.opened += 1
        anything: Any = self.collection
        return Batches(anything, {})

    def list(self) -> Listing[list[int]]:
        return Listing(self.find, self.operation, lambda: self.is_open, lambda batch: [each["_id"] for each in batch])


async def test_each_batch_of_a_listing_is_an_operation() -> None:
    """A caller may look at a batch for as long as it likes; nothing is sent before the first is asked for."""
    client = Client(documents(1, 2), documents(3))
    async with aclosing(client.list()) as listing:
        assert client.opened == 0
        assert [batch async for batch in listing] == [[1, 2], [3]]
    assert (client.opened, client.begun) == (1, 4)  # two batches, the end, and the close
    assert client.collection.cursors[0].closed == 1


async def test_a_listing_that_is_left_is_closed_while_there_is_a_client() -> None:
    """Without a client the server has forgotten it, and none is opened to say so."""
    for is_open in (True, False):
        client = Client(documents(1), documents(2))
        listing = client.list()
        assert await anext(listing) == [1]
        client.is_open = is_open
        await listing.aclose()
        assert client.collection.cursors[0].closed == is_open
    unused = Client()
    await unused.list().aclose()
    assert (unused.opened, unused.begun) == (0, 0)


async def test_a_server_that_is_gone_does_not_keep_a_listing_from_closing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The end of the cursor is a courtesy."""
    client = Client(documents(1))
    listing = client.list()
    await anext(listing)

    @asynccontextmanager
    async def operation() -> AsyncGenerator[None]:
        raise StoreUnavailableError("gone")
        yield

    monkeypatch.setattr(listing, "_operation", operation)
    await listing.aclose()


# --- many documents by one query ---


async def test_one_document_is_found_by_one_simple_query() -> None:
    """A lone id or context costs no cursor."""
    one: Any = Collection([{"_id": ID}])
    assert await find_ids(one, [ID]) == [{"_id": ID}]
    assert await find_each(one, [{"symbol": "s"}]) == [{"_id": ID}]
    assert one.queries == [{"one": {"_id": ID}}, {"one": {"symbol": "s"}}]
    nothing: Any = Collection([])
    assert await find_ids(nothing, [ID]) == await find_each(nothing, [{}]) == []


async def test_many_documents_are_found_in_one_batch() -> None:
    """One query finds them all, and the first batch has room for them; of none nothing is asked."""
    ids = [ObjectId() for _ in range(3)]
    many: Any = Collection([[{"_id": ids[0]}]], [[{"_id": ids[1]}, {"_id": ids[2]}]])
    assert await find_ids(many, ids) == [{"_id": ids[0]}]
    contexts = [{"symbol": "s"}, {"symbol": "t"}]
    assert await find_each(many, contexts) == [{"_id": ids[1]}, {"_id": ids[2]}]
    assert [query["query"] for query in many.queries] == [{"_id": {"$in": ids}}, {"$or": contexts}]
    assert [query["batch_size"] for query in many.queries] == [4, 3]
    assert await find_ids(many, []) == await find_each(many, []) == []
    assert len(many.queries) == 2
