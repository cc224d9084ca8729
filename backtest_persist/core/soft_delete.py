"""Tombstones: a removed entry keeps its document, with ``removed: true``, until a later write revives it."""

from typing import Annotated, Any, TypeVar, cast

from pydantic import BeforeValidator, Field, ValidationInfo

from backtest_persist.contracts import PayloadInput
from backtest_persist.core.db_service import C, DbService
from backtest_persist.core.payload import Deferred, Payload, encoded_fields
from backtest_persist.core.row import Row
from backtest_persist.errors import InvalidPayloadError

__all__ = ("RemovableRow", "SoftDeleteDbService", "living_payload")


def _removed(value: Any, info: ValidationInfo) -> Any:
    return _says_removed(info.data.get("payload")) if value is None else value


class RemovableRow(Row):
    """A row that can be a tombstone; an object payload then carries ``removed: true`` as well.

    Where the field is missing or null, as another program may leave it, the payload tells. A document without a
    payload lacks the field; see `core.null_payload`.
    """

    payload: Payload | None = None
    removed: Annotated[bool, BeforeValidator(_removed)] = Field(default=cast("bool", None), validate_default=True)


T = TypeVar("T", bound=RemovableRow)


class SoftDeleteDbService(DbService[C, T]):
    """A db service whose documents are marked as removed instead of being deleted."""

    def encoded_living(self, payload: PayloadInput | None, context: C) -> dict[str, Any]:
        """Return the fields that store a payload and revive its entry, unless the payload says it is removed."""
        encoded = self.encoded(payload, context)
        if isinstance(encoded, Deferred):
            return {"payload": encoded, "removed": Deferred(lambda: _says_removed(encoded.value()))}
        # a payload that says it is removed is a tombstone in the wire format
        return {"payload": encoded, "removed": _says_removed(encoded)}

    def encoded_claim(self, payload: PayloadInput, context: C) -> dict[str, Any]:
        """Return the fields that claim an entry; `InvalidPayloadError` for a payload that would leave it free."""
        fields = encoded_fields({"payload": self.encoded_entry(payload, context), "removed": False})
        if _says_removed(fields["payload"]):
            raise InvalidPayloadError(
                f"{self.collection} ({context.describe()}): a payload with removed: true is a tombstone, which claims "
                "nothing.",
                collection=self.collection,
                context=context.parts(),
            )
        return fields


def _says_removed(payload: Any) -> bool:
    return isinstance(payload, dict) and cast("dict[str, Any]", payload).get("removed") is True


def living_payload(row: RemovableRow | None) -> dict[str, Any] | None:
    """Return the payload that a reader may see: None when there is no row, or only a tombstone."""
    return None if row is None or row.removed else row.payload
