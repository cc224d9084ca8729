"""Suite: the base of the capabilities. It names the backend, the place of its store, and the domains under test."""

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import pytest

from backtest_persist.container import Container
from backtest_persist.core.domain import Domain
from backtest_persist.domains import DOMAINS
from backtest_persist.registry import Registry
from backtest_persist.testing.subjects import (
    SUBJECTS,
    Selection,
    Subject,
    is_append_only,
    is_candle_series,
    is_removable,
    is_replacing_list,
    is_value,
    keeps_marks,
    keeps_positions,
)

__all__ = ("Suite", "first_of_each", "for_each", "for_first", "one_of_each_kind", "requires")

F = TypeVar("F", bound=Callable[..., Any])

_CHOICE = "_backtest_persist_choice"
"""The attribute of a test function that picks its subjects from those of a suite."""
_REQUIRED = "_backtest_persist_required"
"""The attribute of a test function that holds the domains without which it is not collected."""


def for_each(selection: Selection = lambda subject: True) -> Callable[[F], F]:
    """Run a test once for each domain of the suite that is selected, as its argument `subject`."""

    def choose(subjects: Sequence[Subject]) -> tuple[Subject, ...]:
        return tuple(filter(selection, subjects))

    return _marked(_CHOICE, choose)


def for_first(*selections: Selection) -> Callable[[F], F]:
    """Run a test for the first domain of the suite that each of the selections has, as its argument `subject`."""

    def choose(subjects: Sequence[Subject]) -> tuple[Subject, ...]:
        return first_of_each(subjects, *selections)

    return _marked(_CHOICE, choose)


def requires(*domains: Domain) -> Callable[[F], F]:
    """Run a test only if the suite has all these domains."""
    return _marked(_REQUIRED, domains)


def first_of_each(subjects: Sequence[Subject], *selections: Selection) -> tuple[Subject, ...]:
    """Return the first subject that each of the selections has."""
    chosen = (next(filter(selection, subjects), None) for selection in selections)
    return tuple(dict.fromkeys(subject for subject in chosen if subject is not None))


def one_of_each_kind(subjects: Sequence[Subject]) -> tuple[Subject, ...]:
    """Return a subject of each kind that is written in its own way."""
    kinds = (is_value, is_append_only, is_removable, is_candle_series, is_replacing_list, keeps_marks, keeps_positions)
    return first_of_each(subjects, *kinds)


def _marked(attribute: str, value: Any) -> Callable[[F], F]:
    """Return a decorator that stores a value on a test: a mark of pytest would have to be registered by every user."""

    def mark(test: F) -> F:
        setattr(test, attribute, value)
        return test

    return mark


class _NotCollected:
    """Takes the place of a test that is about no domain of the suite; pytest passes over it."""


_NOT_COLLECTED = _NotCollected()


class Suite:
    """The base of the capabilities: override `use`, or `open` when the backend has to be set up and closed.

    Another process calls them, too, on another instance, of which pytest knows nothing. They can therefore rely on
    nothing but the place and the environment, and the class has to be at the top level of its module.
    """

    domains: ClassVar[Sequence[Domain]] = DOMAINS
    """The domains under test, such as ``[*DOMAINS, FUNDING]``; a test that is about none of them is not collected."""
    subjects: ClassVar[tuple[Subject, ...]] = SUBJECTS
    """The domains under test, as the tests call them."""
    pytestmark = pytest.mark.asyncio

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Take `domains`, and hide inherited tests that are about none of them."""
        super().__init_subclass__(**kwargs)
        cls.subjects = tuple(map(Subject, cls.domains))
        names = {name for base in cls.__mro__ for name in vars(base) if name.startswith("test_")}
        for name in names - vars(cls).keys():
            inherited = [vars(base)[name] for base in cls.__mro__ if name in vars(base)]
            test = next(found for found in inherited if found is not _NOT_COLLECTED)
            if not cls._is_about(test):
                setattr(cls, name, _NOT_COLLECTED)
            elif inherited[0] is _NOT_COLLECTED:
                setattr(cls, name, test)

    @classmethod
    def _is_about(cls, test: Any) -> bool:
        choice = getattr(test, _CHOICE, None)
        required: tuple[Domain, ...] = getattr(test, _REQUIRED, ())
        return set(required) <= set(cls.domains) and (choice is None or bool(choice(cls.subjects)))

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Run a test for the subjects that it has chosen; pytest calls this when it collects the class."""
        choice = getattr(metafunc.function, _CHOICE, None)
        if choice is not None:
            metafunc.parametrize("subject", choice(self.subjects), ids=str)

    def use(self, persist: Registry, place: Path) -> None:
        """Put the backend whose store is at `place` behind a registry: ``persist.use(my_backend.open(place))``.

        `place` is an empty directory that belongs to the test. It names the store: the same place is the same store,
        also in another process; another place is another store. A backend on a server can derive a database name from
        it.
        """
        raise NotImplementedError(
            f"{type(self).__name__} does not say which backend it tests: "
            "def use(self, persist, place): persist.use(my_backend.open(place))"
        )

    def own_domains(self) -> list[Domain]:
        """Return the domains under test that are not of the package: ``Container(domains=self.own_domains())``."""
        return [domain for domain in self.domains if domain not in DOMAINS]

    @asynccontextmanager
    async def open(self, place: Path) -> AsyncGenerator[Registry]:
        """Yield a registry on the store at `place`, as another program would have it: it shares no adapter with others.

        The tests open one place several times, one after another and at once, and in several event loops.
        """
        container = Container(domains=self.own_domains())
        persist = Registry(container)
        try:
            self.use(persist, place)
            yield persist
        finally:
            await container.close()
