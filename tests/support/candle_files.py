"""Files of candles as programs and exchanges write them, and series of them of any length."""

from collections.abc import Iterator
from pathlib import Path

__all__ = ("FILES", "MINUTE", "START", "kline", "write_klines")

FILES = Path(__file__).parent / "data" / "candles"
"""A file of each layout, with a few rows."""
START, MINUTE = 1_704_067_200_000, 60_000
"""2024-01-01 in ms UTC."""


def kline(number: int, *, factor: int = 1) -> str:
    """Return a line of klines as Binance writes it, whose times are in ms, or finer by a factor."""
    opened = (START + number * MINUTE) * factor
    closed = opened + MINUTE * factor - 1
    close = 42_000 + number % 1000 / 100
    return f"{opened},42000.00000000,42100.50000000,41900.10000000,{close:.8f},12.34567000,{closed},1.0,5,1.0,1.0,0\n"


def write_klines(file: Path, count: int, *, first: int = 0) -> Path:
    """Write so many consecutive klines of a minute; returns the file."""

    def lines() -> Iterator[str]:
        return (kline(number) for number in range(first, first + count))

    with file.open("w") as stream:
        stream.writelines(lines())
    return file
