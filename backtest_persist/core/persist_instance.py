"""PersistInstance: what the fifteen persist adapters have in common."""

from typing import Any, ClassVar, Generic, TypeVar, cast

from backtest_persist.errors import SettingsError

__all__ = ("PersistInstance",)

S = TypeVar("S")


class PersistInstance(Generic[S]):
    """An adapter that strategy code calls; `S` is what it needs of a container.

    Without an explicit container it uses the process-wide one.
    """

    _bound: ClassVar[Any] = None

    def __init__(self, ioc: S | None) -> None:
        self._ioc = ioc

    @staticmethod
    def bind(container: Any) -> None:
        """Set the container that adapters without one of their own use."""
        PersistInstance._bound = container

    @property
    def _services(self) -> S:
        services = self._ioc if self._ioc is not None else PersistInstance._bound
        if services is None:
            raise SettingsError("This adapter knows no container; import backtest_persist, or pass ioc=container.")
        return cast("S", services)
