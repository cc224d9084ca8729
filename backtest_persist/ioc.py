"""The process-wide container: the only global state of the package."""

from backtest_persist.container import Container
from backtest_persist.core.base_map import BaseMap
from backtest_persist.core.persist_instance import PersistInstance

__all__ = ("ioc",)

ioc = Container()
BaseMap.bind(ioc.redis_service)
PersistInstance.bind(ioc)
