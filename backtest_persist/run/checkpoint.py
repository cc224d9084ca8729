"""Checkpoint: writes of any domains that are stored as a whole or not at all."""

from contextlib import suppress
from contextvars import Token
from types import TracebackType

from backtest_persist.backends.services import AtomicBackend
from backtest_persist.connections import uncancelled
from backtest_persist.core.unit_of_work import Layer, UnitOfWork, join, joined_layer, joined_unit, leave
from backtest_persist.errors import SettingsError
from backtest_persist.run.candles import report_candles, unit_over

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
        self._joined: Token[tuple[UnitOfWork, ...]] | None = None
        self._inner: Layer | None = None
        """The block in an outer unit that this is."""
        self._outer: Token[Layer | None] | None = None

    async def __aenter__(self) -> None:
        if self._unit is not None:
            raise SettingsError("A checkpoint is entered once; call persist.checkpoint() for another one.")
        outer = joined_unit(self._backend.services)
        if outer is not None and outer.is_open and not outer.has_ended:
            self._inner, self._unit = outer.inner_layer(), outer
            self._outer = joined_layer.set(self._inner)
        else:
            self._unit = unit_over(self._backend)
            self._joined = join(self._unit)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._unit is not None
        if self._inner is not None:
            self._end_block(self._unit, self._inner, error)
            return
        if self._joined is not None:
            leave(self._joined)
        self._unit.end()
        layer = self._unit.take_layer()
        parts = layer.parts()
        if error is not None or not parts:
            return
        committer = self._backend.committer(None)
        try:
            await committer.commit(parts)
        finally:
            await uncancelled(committer.close)
        await report_candles(self._unit, layer)

    def _end_block(self, unit: UnitOfWork, layer: Layer, error: BaseException | None) -> None:
        if self._outer is not None:
            with suppress(ValueError):  # the block was left in another context than it was entered
                joined_layer.reset(self._outer)
        if error is None:
            unit.keep_layer(layer)
        else:
            unit.discard_layer(layer)
