"""The conversion between the documents of MongoDB and the files of a dump, for one value."""

from collections.abc import Mapping
from typing import Any

from backtest_persist.backends.json import codec, rows
from backtest_persist.backends.json.layout import Shape
from backtest_persist.backends.json.value_file import Stored, members
from backtest_persist.core.domain import Family
from backtest_persist.core.keys import STORED
from backtest_persist.core.ohlcv import checked_candle
from backtest_persist.core.payload import encode_list, encode_payload
from backtest_persist.core.row import Context, Row, to_wire, wire_when
from backtest_persist.domains.candle import CandleRow
from backtest_persist.errors import InvalidKeyError, InvalidPayloadError
from backtest_persist.operations.domains import DomainServices

__all__ = ("check_id", "to_document", "to_text")


def to_document(domain: DomainServices, context: Mapping[str, Any], stored: Stored) -> tuple[Context, dict[str, Any]]:
    """Return the value of a file as its context and the other fields of its document, by their wire names.

    `InvalidKeyError` or `InvalidPayloadError` for a value that no document can hold.
    """
    layout = domain.layout
    if layout.shape is Shape.OBJECT:
        rows.to_row(layout, context, stored)  # refuses fields that are missing or of another type
    fields = rows.to_fields(layout, stored)
    if layout.timed:
        fields["when"] = wire_when(stored.when)
    for name in layout.contents:
        if layout.shape is Shape.LIST:
            fields[name] = encode_list([] if stored.value is None else stored.value, domain.name)
        elif layout.shape is Shape.PAYLOAD:
            fields[name] = encode_payload(stored.value, domain.name)
            check_id(domain, context, fields[name])
    return domain.db.context_type.model_validate(context, context=STORED), fields


def to_text(domain: DomainServices, row: Row) -> bytes:
    """Return a document as the text of a file.

    `InvalidKeyError` or `InvalidPayloadError` for a document that no file can hold.
    """
    description = f"{domain.name} {row.id}"
    if isinstance(row, CandleRow):
        return codec.dumps(checked_candle(row.symbol, row.interval, row.exchange_name, row.data()))
    if getattr(row, "frame_name", None) == "" and getattr(row, "backtest", False):
        raise InvalidKeyError(f"{description}: frame_name must not be empty in a backtest.")
    fields = {to_wire(name): getattr(row, name) for name in domain.db.row_type.model_fields}
    for name in domain.layout.contents:
        if domain.layout.shape is Shape.LIST:
            fields[name] = encode_list(fields[name], description)
        elif domain.layout.shape is Shape.PAYLOAD:
            fields[name] = encode_payload(fields[name], description)
    return rows.to_text(domain.layout, fields)


def check_id(domain: DomainServices, context: Mapping[str, Any], payload: Any) -> None:
    """Refuse an entry of a list whose name differs from the 'id' in its payload, by which it is found."""
    if domain.family is Family.LIST and members(payload).get("id") != context[domain.layout.file[0]]:
        raise InvalidPayloadError("Its name is not the 'id' in its payload.")
