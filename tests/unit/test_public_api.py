"""The public face: names, errors, docstrings."""

import importlib
import inspect
import pkgutil
from typing import Any

import pytest

import backtest_persist
from backtest_persist import domains, errors

MODULES = [
    name
    for _, name, _ in pkgutil.walk_packages(backtest_persist.__path__, "backtest_persist.")
    if not name.startswith("backtest_persist.cli") and not name.endswith("__main__")
]
DOMAINS = [domain.name for domain in domains.DOMAINS]


def test_the_package_names_what_a_user_types() -> None:
    """Every name in __all__ exists; the registry, the container and four classes of every domain are among them."""
    assert all(hasattr(backtest_persist, name) for name in backtest_persist.__all__)
    names = {"ioc", "persist", "setup", "Mode", "Container", "Settings", "base_map", "embedded", "utc_now"}
    assert names | {"DEFAULT_TTL_EXPIRE_SECONDS", "ITERATOR_BATCH_SIZE"} <= set(backtest_persist.__all__)
    assert (backtest_persist.DEFAULT_TTL_EXPIRE_SECONDS, backtest_persist.ITERATOR_BATCH_SIZE) == (300, 100)
    for domain in DOMAINS:
        title = domain.capitalize()
        assert {f"Persist{title}Instance", f"{title}CacheService", f"{title}DbService", f"{title}Row"} <= set(
            backtest_persist.__all__
        )
        assert hasattr(backtest_persist.ioc, f"{domain}_cache_service")
        assert hasattr(backtest_persist.ioc, f"{domain}_db_service")
        assert hasattr(backtest_persist.persist, domain)


@pytest.mark.parametrize("name", MODULES)
def test_every_module_states_its_names_and_documents_them(name: str) -> None:
    """Each module has a docstring and a tuple __all__ whose classes and functions are documented, methods included."""
    module = importlib.import_module(name)
    assert module.__doc__
    exported: tuple[str, ...] = getattr(module, "__all__", ())
    assert repr(exported).startswith("(")
    for public in exported:
        thing = getattr(module, public)
        if not (inspect.isclass(thing) or inspect.isfunction(thing)):
            continue
        assert inspect.getdoc(thing), f"{name}.{public}"
        for member, value in vars(thing).items() if inspect.isclass(thing) else ():
            if not member.startswith("_") and inspect.isfunction(value) and value.__module__ == name:
                assert value.__doc__, f"{name}.{public}.{member}"


def test_each_cache_service_has_exactly_three_methods_of_its_own() -> None:
    """has, get and set, on a BaseMap without expiry in the namespace of the domain."""
    for domain in DOMAINS:
        service: Any = getattr(backtest_persist, f"{domain.capitalize()}CacheService")
        members: dict[str, Any] = {**service.__dict__}
        own = {name for name, value in members.items() if inspect.isfunction(value)}
        assert own == {f"has_{domain}_id", f"get_{domain}_id", f"set_{domain}_id"}
        assert (service.connection_key, service.ttl_expire_seconds) == (f"{domain}_cache", -1)


def test_every_error_has_one_root() -> None:
    """All errors derive from BacktestPersistError, are exported, and are in the drawing at the top of the module."""
    for name in errors.__all__:
        error = getattr(errors, name)
        assert getattr(backtest_persist, name) is error
        if error is errors.ErrorReason:
            continue
        assert issubclass(error, errors.BacktestPersistError)
        assert errors.__doc__ is not None
        assert name in errors.__doc__


def test_modes_say_whether_state_is_that_of_a_backtest() -> None:
    """Paper and live are backtest=False."""
    assert [mode.backtest for mode in backtest_persist.Mode] == [True, False, False]
    assert backtest_persist.Mode("paper") is backtest_persist.Mode.PAPER
