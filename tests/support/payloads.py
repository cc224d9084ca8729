"""Plain data of any shape: Hypothesis strategies, and a comparison that tells types apart."""

from datetime import UTC
from typing import Any
from uuid import UUID

from bson import Binary, Code, MaxKey, MinKey, ObjectId, Regex, Timestamp
from bson.datetime_ms import DatetimeMS
from hypothesis import strategies as st

__all__ = ("BSON_VALUES", "keys", "typed", "values")

BSON_VALUES: dict[str, Any] = {
    "ObjectId": ObjectId("65a1b2c3d4e5f60718293a4b"),
    "Regex": Regex("^a/b", "imx"),
    "Timestamp": Timestamp(2**32 - 1, 7),
    "Code": Code("f()"),
    "Code with scope": Code("f()", {"n": 1, "$oid": 2, "key": UUID(int=5)}),
    "MinKey": MinKey(),
    "MaxKey": MaxKey(),
    "a date beyond the years of datetime": DatetimeMS(8_640_000_000_000_000),
    "Binary of subtype 3": Binary(b"x" * 16, 3),
    "Binary of subtype 4 that is no UUID": Binary(b"abc", 4),
    "Binary of subtype 128": Binary(b"", 128),
}
"""Values that only BSON has, as the driver reads them from a document that another program wrote."""

_text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8)
_scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False)
    | _text
    | st.binary(max_size=8)
    | st.uuids()
    | st.decimals(allow_nan=False, allow_infinity=False, places=8, min_value=-(10**12), max_value=10**12)
    | st.datetimes(timezones=st.just(UTC)).map(
        lambda value: value.replace(microsecond=value.microsecond // 1000 * 1000, fold=0)
    )
)
keys = _text | st.sampled_from(
    ["$set", "a.b", "$x", "$ref", "$oid", "$code", "$id", "$db", "_id", "$", ".", "when", ""]
)
"""Keys of a payload, those that MongoDB, PyMongo and this package give a meaning to included."""
values = st.recursive(
    _scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4), max_leaves=12
)
"""Values that a payload may hold, nested."""


def typed(value: Any) -> Any:
    """Return a value in a form that is equal only for the same types in every part, and the same order of keys."""
    if type(value) is dict:
        return [(key, typed(item)) for key, item in value.items()]  # pyright: ignore[reportUnknownVariableType]
    if isinstance(value, list):
        return [typed(item) for item in value]  # pyright: ignore[reportUnknownVariableType]
    return repr(value)
