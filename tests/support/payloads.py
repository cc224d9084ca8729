"""Plain data of any shape: Hypothesis strategies, and a comparison that tells types apart."""

from datetime import UTC
from typing import Any

from hypothesis import strategies as st

__all__ = ("keys", "typed", "values")

_text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8)
_scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False)
    | _text
    | st.binary(max_size=8)
    | st.decimals(allow_nan=False, allow_infinity=False, places=8, min_value=-(10**12), max_value=10**12)
    | st.datetimes(timezones=st.just(UTC)).map(
        lambda value: value.replace(microsecond=value.microsecond // 1000 * 1000, fold=0)
    )
)
keys = _text | st.sampled_from(["$set", "a.b", "$x", "$ref", "$id", "$db", "_id", "$", ".", "when", ""])
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
