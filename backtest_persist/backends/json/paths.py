"""The directory of a context: where this package keeps its values, and where the TypeScript framework does.

A directory name joined from parts that contain ``_`` may also be that of another context. The context that writes first
owns it, which a label says; others use a stricter name. The framework nests directories for names with ``/``, which
this package percent-encodes; what it has stored there is read until this package stores a value under that name.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from backtest_persist.backends.json.atomic import make_directory
from backtest_persist.backends.json.layout import Layout, Segment
from backtest_persist.backends.json.names import escape, nested, shorten, unescape
from backtest_persist.backends.json.sidecar import claim_name, parts_of
from backtest_persist.backends.json.value_file import SUFFIX
from backtest_persist.errors import SettingsError

__all__ = ("ContextPaths", "value_stem")


class ContextPaths:
    """Finds the directories of one context; does I/O. `InvalidKeyError` for a part that is no key component."""

    def __init__(self, root: Path, layout: Layout, context: Mapping[str, Any]) -> None:
        self._root = root
        self._tree = root / layout.path
        self._segments = tuple(layout.folder(context))
        self._claimed: Path | None = None

    def directory(self) -> Path:
        """The directory in which the values of this context are, or would be."""
        return self._resolve(claim=False) if self._claimed is None else self._claimed

    def claim(self) -> Path:
        """Make that directory, and keep all other contexts out of it."""
        if self._claimed is None or not self._claimed.is_dir():
            directory = self._resolve(claim=True)
            make_directory(directory)
            self._check_case()
            self._claimed = directory
        return self._claimed

    def parents(self, directory: Path) -> list[Path]:
        """The directories above that of this context that belong to its domain, innermost first."""
        return list(directory.parents)[: len(directory.relative_to(self._tree).parts)]

    def owns(self, directory: Path, segment: Segment, *, claim: bool) -> bool:
        """Whether the plain name of a segment belongs to its parts, or to nobody yet; `claim` makes it belong to them.

        `InvalidPayloadError` when its label is damaged.
        """
        owner = parts_of(self._root, directory, segment.plain)
        if owner is None and claim:
            owner = claim_name(self._root, directory, segment.plain, list(segment.parts))
        return owner is None or owner == list(segment.parts)

    def label(self, directory: Path, name: str) -> None:
        """Write down the name of a value if it cannot be read from that of its file."""
        if "%~" in value_stem(name):
            self.owns(directory, Segment((name,), ambiguous=False), claim=True)

    def name(self, directory: Path, stem: str) -> str:
        """The name of the value in a file."""
        parts = parts_of(self._root, directory, stem) if "%~" in stem else None
        return unescape(stem) if parts is None else parts[0]

    def framework_file(self, directory: Path, name: str) -> Path | None:
        """The file in which the framework has stored a name that it nests; None when there is none."""
        nested_path = self._nested(directory, name)
        file = None if nested_path is None else nested_path.with_name(f"{nested_path.name}{SUFFIX}")
        return None if file is None or not file.is_file() else file

    def framework_directory(self, directory: Path) -> Path | None:
        """The directory in which the framework keeps a context that it nests; None when there is none."""
        nested_path = self._nested(directory)
        return None if nested_path is None or not nested_path.is_dir() else nested_path

    def _resolve(self, *, claim: bool) -> Path:
        directory = self._tree
        for segment in self._segments:
            plain = not segment.labelled or self.owns(directory, segment, claim=claim)
            directory /= segment.plain if plain else segment.strict
        return directory

    def _nested(self, directory: Path, *names: str) -> Path | None:
        """The path that the framework gives this context, or a name in it, if it nests them.

        None if it does not, or if `directory` has the stricter name, since what is nested belongs to the plain one.
        """
        steps = nested([*("_".join(segment.parts) for segment in self._segments), *names])
        if not steps or directory != self._tree.joinpath(*(segment.plain for segment in self._segments)):
            return None
        return self._tree.joinpath(*steps)

    def _check_case(self) -> None:
        """Refuse a file system on which names that differ in case alone would share a file."""
        other = self._root / str(self._tree.relative_to(self._root)).upper()
        if other.exists() and other.samefile(self._tree):
            raise SettingsError(
                f"The file system of {self._root} does not tell upper and lower case apart, so two names could share "
                "a file. Choose a directory on a file system that does."
            )


def value_stem(name: str) -> str:
    """Return the stem of the file of a value."""
    return shorten(escape(name))
