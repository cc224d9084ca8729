"""Mode: how a strategy runs."""

from enum import StrEnum

__all__ = ("Mode",)


class Mode(StrEnum):
    """How a strategy runs; paper and live keep their state apart from backtests."""

    BACKTEST = "backtest"
    PAPER = "paper"
    LIVE = "live"

    @property
    def backtest(self) -> bool:
        """The `backtest` argument of the domains that are kept per mode."""
        return self is Mode.BACKTEST
