"""Bulk writes: what became of each operation, and the retries of those that may be sent again."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from bson import ObjectId
from pymongo import UpdateOne
from pymongo.errors import BulkWriteError, PyMongoError

from backtest_persist.connections import Collection, Document
from backtest_persist.core.indexes import BAD_HINT
from backtest_persist.errors import BacktestPersistError

__all__ = ("DUPLICATE_KEY", "BulkOutcome", "already_stored", "codes_of", "write_bulk")

DUPLICATE_KEY = 11000


@dataclass
class BulkOutcome:
    """The outcome of a bulk write, by the position of the operations."""

    upserted: dict[int, ObjectId]
    """The ids of what is newly stored."""
    refused: dict[int, Exception]
    """The errors of what was not stored."""
    matched: int = 0
    """How many operations have found a document."""


def already_stored(error: BulkWriteError) -> set[int]:
    """Return the positions of inserts whose context was stored already; any other problem is raised."""
    details: Mapping[str, Any] = error.details or {}
    failures: Sequence[Mapping[str, Any]] = details.get("writeErrors") or ()
    if details.get("writeConcernErrors") or any(failure.get("code") != DUPLICATE_KEY for failure in failures):
        raise error
    return {failure["index"] for failure in failures}


def codes_of(error: Exception) -> set[Any]:
    """Return the codes that the server has given for a refusal."""
    if isinstance(error, BulkWriteError):
        return {failure.get("code") for failure in (error.details or {}).get("writeErrors") or ()}
    return {getattr(error, "code", None)}


async def write_bulk(
    collection: Collection,
    operations: Sequence[UpdateOne],
    session: Any,
    prepare: Callable[[], Awaitable[None]],
) -> BulkOutcome:
    """Write without order: what is refused does not stop the others.

    Two kinds of refusals are retried once: of first writes that met in the server, and, after `prepare`, of those
    answered `BAD_HINT`, whose unique index is gone.
    """
    bulk = BulkOutcome({}, {})
    pending: dict[int, UpdateOne] = dict(enumerate(operations))
    for may_retry in (True, False):
        positions = list(pending)
        try:
            result = await collection.bulk_write(cast("Any", list(pending.values())), ordered=False, session=session)
            bulk.upserted |= {positions[index]: id for index, id in (result.upserted_ids or {}).items()}
            bulk.matched += result.matched_count
            break
        except BulkWriteError as error:
            details: Mapping[str, Any] = error.details or {}
            failures: Sequence[Mapping[str, Any]] = details.get("writeErrors") or ()
            if details.get("writeConcernErrors") or not failures:
                raise
            bulk.upserted |= {positions[entry["index"]]: entry["_id"] for entry in details.get("upserted", ())}
            bulk.matched += details.get("nMatched", 0)
            codes = {failure["index"]: failure.get("code") for failure in failures if may_retry}
            retried = {index for index, code in codes.items() if code in (DUPLICATE_KEY, BAD_HINT)}
            for failure in failures:
                if failure["index"] not in retried:
                    single: Document = {"writeErrors": [failure], "writeConcernErrors": []}
                    bulk.refused[positions[failure["index"]]] = BulkWriteError(single)
            pending = {positions[index]: pending[positions[index]] for index in retried}
            if BAD_HINT in codes.values():
                try:
                    await prepare()
                except BacktestPersistError as error:  # of these alone; the others are stored
                    bulk.refused |= dict.fromkeys(pending, error)
                    break
            if not pending:
                break
        except PyMongoError as error:
            if may_retry:
                raise
            bulk.refused |= dict.fromkeys(positions, error)  # of these alone; the first attempt has stored the others
    return bulk
