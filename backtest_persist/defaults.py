"""The process-wide container, its registry, and `setup`: all global state of the package is here."""

from collections.abc import Mapping
from typing import Any

from backtest_persist.container import Container
from backtest_persist.core.base_map import BaseMap
from backtest_persist.core.persist_instance import PersistInstance
from backtest_persist.registry import Registry
from backtest_persist.settings import Settings

__all__ = ("ioc", "persist", "setup")

ioc = Container()
BaseMap.bind(ioc.redis_service)
PersistInstance.bind(ioc)
Registry.bind(ioc)
persist = Registry(ioc)


def setup(settings: Settings | Mapping[str, Any] | None = None) -> None:
    """Configure `ioc` (from the environment when `settings` is None) and put MongoDB behind `persist`.

    Does no I/O; call it once at start. A bad setting is a `SettingsError`.
    """
    ioc.configure(settings)
    persist.use_mongo()
