"""Dumps: one that the TypeScript framework wrote, and functions that write and read dumps."""

import json
from collections.abc import Mapping
from pathlib import Path

__all__ = ("ORIGINAL", "ORIGINAL_WHEN", "files_of", "write_dump")

ORIGINAL: Mapping[str, str] = json.loads(
    (Path(__file__).parent / "data" / "backtest-kit-19.5.0-dump.json").read_text(encoding="utf-8")
)
"""Path -> text, as the file-based classes of backtest-kit 19.5.0 wrote them; unchanged since."""

ORIGINAL_WHEN = 1_700_000_000_000
"""The `when` of every write in `ORIGINAL`."""


def write_dump(root: Path, files: Mapping[str, str]) -> None:
    """Write a dump to a directory."""
    for path, text in files.items():
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")


def files_of(root: Path, *, hidden: bool = False) -> dict[str, str]:
    """Read a dump as path -> text, without its hidden tree unless `hidden`."""
    return {
        str(file.relative_to(root)): file.read_text(encoding="utf-8")
        for file in sorted(root.rglob("*"))
        if file.is_file() and (hidden or not str(file.relative_to(root)).startswith("."))
    }
