"""Helpers for the tests of the JSON backend: registries on a directory, candles, and programs in other processes."""

import asyncio
import sys
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
    "run_program",
    "start_program",
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


async def start_program(code: str, *arguments: object, **options: Any) -> asyncio.subprocess.Process:
    """Start a Python program in which this package can be imported."""
    root = Path(__file__).parents[2]
    return await asyncio.create_subprocess_exec(sys.executable, "-c", code, *map(str, arguments), cwd=root, **options)


async def run_program(code: str, *arguments: object) -> None:
    """Run such a program to its end, which has to come within a minute, without an error."""
    process = await start_program(code, *arguments)
    async with asyncio.timeout(60):
        assert await process.wait() == 0
