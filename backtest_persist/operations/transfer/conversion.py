"""The conversion between the documents of MongoDB and the files of a dump, for one value."""

from collections.abc import Mapping
from typing import Any

from backtest_persist.backends.json import codec
from backtest_persist.backends.json.value_file import Stored, members
from backtest_persist.core.domain import Family
from backtest_persist.core.keys import STORED
from backtest_persist.core.ohlcv import checked_candle
from backtest_persist.core.payload import encode_list, encode_payload
from backtest_persist.core.row import Context, Row, wire_when
from backtest_persist.domains.candle import CandleRow
from backtest_persist.errors import InvalidKeyError, InvalidPayloadError
from backtest_persist.operations.domains import DomainServices

__all__ = ("check_id", "to_document", "to_text")


def to_document(domain: DomainServices, context: Mapping[str, Any], stored: Stored) -> tuple[Context, dict[str, Any]]:
    """Return the value of a file as its context and the other fields of its document, by their wire names.

    `InvalidKeyError` or `InvalidPayloadError` for a value that no document can hold.
    """
    value, row_fields = stored.value, domain.db.row_type.model_fields
    fields: dict[str, Any] = {"when": wire_when(stored.when)} if domain.layout.timed else {}
    if "positions" in row_fields:
        fields["positions"] = encode_list([] if value is None else value, domain.name)
    else:
        payload = fields["payload"] = encode_payload(value, domain.name)
        if "removed" in row_fields:
            fields["removed"] = stored.removed
        else:
            check_id(domain, context, payload)
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
    positions = getattr(row, "positions", None)
    if positions is not None:
        return codec.dumps(codec.encode(encode_list(positions, description)))
    payload = encode_payload(getattr(row, "payload", None), description)
    marked = payload is not None and payload.get("removed") is True
    removed = getattr(row, "removed", marked)
    if removed != marked:
        return codec.dumps({codec.LITERAL: codec.encode(payload), "removed": removed})
    return codec.dumps(codec.encode(payload))


def check_id(domain: DomainServices, context: Mapping[str, Any], payload: Any) -> None:
    """Refuse an entry of a list whose name differs from the 'id' in its payload, by which it is found."""
    if domain.family is Family.LIST and members(payload).get("id") != context[domain.layout.file[0]]:
        raise InvalidPayloadError("Its name is not the 'id' in its payload.")
