"""Work on large values, which goes to a thread so that the event loop stays free meanwhile."""

import asyncio
from collections.abc import Callable
from typing import ParamSpec, TypeVar

__all__ = ("LARGE", "by_size")

P = ParamSpec("P")
T = TypeVar("T")

LARGE = 256 * 1024
"""How many bytes of BSON are encoded or decoded in the event loop at most."""


async def by_size(size: int, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Do work on so many bytes of BSON: at once, or in a thread if they are many."""
    return await asyncio.to_thread(work, *args, **kwargs) if size > LARGE else work(*args, **kwargs)
