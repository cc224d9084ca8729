"""Bulk writes: which operations are repeated, which are refused, and where the ids of new documents belong."""

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from bson import ObjectId
from pymongo import UpdateOne
from pymongo.errors import AutoReconnect, BulkWriteError

from backtest_persist import StoreUnavailableError
from backtest_persist.core.bulk import DUPLICATE_KEY, BulkOutcome, already_stored, write_bulk
from backtest_persist.core.indexes import BAD_HINT

REFUSED = 121  # DocumentValidationFailure
NOT_MET = {"code": 64, "errmsg": "waiting for replication timed out"}
IDS = [ObjectId() for _ in range(6)]
OPERATIONS = [UpdateOne({"n": n}, {"$set": {"value": n}}, upsert=True) for n in range(6)]


class Acknowledged:
    """The result of a bulk in which nothing was refused."""

    def __init__(self, upserted: Mapping[int, ObjectId] | None, matched: int = 0) -> None:
        self.upserted_ids = upserted
        self.matched_count = matched


def failed(
    codes: Mapping[int, int],
    upserted: Mapping[int, ObjectId] | None = None,
    *,
    matched: int = 0,
    concern: Sequence[Any] = (),
) -> BulkWriteError:
    """Make the error of a bulk whose operations at these positions were refused with these codes."""
    failures = [{"index": index, "code": code, "errmsg": "no"} for index, code in codes.items()]
    new = [{"index": index, "_id": id} for index, id in (upserted or {}).items()]
    details = {"writeErrors": failures, "writeConcernErrors": list(concern), "upserted": new, "nMatched": matched}
    return BulkWriteError(details)


class Collection:
    """Answers bulk writes with the given replies, in their order, and records what was sent."""

    def __init__(self, *replies: Acknowledged | Exception) -> None:
        self._replies = list(replies)
        self.sent: list[list[int]] = []
        """The numbers of the operations of each command."""
        self.options: list[dict[str, Any]] = []
        self.prepared = 0

    async def bulk_write(self, operations: list[UpdateOne], **options: Any) -> Acknowledged:
        self.sent.append([OPERATIONS.index(operation) for operation in operations])
        self.options.append(options)
        reply = self._replies.pop(0)
        if isinstance(reply, Exception):
            raise reply
        return reply

    async def prepare(self) -> None:
        self.prepared += 1

    async def write(self, count: int) -> BulkOutcome:
        anything: Any = self
        bulk = await write_bulk(anything, OPERATIONS[:count], "session", self.prepare)
        assert self._replies == []
        return bulk


def codes_of(bulk: BulkOutcome) -> dict[int, list[int]]:
    """Return the codes in the error of each operation that was refused by the server."""
    found: dict[int, list[int]] = {}
    for position, error in bulk.refused.items():
        assert isinstance(error, BulkWriteError)
        assert error.details["writeConcernErrors"] == []
        found[position] = [failure["code"] for failure in error.details["writeErrors"]]
    return found


async def test_a_bulk_is_one_unordered_command_of_the_session() -> None:
    """Operations that do not depend on each other are sent at once, so that one that is refused leaves the others."""
    collection = Collection(Acknowledged({0: IDS[0], 2: IDS[2]}))
    bulk = await collection.write(3)
    assert bulk == BulkOutcome({0: IDS[0], 2: IDS[2]}, {})
    assert collection.sent == [[0, 1, 2]]
    assert collection.options == [{"ordered": False, "session": "session"}]
    assert collection.prepared == 0


async def test_a_bulk_that_stored_nothing_new_has_no_ids() -> None:
    """The driver says None where no document was inserted."""
    assert await Collection(Acknowledged(None, matched=2)).write(2) == BulkOutcome({}, {}, matched=2)


async def test_first_writes_that_met_others_are_repeated() -> None:
    """A duplicate key means that the document exists by now: the operation updates it the second time."""
    collection = Collection(
        failed({1: DUPLICATE_KEY, 4: DUPLICATE_KEY}, {0: IDS[0], 3: IDS[3]}, matched=1),
        Acknowledged({1: IDS[4]}, matched=1),
    )
    bulk = await collection.write(5)
    assert collection.sent == [[0, 1, 2, 3, 4], [1, 4]]
    assert bulk == BulkOutcome({0: IDS[0], 3: IDS[3], 4: IDS[4]}, {}, matched=2)
    assert collection.prepared == 0


async def test_operations_without_their_index_are_repeated_once_it_is_there() -> None:
    """A bad hint means that the unique index is gone: it is prepared once, before the operations are repeated."""
    collection = Collection(failed({0: BAD_HINT, 2: BAD_HINT}, {1: IDS[1]}), Acknowledged({0: IDS[0], 1: IDS[2]}))
    bulk = await collection.write(3)
    assert collection.sent == [[0, 1, 2], [0, 2]]
    assert collection.prepared == 1
    assert bulk == BulkOutcome({0: IDS[0], 1: IDS[1], 2: IDS[2]}, {})


async def test_an_operation_is_repeated_once() -> None:
    """A second refusal is final, whatever its code, and names one operation; ids of both attempts are kept."""
    collection = Collection(
        failed({1: DUPLICATE_KEY, 2: DUPLICATE_KEY, 3: BAD_HINT, 5: DUPLICATE_KEY}, {0: IDS[0], 4: IDS[4]}),
        failed({1: DUPLICATE_KEY, 2: BAD_HINT, 3: REFUSED}, {0: IDS[1]}),
    )
    bulk = await collection.write(6)
    assert collection.sent == [[0, 1, 2, 3, 4, 5], [1, 2, 3, 5]]
    assert bulk.upserted == {0: IDS[0], 1: IDS[1], 4: IDS[4]}
    assert codes_of(bulk) == {2: [DUPLICATE_KEY], 3: [BAD_HINT], 5: [REFUSED]}
    assert collection.prepared == 1


async def test_what_the_server_refuses_for_another_reason_is_not_repeated() -> None:
    """It has its error at once, while the others of the bulk are repeated or stored."""
    collection = Collection(failed({0: REFUSED, 2: DUPLICATE_KEY}, {1: IDS[1]}), Acknowledged({0: IDS[2]}))
    bulk = await collection.write(3)
    assert collection.sent == [[0, 1, 2], [2]]
    assert bulk.upserted == {1: IDS[1], 2: IDS[2]}
    assert codes_of(bulk) == {0: [REFUSED]}


async def test_nothing_is_sent_when_nothing_is_to_be_repeated() -> None:
    """A bulk whose failures are all final is over after one command."""
    collection = Collection(failed({0: REFUSED, 1: REFUSED}))
    assert codes_of(await collection.write(2)) == {0: [REFUSED], 1: [REFUSED]}
    assert collection.sent == [[0, 1]]


async def test_an_index_that_cannot_be_prepared_fails_its_operations_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error of the preparation is that of the operations to be repeated; nothing denies what is stored."""
    error = StoreUnavailableError("no index")

    async def prepare() -> None:
        raise error

    collection = Collection(failed({0: BAD_HINT, 1: REFUSED, 3: DUPLICATE_KEY}, {2: IDS[2]}))
    monkeypatch.setattr(collection, "prepare", prepare)
    bulk = await collection.write(4)
    assert bulk.upserted == {2: IDS[2]}
    assert (bulk.refused.pop(0), bulk.refused.pop(3)) == (error, error)
    assert codes_of(bulk) == {1: [REFUSED]}
    assert collection.sent == [[0, 1, 2, 3]]


@pytest.mark.parametrize("codes", [{}, {0: DUPLICATE_KEY}, {1: REFUSED}], ids=str)
async def test_a_write_concern_that_was_not_met_is_an_error_of_the_whole_bulk(codes: dict[int, int]) -> None:
    """Nobody may take for stored what only the primary has, whether or not operations were refused as well."""
    error = failed(codes, {2: IDS[2]}, concern=[NOT_MET])
    collection = Collection(error)
    with pytest.raises(BulkWriteError) as caught:
        await collection.write(3)
    assert caught.value is error
    assert collection.sent == [[0, 1, 2]]


async def test_an_error_that_names_no_operation_is_an_error_of_the_whole_bulk() -> None:
    """Without the operations that were refused nothing is known to be stored."""
    with pytest.raises(BulkWriteError):
        await Collection(failed({})).write(2)


async def test_a_connection_that_breaks_is_an_error_of_the_whole_bulk() -> None:
    """Nothing is known of a first attempt without a reply, and it is not repeated here."""
    error = AutoReconnect("closed")
    collection = Collection(error)
    with pytest.raises(AutoReconnect) as caught:
        await collection.write(2)
    assert caught.value is error
    assert collection.sent == [[0, 1]]


async def test_a_connection_that_breaks_later_is_an_error_of_what_was_repeated() -> None:
    """Operations that the first attempt has stored or refused keep their outcome."""
    error = AutoReconnect("closed")
    collection = Collection(failed({0: REFUSED, 1: DUPLICATE_KEY, 3: DUPLICATE_KEY}, {2: IDS[2]}), error)
    bulk = await collection.write(4)
    assert bulk.upserted == {2: IDS[2]}
    assert (bulk.refused.pop(1), bulk.refused.pop(3)) == (error, error)
    assert codes_of(bulk) == {0: [REFUSED]}


# --- inserts ---


def test_inserts_of_contexts_that_are_stored_are_told_by_position() -> None:
    """A duplicate key is no problem of an insert that loses to the first write."""
    assert already_stored(failed({1: DUPLICATE_KEY, 3: DUPLICATE_KEY})) == {1, 3}


@pytest.mark.parametrize(
    "error",
    [
        failed({1: DUPLICATE_KEY, 2: REFUSED}),
        failed({1: DUPLICATE_KEY}, concern=[NOT_MET]),
        failed({}, concern=[NOT_MET]),
    ],
    ids=["refused", "refused and not met", "not met"],
)
def test_any_other_problem_of_an_insert_is_raised(error: BulkWriteError) -> None:
    """An insert that was refused for another reason, or may be lost, does not count as stored before."""
    with pytest.raises(BulkWriteError) as caught:
        already_stored(error)
    assert caught.value is error
