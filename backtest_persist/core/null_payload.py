"""Null payloads: an entry that can be removed is stored without the field where it has no payload.

The framework removes an entry by setting ``payload.removed``, which the server refuses where `payload` is null, and
carries out where it is missing.
"""

from collections.abc import Mapping
from typing import Any

__all__ = ("absent_fields", "present_fields")


def absent_fields(fields: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the fields of a document, by their wire names, that are to be missing in it."""
    return ("payload",) if "removed" in fields and fields.get("payload", ...) is None else ()


def present_fields(fields: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the other fields, with their values."""
    absent = absent_fields(fields)
    return {name: value for name, value in fields.items() if name not in absent} if absent else fields
