"""What a runner talks to: the registry of adapters, the mode, and `setup`."""

from collections.abc import Mapping
from typing import Any

from backtest_persist.ioc import ioc
from backtest_persist.persist.mode import Mode
from backtest_persist.persist.registry import Registry
from backtest_persist.settings import Settings

__all__ = ("Mode", "Registry", "persist", "setup")

persist = Registry(ioc)


def setup(settings: Settings | Mapping[str, Any] | None = None) -> None:
    """Configure `ioc` (from the environment when `settings` is None) and put MongoDB behind `persist`.

    Does no I/O; call it once at start. A bad setting is a `SettingsError`.
    """
    ioc.configure(settings)
    persist.use_mongo()
