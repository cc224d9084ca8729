"""Payloads for property tests: any plain data that can be stored, and an exact comparison."""

from datetime import UTC
from typing import Any

from hypothesis import strategies as st

__all__ = ("keys", "typed", "values")

text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8)
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False)
    | text
    | st.binary(max_size=8)
    | st.decimals(allow_nan=False, allow_infinity=False, places=8, min_value=-(10**12), max_value=10**12)
    | st.datetimes(timezones=st.just(UTC)).map(
        lambda value: value.replace(microsecond=value.microsecond // 1000 * 1000, fold=0)
    )
)
keys = text | st.sampled_from(["$set", "a.b", "$x", "$ref", "$id", "$db", "_id", "$", ".", "when", ""])
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4), max_leaves=12
)


def typed(value: Any) -> Any:
    """Return a form of a value that compares the types of all its parts and the order of its keys as well."""
    if type(value) is dict:
        return [(key, typed(item)) for key, item in value.items()]  # pyright: ignore[reportUnknownVariableType]
    if isinstance(value, list):
        return [typed(item) for item in value]  # pyright: ignore[reportUnknownVariableType]
    return repr(value)
