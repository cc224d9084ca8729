"""The series of candles in a dump, found by their directories."""

import os
from collections.abc import Iterator
from pathlib import Path

from backtest_persist.backends.json.atomic import cause_of
from backtest_persist.backends.json.layout import Layout
from backtest_persist.backends.json.names import unescape
from backtest_persist.backends.json.sidecar import parts_of
from backtest_persist.backends.json.value_file import SUFFIX
from backtest_persist.core.candles.ohlcv import INTERVALS
from backtest_persist.errors import StoreUnavailableError

__all__ = ("stored_series",)

_MAX_DEPTH = 12
"""Directories that the framework nests, for a symbol with ``/``, are fewer; a circle of links is more."""


def stored_series(root: Path, layout: Layout) -> set[tuple[str, str, str]]:
    """Return exchange, symbol and interval of each directory of candles; does I/O.

    `StoreUnavailableError` for a directory that cannot be read, `InvalidPayloadError` for a damaged label.
    """
    tree = root / layout.path
    try:
        return {_series(root, tree, names) for names in _leaves(tree, ())}
    except OSError as error:
        raise StoreUnavailableError(f"The series in {tree} cannot be read: {cause_of(error)}.") from None


def _leaves(directory: Path, names: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """Iterate over the directories of series, each as its path below the tree."""
    if len(names) >= 3 and names[-1] in INTERVALS:  # which may hold millions of files
        yield names
        return
    try:
        with os.scandir(directory) as entries:
            found = list(entries)
    except FileNotFoundError:
        return
    below = sorted(entry.name for entry in found if entry.is_dir()) if len(names) < _MAX_DEPTH else []
    for name in below:
        yield from _leaves(directory / name, (*names, name))
    if len(names) >= 3 and any(entry.name.endswith(SUFFIX) for entry in found):  # of an interval that is not known
        yield names


def _series(root: Path, tree: Path, names: tuple[str, ...]) -> tuple[str, str, str]:
    exchange, *symbol, interval = names
    within = tree / exchange
    whole = _name(root, within, symbol[0]) if len(symbol) == 1 else "/".join(map(unescape, symbol))
    return _name(root, tree, exchange), whole, unescape(interval)


def _name(root: Path, directory: Path, name: str) -> str:
    parts = parts_of(root, directory, name) if "%~" in name else None
    return unescape(name) if parts is None else parts[0]
