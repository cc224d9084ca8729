"""Unique indexes: the write protocol rests on them, so they are created and verified before the first operation."""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import pymongo
from pymongo import ASCENDING, IndexModel
from pymongo.errors import DuplicateKeyError, OperationFailure

from backtest_persist.connections import Collection, Operation, list_indexes, mongo_errors
from backtest_persist.errors import ErrorReason, IndexConflictError

__all__ = (
    "BAD_HINT",
    "Index",
    "drop_narrow_indexes",
    "is_unique",
    "missing_indexes",
    "narrow_indexes",
    "prepare_indexes",
    "unique_hint",
)

Index = tuple[tuple[str, int], ...]
"""A compound index: (wire name, direction) pairs."""

BUILD_SECONDS = 600.0
"""Building an index over an existing collection may take longer than an operation."""

BAD_HINT = 2
"""The answer of the server (BadValue) to a hint that names no index, among other things."""
_UNAUTHORIZED = 13
_LOOK_SECONDS = 0.01


@dataclass(frozen=True)
class _Found:
    name: str
    keys: Index
    unique: bool
    usable: bool  # neither partial nor sparse
    hidden: bool
    collated: bool  # for which values may be equal that are not the same
    expires: bool


Errors = Callable[[Operation], AbstractContextManager[None]]
"""Turns errors of the driver into ours, as `mongo_errors` and `MongoState.errors` do."""


async def _found(collection: Collection, errors: Errors = mongo_errors) -> list[_Found]:
    with errors(Operation("reading the indexes", collection.name)):
        documents = await list_indexes(collection)
    return [
        _Found(
            name=document["name"],
            keys=tuple((field, direction) for field, direction in document["key"].items()),
            unique=bool(document.get("unique", False)),
            usable="partialFilterExpression" not in document and not document.get("sparse", False),
            hidden=bool(document.get("hidden", False)),
            collated="collation" in document,
            expires="expireAfterSeconds" in document,
        )
        for document in documents
    ]


def _narrow(found: Sequence[_Found], fields: Sequence[str]) -> list[_Found]:
    return [
        index
        for index in found
        if index.unique and index.name != "_id_" and {field for field, _ in index.keys} < set(fields)
    ]


def unique_hint(fields: Sequence[str]) -> dict[str, int]:
    """The unique index on these fields as the hint of a command; the server answers `BAD_HINT` where it is not."""
    return dict.fromkeys(fields, ASCENDING)


async def narrow_indexes(collection: Collection, fields: Sequence[str]) -> list[str]:
    """Name the unique indexes on only a part of `fields`: under them two contexts cannot both be stored."""
    return [index.name for index in _narrow(await _found(collection), fields)]


async def is_unique(collection: Collection, fields: Sequence[str]) -> bool:
    """Whether a unique index, of these fields or of a part of them, keeps two documents of one context apart."""
    return any(
        index.unique and index.usable and index.name != "_id_" and {field for field, _ in index.keys} <= set(fields)
        for index in await _found(collection)
    )


async def drop_narrow_indexes(collection: Collection, fields: Sequence[str]) -> list[str]:
    """Drop the unique indexes on only a part of `fields` and return their names; no document is touched."""
    names = await narrow_indexes(collection, fields)
    for name in names:
        with mongo_errors(Operation(f"dropping the index {name}", collection.name, write=True)):
            await collection.drop_index(name)
    return names


async def missing_indexes(
    collection: Collection, fields: Sequence[str], secondary: Sequence[Index], *, errors: Errors = mongo_errors
) -> list[IndexModel]:
    """Verify the indexes that are there and return those that have to be created, by one command; writes nothing.

    Raises `IndexConflictError` for a narrow unique index of an older database, and for one that is in the way,
    refuses a context by itself or deletes documents.
    """
    found = await _found(collection, errors)
    narrow = _narrow(found, fields)
    if narrow:
        names = ", ".join(f"{index.name} ({', '.join(field for field, _ in index.keys)})" for index in narrow)
        raise IndexConflictError(
            f"{collection.name} has the narrow unique index {names} of an older release, under which two contexts "
            f"({', '.join(fields)}) cannot both be stored. Run `backtest-persist migrate` to see and drop it; "
            "first make sure that no bot of that release uses this database.",
            collection=collection.name,
            indexes=tuple(index.name for index in narrow),
            reason=ErrorReason.NARROW_INDEX,
        )
    unique: Index = tuple(unique_hint(fields).items())
    present = {index.keys for index in found}
    missing = [IndexModel(list(unique), unique=True)] if unique not in present else []
    missing += [IndexModel(list(keys)) for keys in secondary if keys not in present]
    wanted = {index.document["name"] for index in missing}
    for index in found:
        if index.expires:
            problem = "which deletes documents after a time"
        elif index.unique and index.collated:
            problem = "whose collation takes different names for the same, so that two contexts cannot both be stored"
        elif index.keys == unique and not (index.unique and index.usable):
            problem = f"which is not unique over all documents, on {', '.join(fields)}"
        elif index.keys == unique and index.hidden:
            problem = "which is hidden, so that no write can ask for it"
        elif index.name in wanted:
            problem = "which has the name of a needed one, but other fields"
        else:
            continue
        raise IndexConflictError(
            f"{collection.name} has the index {index.name}, {problem}. "
            f"Drop it, db['{collection.name}'].dropIndex('{index.name}'), and start again.",
            collection=collection.name,
            indexes=(index.name,),
            reason=ErrorReason.CONFLICTING_INDEX,
        )
    return missing


async def prepare_indexes(
    collection: Collection,
    fields: Sequence[str],
    secondary: Sequence[Index],
    seconds: float,
    *,
    usable: bool = True,
    errors: Errors = mongo_errors,
) -> None:
    """Create what is missing and verify the unique index; with all in place this sends one command.

    An index is listed as soon as somebody begins to build it, and a server that is asked to create it once more may say
    that it exists a little before it does (mongod 6.0). Unless it is known to be `usable` it is waited for.

    Within an operation all of it has the deadline of that operation, otherwise reading the indexes has `seconds` and
    building them `BUILD_SECONDS`.

    Raises `IndexConflictError` as `missing_indexes` does, for documents that already contradict the unique index, and
    for a user who may not create what is missing.
    """
    while True:
        with pymongo.timeout(seconds):
            missing = await missing_indexes(collection, fields, secondary, errors=errors)
        if missing:
            with pymongo.timeout(BUILD_SECONDS), errors(Operation("creating the indexes", collection.name)):
                await _create(collection, fields, missing)
        if usable:
            return
        with pymongo.timeout(seconds), errors(Operation("waiting for the unique index", collection.name)):
            usable = await _is_usable(collection, fields)
        if not usable:  # or somebody has dropped it
            await asyncio.sleep(_LOOK_SECONDS)


async def _create(collection: Collection, fields: Sequence[str], missing: Sequence[IndexModel]) -> None:
    try:
        await collection.create_indexes(missing)
    except DuplicateKeyError:
        raise IndexConflictError(
            f"{collection.name} holds several documents of one context, so its unique index on "
            f"{', '.join(fields)} cannot be built. Run `backtest-persist migrate` to see them, and `backtest-persist "
            "migrate --keep newest` to keep one document of each context and move the others to a file.",
            collection=collection.name,
            reason=ErrorReason.DUPLICATES,
        ) from None
    except OperationFailure as error:
        if error.code != _UNAUTHORIZED:
            raise
        raise IndexConflictError(
            f"{collection.name} lacks indexes and this user may not create them. Grant createIndex on the "
            "collection, or start once with a user who has readWrite on the database.",
            collection=collection.name,
            reason=ErrorReason.NOT_PERMITTED,
        ) from None


async def _is_usable(collection: Collection, fields: Sequence[str]) -> bool:
    """Whether the server takes the unique index as a hint; the collection exists."""
    try:
        await collection.find_one({}, {"_id": 1}, hint=unique_hint(fields))
    except OperationFailure as error:
        if error.code != BAD_HINT:
            raise
        return False
    return True
