"""Contexts and rows: names on the wire, type-strict comparison, and documents of any writer."""

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from bson import Binary, ObjectId
from bson.decimal128 import Decimal128
from bson.int64 import Int64

from backtest_persist import InvalidKeyError, InvalidPayloadError
from backtest_persist.core.keys import Flag, FrameName, Name, Timestamp, join_key
from backtest_persist.core.payload import Payload
from backtest_persist.core.row import Context, Row, to_wire, utc_now
from backtest_persist.core.soft_delete import RemovableRow, living_payload

ID = ObjectId("65a1b2c3d4e5f60718293a4b")
CREATED, UPDATED = datetime(2024, 1, 1, tzinfo=UTC), datetime(2024, 1, 2, tzinfo=UTC)


class PriceContext(Context):
    symbol: Name
    frame_name: FrameName
    open_time: Timestamp
    backtest: Flag

    @property
    def cache_key(self) -> str:
        return join_key(self.symbol, self.frame_name, self.open_time)


class PriceRow(PriceContext, Row):
    payload: Payload | None
    price: float


class FeeRow(PriceContext, Row):
    fee: Decimal
    key: UUID
    steps: list[Decimal] | None = None


class NoteRow(RemovableRow):
    text: Name


CONTEXT = PriceContext(symbol="BTC", frame_name="2024", open_time=1_704_067_260_000, backtest=True)
FIELDS: dict[str, Any] = {"symbol": "BTC", "frameName": "2024", "openTime": 1_704_067_260_000, "backtest": True}
DATES: dict[str, Any] = {"createDate": CREATED, "updatedDate": UPDATED}
DOCUMENT: dict[str, Any] = {"_id": ID, **FIELDS, **DATES, "payload": {"n": 1}, "price": 1.5, "__v": 0}
NOTE: dict[str, Any] = {"_id": ID, **DATES, "text": "hello"}


# --- names ---


@pytest.mark.parametrize(
    ("name", "wire"),
    [
        ("id", "_id"),
        ("symbol", "symbol"),
        ("strategy_name", "strategyName"),
        ("create_date", "createDate"),
        ("a_longer_field_name", "aLongerFieldName"),
    ],
)
def test_a_field_has_one_name_on_the_wire(name: str, wire: str) -> None:
    """Snake case becomes camel case, and `id` becomes ``_id``."""
    assert to_wire(name) == wire


def test_a_context_filters_by_the_fields_of_its_unique_index() -> None:
    """The filter has the fields of the class in their order, by wire name, and nothing else."""
    assert PriceContext.wire_names() == ("symbol", "frameName", "openTime", "backtest")
    assert list(CONTEXT.to_filter().items()) == list(FIELDS.items())


def test_a_context_of_a_class_without_a_key_says_so() -> None:
    """A subclass that does not define `cache_key` is named by a TypeError, and has no key by accident."""

    class Bare(Context):
        symbol: Name

    with pytest.raises(TypeError, match="Bare"):
        _ = Bare(symbol="BTC").cache_key


def test_a_context_describes_itself_by_python_names_and_in_short() -> None:
    """A message names each component, and shows the first 80 characters of a long one."""
    assert CONTEXT.describe() == "symbol='BTC', frame_name='2024', open_time=1704067260000, backtest=True"
    described = CONTEXT.model_copy(update={"symbol": "x" * 1000}).describe()
    assert described.startswith(f"symbol='{'x' * 79}, frame_name")


# --- matches ---


@pytest.mark.parametrize("time", [1_704_067_260_000, 1_704_067_260_000.0, Int64(1_704_067_260_000)], ids=repr)
def test_a_document_matches_whatever_type_its_number_has(time: Any) -> None:
    """JavaScript has one type of number, so int32, int64 and double of one value are the same component."""
    assert CONTEXT.matches({**DOCUMENT, "openTime": time})


@pytest.mark.parametrize(
    "change",
    [
        {"symbol": "ETH"},
        {"symbol": None},
        {"symbol": ["BTC"]},
        {"frameName": ""},
        {"openTime": 1_704_067_260_001},
        {"openTime": 1_704_067_260_000.5},
        {"openTime": "1704067260000"},
        {"openTime": Decimal(1_704_067_260_000)},
        {"backtest": False},
        {"backtest": 1},
        {"backtest": 1.0},
        {"backtest": Int64(1)},
    ],
    ids=str,
)
def test_a_document_with_another_component_does_not_match(change: dict[str, Any]) -> None:
    """Another value does not match, and no value that only compares equal, such as 1 and True."""
    assert CONTEXT.matches(DOCUMENT)
    assert not CONTEXT.matches({**DOCUMENT, **change})


@pytest.mark.parametrize("missing", FIELDS)
def test_a_document_that_lacks_a_component_does_not_match(missing: str) -> None:
    """Every field of the context has to be there."""
    assert not CONTEXT.matches({name: value for name, value in DOCUMENT.items() if name != missing})


def test_a_number_of_a_context_does_not_match_a_bool() -> None:
    """True equals 1 in Python, and is another value in MongoDB."""
    one = CONTEXT.model_copy(update={"open_time": 1})
    assert one.matches({**DOCUMENT, "openTime": 1.0})
    assert not one.matches({**DOCUMENT, "openTime": True})


# --- rows ---


def test_a_row_is_built_from_a_document() -> None:
    """Its id is text, its names are those of Python, and undeclared fields are left out."""
    row = PriceRow.from_document({**DOCUMENT, "added later": 1})
    assert row.model_dump() == {
        **CONTEXT.model_dump(),
        "id": str(ID),
        "create_date": CREATED,
        "updated_date": UPDATED,
        "payload": {"n": 1},
        "price": 1.5,
    }
    assert row.cache_key == "BTC:2024:1704067260000"
    with pytest.raises(ValueError, match="frozen"):
        row.price = 2.0  # pyright: ignore[reportAttributeAccessIssue]


def test_numbers_of_another_language_are_taken_by_value() -> None:
    """A double is taken for an int if it is whole, an integer of any size for a float."""
    row = PriceRow.from_document({**DOCUMENT, "openTime": 1_704_067_260_000.0, "price": Int64(2)})
    assert (row.open_time, row.price) == (1_704_067_260_000, 2.0)
    assert (type(row.open_time), type(row.price)) == (int, float)


def test_a_payload_is_plain_data() -> None:
    """Types of BSON inside a payload become those of Python, in lists and dicts as well."""
    payload = {"n": Int64(5), "list": [{"price": Decimal128("1.50")}, Binary(b"x" * 16, 4)], "keep": [1, None, CREATED]}
    row = PriceRow.from_document({**DOCUMENT, "payload": payload})
    plain: Any = row.payload
    expected = {"n": 5, "list": [{"price": Decimal("1.50")}, UUID(bytes=b"x" * 16)], "keep": [1, None, CREATED]}
    assert plain == expected
    assert type(plain["n"]) is int
    assert payload["n"] == Int64(5)
    assert type(payload["n"]) is Int64  # the document is not changed


def test_every_field_of_an_own_row_is_read_as_its_type() -> None:
    """Decimals and UUIDs beside a payload are built from what the driver gives for them, in lists as well."""
    key = UUID(int=5)
    stored = {"fee": Decimal128("0.10"), "key": Binary.from_uuid(key), "steps": [Decimal128("1.5")]}
    row = FeeRow.from_document({**DOCUMENT, **stored})
    assert (row.fee, row.key, row.steps) == (Decimal("0.10"), key, [Decimal("1.5")])
    assert FeeRow.from_documents([{**DOCUMENT, **stored}]) == [row]


def test_a_frame_may_be_empty() -> None:
    """The original leaves it empty in live trading; no other name may be, and a frame is a str like other names."""
    assert PriceRow.from_document({**DOCUMENT, "frameName": ""}).frame_name == ""
    assert PriceContext(symbol="BTC", frame_name="", open_time=0, backtest=True).cache_key == "BTC::0"
    unusable: list[Any] = [None, 0, b"", [], {}, "a\0b"]
    for bad in unusable:
        with pytest.raises(InvalidKeyError, match="frame_name"):
            PriceContext(symbol="BTC", frame_name=bad, open_time=0, backtest=True)
    with pytest.raises(InvalidKeyError, match="symbol must not be empty"):
        PriceContext(symbol="", frame_name="", open_time=0, backtest=True)


BROKEN: dict[str, tuple[dict[str, Any], str]] = {
    "no date": ({**DOCUMENT, "createDate": None}, "create_?[dD]ate"),
    "text for a date": ({**DOCUMENT, "updatedDate": "yesterday"}, "updated_?[dD]ate"),
    "text for a number": ({**DOCUMENT, "price": "much"}, "price"),
    "no payload": ({name: value for name, value in DOCUMENT.items() if name != "payload"}, "payload"),
    "a list for a payload": ({**DOCUMENT, "payload": []}, "payload"),
    "an empty name": ({**DOCUMENT, "symbol": ""}, "symbol"),
    "a number for a flag": ({**DOCUMENT, "backtest": 1}, "backtest"),
}


@pytest.mark.parametrize(("document", "field"), BROKEN.values(), ids=BROKEN)
def test_a_damaged_document_is_named_with_its_field(document: dict[str, Any], field: str) -> None:
    """The error is an InvalidPayloadError with id, row and field, alone and among others, and quotes no value."""
    for build in (
        lambda: PriceRow.from_document(document),
        lambda: PriceRow.from_documents([DOCUMENT, document, DOCUMENT]),
    ):
        with pytest.raises(InvalidPayloadError, match=rf"{ID} is no PriceRow: .*{field}") as caught:
            build()
        assert "yesterday" not in str(caught.value)


def test_many_documents_become_rows_in_their_order() -> None:
    """They are the rows of the documents one by one; of no document there is no row."""
    documents = [{**DOCUMENT, "_id": ObjectId(), "price": Int64(n), "payload": {"n": Int64(n)}} for n in range(5)]
    rows = PriceRow.from_documents(documents)
    assert rows == [PriceRow.from_document(document) for document in documents]
    assert [type(row.payload and row.payload["n"]) for row in rows] == [int] * 5
    assert PriceRow.from_documents([]) == []


def test_sifting_keeps_the_rows_and_names_the_others() -> None:
    """Each document becomes a row, in its order, or the id and the error of what it lacks."""
    documents = [{**DOCUMENT, "_id": ObjectId(), "price": price} for price in (1, "bad", 2, None, 3)]
    rows, refused = PriceRow.sift(documents)
    assert [row.price for row in rows] == [1, 2, 3]
    assert [id for id, _ in refused] == [str(documents[1]["_id"]), str(documents[3]["_id"])]
    assert all(isinstance(error, InvalidPayloadError) and id in str(error) for id, error in refused)
    assert PriceRow.sift(documents[::2]) == (rows, [])


# --- tombstones ---


@pytest.mark.parametrize(
    ("fields", "removed"),
    [
        ({"payload": {"n": 1}, "removed": True}, True),
        ({"payload": {"n": 1}, "removed": False}, False),
        ({"payload": {"removed": True}, "removed": False}, False),
        ({"payload": {"removed": True}, "removed": None}, True),
        ({"payload": {"removed": True}}, True),
        ({"payload": {"removed": 1}}, False),
        ({"payload": {"n": 1}}, False),
        ({"payload": None}, False),
        ({"payload": None, "removed": True}, True),
    ],
    ids=str,
)
def test_a_tombstone_is_told_by_its_field_or_else_by_its_payload(fields: dict[str, Any], removed: bool) -> None:
    """Only where the field is missing or null does the payload decide, and only with a real True."""
    row = NoteRow.from_document({**NOTE, **fields})
    assert row.removed is removed
    assert living_payload(row) == (None if removed else fields["payload"])


def test_there_is_no_living_payload_without_a_row() -> None:
    """A context that holds nothing reads like one whose document was removed."""
    assert living_payload(None) is None


def test_a_flag_that_is_no_bool_is_refused() -> None:
    """A document with another type in `removed` is damaged, not alive."""
    with pytest.raises(InvalidPayloadError, match="removed"):
        NoteRow.from_document({**NOTE, "payload": None, "removed": "maybe"})


def test_the_present_has_whole_milliseconds() -> None:
    """A date that was stored compares equal to the one that was sent."""
    now = utc_now()
    assert now.microsecond % 1000 == 0
    assert now.tzinfo is UTC
    assert abs((datetime.now(UTC) - now).total_seconds()) < 60
