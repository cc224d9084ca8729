"""The conversion between the rows of a domain and the values in files, for the JSON backend and for dumps."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from hashlib import blake2b
from typing import Any

from pydantic import ValidationError

from backtest_persist.backends.json import codec
from backtest_persist.backends.json.layout import Layout, Shape
from backtest_persist.backends.json.value_file import Stored, Times, members
from backtest_persist.core.keys import STORED
from backtest_persist.core.row import Row
from backtest_persist.errors import InvalidKeyError, InvalidPayloadError

__all__ = ("row_dates", "to_fields", "to_row", "to_text")

_EPOCH = datetime.fromtimestamp(0, UTC)


def to_text(layout: Layout, fields: Mapping[str, Any]) -> bytes:
    """Return the text of a file for the fields of a row, by their wire names, payloads encoded.

    `InvalidPayloadError` when a field is missing that the file has to contain.
    """
    if missing := [name for name in layout.contents if name not in fields]:
        raise InvalidPayloadError(
            f"{layout.domain.collection}: a file holds a whole row; give {', '.join(missing)} as well.",
            collection=layout.domain.collection,
        )
    value = {name: fields[name] for name in layout.contents}
    if layout.shape is not Shape.OBJECT:
        (value,) = value.values()
    marked = members(value).get("removed") is True
    removed = bool(fields.get("removed", marked))
    encoded = codec.encode(value)
    if layout.removable and removed != marked:
        return codec.dumps({codec.LITERAL: encoded, "removed": removed})
    if layout.removable and value is None:  # the framework does not remove null, and fails to read it
        return codec.dumps({codec.LITERAL: None})
    return codec.dumps(encoded)


def to_fields(layout: Layout, stored: Stored) -> dict[str, Any]:
    """Return the fields of a row beside its context, by their wire names, as plain data."""
    if layout.shape is Shape.OBJECT:
        fields = {name: stored.value[name] for name in layout.contents if name in stored.value}
    else:
        fields = dict.fromkeys(layout.contents, stored.value)
    if layout.timed:
        fields["when"] = stored.when
    if layout.removable:
        fields["removed"] = stored.removed
    return fields


def to_row(layout: Layout, context: Mapping[str, Any], stored: Stored) -> Row:
    """Return the row of a context, by the Python names of its fields; `InvalidPayloadError` for one that is no row."""
    try:
        contents = {**context, **to_fields(layout, stored), **row_dates(context, Times(stored.created, stored.updated))}
        return layout.domain.row_type.model_validate(contents, context=STORED)
    except ValidationError as error:
        problem = f"see {', '.join(sorted({str(found['loc'][0]) for found in error.errors()}))}"
    except (InvalidKeyError, OverflowError) as error:
        problem = str(error).rstrip(".")
    described = ", ".join(f"{name}={value!r:.80}" for name, value in context.items())
    raise InvalidPayloadError(
        f"The file of {layout.domain.name} ({described}) is damaged: it holds no {layout.domain.row_type.__name__}, "
        f"{problem}. Repair or remove it.",
        collection=layout.domain.collection,
        context=context,
    )


def row_dates(context: Mapping[str, Any], times: Times) -> dict[str, Any]:
    """Return the id of the row of a context, which is the same in every dump, and its dates in whole ms."""
    identity = blake2b(repr(tuple(context.items())).encode(errors="surrogatepass"), digest_size=12)
    return {
        "id": identity.hexdigest(),
        "create_date": _date(times.created),
        "updated_date": _date(times.updated),
    }


def _date(ns: int) -> datetime:
    return _EPOCH + timedelta(milliseconds=ns // 1_000_000)
