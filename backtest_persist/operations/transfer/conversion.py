"""The conversion between the documents of MongoDB and the files of a dump, for one value."""

from collections.abc import Mapping
from typing import Any, cast

from bson.int64 import Int64

from backtest_persist.backends.json import codec, rows
from backtest_persist.backends.json.layout import Shape
from backtest_persist.backends.json.value_file import Stored, members
from backtest_persist.core.candles.input import checked_candle
from backtest_persist.core.candles.ohlcv import Series
from backtest_persist.core.domain import Family
from backtest_persist.core.instants import admitted
from backtest_persist.core.keys import STORED
from backtest_persist.core.payload import encode_list, encode_payload
from backtest_persist.core.row import Context, Row
from backtest_persist.domains.candle import CandleRow
from backtest_persist.errors import InvalidPayloadError
from backtest_persist.operations.domains import DomainServices

__all__ = ("check_id", "to_document", "to_text")


def to_document(domain: DomainServices, context: Mapping[str, Any], stored: Stored) -> tuple[Context, dict[str, Any]]:
    """Return the value of a file as its context and the other fields of its document, by their wire names.

    `InvalidKeyError` or `InvalidPayloadError` for a value that no document can hold.
    """
    checked = domain.db.context_type.model_validate(context, context=STORED)
    fields = rows.to_fields(domain.layout, stored)
    fields |= {name: _encode(name, fields[name], domain.name) for name in domain.layout.contents if name in fields}
    if "when" in fields:
        fields["when"] = Int64(stored.when)
    check_id(domain, context, fields.get("payload"))
    if domain.layout.shape is Shape.OBJECT:
        rows.to_row(domain.layout, checked.parts(), stored)  # which says what is missing
    return checked, fields


def to_text(domain: DomainServices, row: Row) -> bytes:
    """Return a document as the text of a file.

    `InvalidKeyError` or `InvalidPayloadError` for a document that no file can hold.
    """
    description = f"{domain.name} {row.id}"
    if isinstance(row, CandleRow):
        series = Series(row.symbol, row.interval, row.exchange_name)
        return codec.dumps(checked_candle(series, row.data(), admitted))
    layout = domain.layout
    fields = {
        wire: _encode(wire, getattr(row, name), description)
        for name, wire in zip(layout.domain.contents, layout.contents, strict=True)
    }
    if layout.removable:
        fields["removed"] = getattr(row, "removed", False)
    return rows.to_text(layout, fields)


def _encode(name: str, value: Any, description: str) -> Any:
    if name == "payload":
        return encode_payload(value, description)
    if isinstance(value, list):
        return encode_list(cast("list[Any]", value), description)
    return cast("dict[str, Any]", encode_payload({name: value}, description))[name]


def check_id(domain: DomainServices, context: Mapping[str, Any], payload: Any) -> None:
    """Refuse an entry of a list whose name differs from the 'id' in its payload, by which it is found."""
    layout = domain.layout
    by_id = domain.family is Family.LIST and layout.shape is Shape.PAYLOAD and len(layout.file) == 1
    if by_id and members(payload).get("id") != context[layout.file[0]]:
        raise InvalidPayloadError("Its name is not the 'id' in its payload.")
