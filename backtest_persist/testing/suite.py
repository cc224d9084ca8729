"""What every capability builds on: which backend stands behind the registry of a test, and where its store is."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from backtest_persist.registry import Registry

__all__ = ("Suite",)


class Suite:
    """The base of the capabilities: override `use`, or `open` when the backend has to be set up and closed.

    Another process calls them, too, on an instance of its own that pytest knows nothing of. They can therefore rely on
    nothing but the place and the environment, and the class has to stand at the top level of its module.
    """

    pytestmark = pytest.mark.asyncio

    def use(self, persist: Registry, place: Path) -> None:
        """Put the backend whose store is at `place` behind a registry: ``persist.use(my_backend.open(place))``.

        `place` is an empty directory of the test's own. It names the store: the same place is the same store, also in
        another process; another place is another one. A backend on a server can derive a database name from it.
        """
        raise NotImplementedError(
            f"{type(self).__name__} does not say which backend it tests: "
            "def use(self, persist, place): persist.use(my_backend.open(place))"
        )

    @asynccontextmanager
    async def open(self, place: Path) -> AsyncGenerator[Registry]:
        """A registry on the store at `place`, as another program would have it: it shares no instance with others.

        The tests open one place several times, one after another and at once, and in several event loops.
        """
        persist = Registry()
        self.use(persist, place)
        yield persist
