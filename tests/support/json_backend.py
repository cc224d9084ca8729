"""Registries on a directory, candles to write there, and what the JSON backend leaves in it."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from backtest_persist import Registry

__all__ = (
    "CANDLE",
    "EARLY",
    "LATE",
    "candles_from_start",
    "collect",
    "open_dump",
    "temporary_files",
)

EARLY, LATE = 1_600_000_000_000, 1_700_000_000_000
CANDLE = {"timestamp": 1_600_000_020_000, "open": 10.0, "high": 12.5, "low": 9.0, "close": 11.0, "volume": 100.0}


def open_dump(directory: Path) -> Registry:
    """Return a new registry on the JSON backend, as another process would have it."""
    registry = Registry()
    registry.use_json(directory)
    return registry


def candles_from_start(count: int) -> list[dict[str, Any]]:
    """Return consecutive candles of a minute, from the time of `CANDLE` on."""
    return [{**CANDLE, "timestamp": CANDLE["timestamp"] + n * 60_000} for n in range(count)]


async def collect(items: AsyncIterator[Any]) -> list[Any]:
    """Return all items of an iterator."""
    return [item async for item in items]


def temporary_files(directory: Path) -> list[Path]:
    """List the temporary files anywhere below a directory."""
    return list(directory.rglob(".tmp-*"))
