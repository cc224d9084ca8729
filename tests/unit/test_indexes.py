"""Indexes: which are missing, and which conflict with storing every context."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from pymongo import IndexModel
from pymongo.errors import DuplicateKeyError, OperationFailure

from backtest_persist import IndexConflictError, StoreUnavailableError, WriteRejectedError
from backtest_persist.core import indexes
from backtest_persist.core.indexes import (
    BAD_HINT,
    Index,
    drop_narrow_indexes,
    missing_indexes,
    narrow_indexes,
    prepare_indexes,
    unique_hint,
)

FIELDS = ("exchangeName", "symbol", "interval")
SECONDARY: tuple[Index, ...] = ((("symbol", 1), ("createDate", -1)),)
UNAUTHORIZED = 13


def index(*keys: str, name: str | None = None, **options: Any) -> dict[str, Any]:
    """Describe an index as the server lists it; a key after a minus is descending."""
    order = {key.removeprefix("-"): -1 if key.startswith("-") else 1 for key in keys}
    return {"v": 2, "key": order, "name": name or "_".join(f"{key}_{order[key]}" for key in order), **options}


PRIMARY = index("_id", name="_id_")
UNIQUE = index(*FIELDS, unique=True)
LISTING = index("symbol", "-createDate")


class Collection:
    """A collection with these indexes, which records what is created and dropped."""

    name = "items"

    def __init__(self, *found: dict[str, Any]) -> None:
        self.found = [*found]
        self.created: list[list[dict[str, Any]]] = []
        self.dropped: list[str] = []
        self.hints: list[dict[str, int]] = []
        self.create_error: Exception | None = None
        self.find_errors: list[Exception] = []

    async def create_indexes(self, models: Sequence[IndexModel]) -> None:
        if self.create_error is not None:
            raise self.create_error
        self.created.append([described(model) for model in models])
        self.found += [{"v": 2, **model.document} for model in models]

    async def drop_index(self, name: str) -> None:
        self.dropped.append(name)

    async def find_one(self, filter: Any, projection: Any, *, hint: dict[str, int]) -> None:
        self.hints.append(hint)
        if self.find_errors:
            raise self.find_errors.pop(0)


def described(model: IndexModel) -> dict[str, Any]:
    return {"key": dict(model.document["key"]), "unique": model.document.get("unique", False)}


@pytest.fixture
def collection(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Make collections whose indexes are listed without a server."""

    async def list_indexes(collection: Collection) -> list[dict[str, Any]]:
        return collection.found

    monkeypatch.setattr(indexes, "list_indexes", list_indexes)
    return Collection


Collections = Callable[..., Any]
WANTED = [
    {"key": dict.fromkeys(FIELDS, 1), "unique": True},
    {"key": {"symbol": 1, "createDate": -1}, "unique": False},
]


def test_the_hint_is_the_unique_index() -> None:
    """It has the fields of the context in their order, ascending."""
    assert list(unique_hint(FIELDS).items()) == [(field, 1) for field in FIELDS]


# --- what is missing ---


async def missing(collection: Any) -> list[dict[str, Any]]:
    return [described(model) for model in await missing_indexes(collection, FIELDS, SECONDARY)]


async def test_an_empty_collection_lacks_every_index(collection: Collections) -> None:
    """The unique one comes first, before those that lists need."""
    assert await missing(collection()) == WANTED
    assert await missing(collection(PRIMARY)) == WANTED


@pytest.mark.parametrize(
    ("found", "wanted"), [([UNIQUE], WANTED[1:]), ([LISTING], WANTED[:1]), ([LISTING, UNIQUE], [])], ids=str
)
async def test_only_missing_indexes_are_created(collection: Collections, found: Any, wanted: Any) -> None:
    """An index that is there is left alone."""
    assert await missing(collection(PRIMARY, *found)) == wanted


@pytest.mark.parametrize(
    "other",
    [
        index("payload.id"),
        index("payload.id", unique=True),
        index(*FIELDS, "payload.id", unique=True),
        index("interval", "symbol", "exchangeName", unique=True),
        index("symbol", partialFilterExpression={"a": 1}),
        index("symbol", sparse=True, hidden=True),
        index("symbol", collation={"locale": "en"}),
        index("-exchangeName", "symbol", "interval", unique=True),
    ],
    ids=lambda other: other["name"],
)
async def test_an_index_that_refuses_no_context_is_none_of_our_business(collection: Collections, other: Any) -> None:
    """A user may have indexes, unique ones included, as long as every context can be stored beside every other."""
    assert await missing(collection(PRIMARY, UNIQUE, LISTING, other)) == []


CONFLICTS: dict[str, tuple[dict[str, Any], str]] = {
    "not unique": (index(*FIELDS), "not unique over all documents"),
    "partial": ({**UNIQUE, "partialFilterExpression": {"a": 1}}, "not unique over all documents"),
    "sparse": ({**UNIQUE, "sparse": True}, "not unique over all documents"),
    "hidden": ({**UNIQUE, "hidden": True}, "hidden"),
    "collated": ({**UNIQUE, "collation": {"locale": "en", "strength": 2}}, "collation"),
    "collated, on other fields": (index("payload.id", unique=True, collation={"locale": "en"}), "collation"),
    "expiring": (index("createDate", expireAfterSeconds=60), "deletes documents"),
    "expiring at once": (index("createDate", expireAfterSeconds=0), "deletes documents"),
    "of the same name": (index("payload.id", name=UNIQUE["name"]), "has the name of a needed one"),
    "of the same name as a secondary one": (index("payload.id", name=LISTING["name"]), "has the name of a needed one"),
}


@pytest.mark.parametrize(("found", "problem"), CONFLICTS.values(), ids=CONFLICTS)
async def test_an_index_in_the_way_is_named(collection: Collections, found: Any, problem: str) -> None:
    """The error says what is wrong with it, and how to drop it."""
    with pytest.raises(IndexConflictError, match=problem) as caught:
        await missing(collection(PRIMARY, found))
    assert f"db['items'].dropIndex('{found['name']}')" in str(caught.value)


# --- narrow indexes ---

NARROW = [index("symbol", unique=True), index("interval", "symbol", unique=True)]
NOT_NARROW = [
    PRIMARY,
    {**PRIMARY, "unique": True},
    UNIQUE,
    index("symbol"),
    index("symbol", "payload.id", unique=True),
    index("interval", "symbol", "exchangeName", unique=True),
]


async def test_unique_indexes_on_a_part_of_the_context_are_narrow(collection: Collections) -> None:
    """Under them two contexts cannot both be stored; the order of their fields does not matter."""
    items = collection(*NOT_NARROW, *NARROW)
    assert await narrow_indexes(items, FIELDS) == ["symbol_1", "interval_1_symbol_1"]
    assert await narrow_indexes(collection(*NOT_NARROW), FIELDS) == []


async def test_narrow_indexes_are_dropped_and_no_others(collection: Collections) -> None:
    """Their names are returned; a second time there is nothing to drop."""
    items = collection(*NOT_NARROW, *NARROW)
    assert await drop_narrow_indexes(items, FIELDS) == items.dropped == ["symbol_1", "interval_1_symbol_1"]
    assert await drop_narrow_indexes(collection(*NOT_NARROW), FIELDS) == []


async def test_a_narrow_index_is_a_conflict_that_tells_of_migrate(collection: Collections) -> None:
    """It is left to the user, who has to know that no older release uses the database."""
    with pytest.raises(IndexConflictError, match="backtest-persist migrate") as caught:
        await missing(collection(PRIMARY, UNIQUE, *NARROW))
    assert "symbol_1" in str(caught.value)


# --- preparing ---


async def prepare(collection: Any, *, usable: bool = True) -> None:
    await prepare_indexes(collection, FIELDS, SECONDARY, 5, usable=usable)


async def test_what_is_missing_is_created_by_one_command(collection: Collections) -> None:
    """With everything in place nothing is sent but the request for the list."""
    items = collection(PRIMARY)
    await prepare(items)
    await prepare(items)
    assert items.created == [WANTED]
    assert items.hints == []


async def test_a_unique_index_that_may_be_in_the_making_is_waited_for(
    collection: Collections, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is asked for by its hint until the server takes that, and created again should it be gone."""
    monkeypatch.setattr(indexes, "_LOOK_SECONDS", 0)
    items = collection(PRIMARY)
    items.find_errors = [OperationFailure("bad hint", BAD_HINT), OperationFailure("bad hint", BAD_HINT)]
    await prepare(items, usable=False)
    assert items.hints == [unique_hint(FIELDS)] * 3
    assert items.created == [WANTED]


async def test_an_error_while_waiting_is_passed_on(collection: Collections) -> None:
    """Anything but a bad hint says nothing of the index."""
    items = collection(UNIQUE, LISTING)
    items.find_errors = [OperationFailure("no", 11601)]
    with pytest.raises(StoreUnavailableError, match="unique index in items"):
        await prepare(items, usable=False)
    assert len(items.hints) == 1


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (DuplicateKeyError("dup", 11000), IndexConflictError, "holds several documents of one context"),
        (OperationFailure("no", UNAUTHORIZED), IndexConflictError, "may not create"),
    ],
    ids=["duplicates", "unauthorized"],
)
async def test_an_index_that_cannot_be_built_says_what_to_do(
    collection: Collections, error: Exception, kind: type[Exception], message: str
) -> None:
    """Documents that contradict it, and a user without the right, are told apart."""
    items = collection(PRIMARY)
    items.create_error = error
    with pytest.raises(kind, match=message):
        await prepare(items)


async def test_another_error_of_creating_indexes_is_translated(collection: Collections) -> None:
    """It is one of our errors, and names the collection, but is no conflict."""
    items = collection(PRIMARY)
    items.create_error = OperationFailure("no", 11601)
    with pytest.raises((StoreUnavailableError, WriteRejectedError), match="indexes in items"):
        await prepare(items)
