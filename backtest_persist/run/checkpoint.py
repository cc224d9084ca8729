"""Checkpoint: writes of any domains that are stored as a whole or not at all."""

from contextvars import Token
from types import TracebackType

from backtest_persist.backends.services import AtomicBackend
from backtest_persist.connections import uncancelled
from backtest_persist.core.unit_of_work import UnitOfWork, joined_unit
from backtest_persist.errors import SettingsError
from backtest_persist.run.run import unit_over

__all__ = ("Checkpoint",)


class Checkpoint:
    """Stores all that the adapters of a registry write within ``async with persist.checkpoint():``, or nothing.

    It holds for this task and those that are started in the block, and have to end in it. Reads in it see its writes.
    They are stored when the block is left; after an exception nothing is. A checkpoint in another one, or in a bar,
    becomes a part of it. The services of `ioc` take no part.

    Leaving raises what a write may raise: `WriteOutcomeUnknownError` means that all of it is stored or nothing;
    after any other error nothing is.
    """

    def __init__(self, backend: AtomicBackend) -> None:
        self._backend = backend
        self._unit: UnitOfWork | None = None
        self._outer: UnitOfWork | None = None
        self._token: Token[UnitOfWork | None] | None = None

    async def __aenter__(self) -> None:
        if self._unit is not None:
            raise SettingsError("A checkpoint is entered once; call persist.checkpoint() for another one.")
        outer = joined_unit.get()
        if outer is not None and outer.services is self._backend.services and not outer.has_ended:
            self._unit = self._outer = outer
            outer.open_layer()
            return
        self._unit = unit_over(self._backend)
        self._token = joined_unit.set(self._unit)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._outer is not None:
            if error is None:
                self._outer.keep_layer()
            else:
                self._outer.discard_layer()
            return
        assert self._unit is not None
        assert self._token is not None
        joined_unit.reset(self._token)
        unit, layer = self._unit, self._unit.layers[-1]
        unit.end()
        if error is not None or not layer:
            return
        committer = self._backend.committer(None)
        try:
            await committer.commit(layer.parts())
        finally:
            await uncancelled(committer.close)
