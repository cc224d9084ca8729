"""The search for the values of a dump: which file holds which context, of which domain.

A dump of the TypeScript framework joins names with ``_`` and does not record where one ends. When a directory can be
read in several ways, all of them are returned, the most probable first: a strategy or a risk profile may contain ``_``,
the names around it do not.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

from backtest_persist.backends.json.atomic import TEMPORARY
from backtest_persist.backends.json.layout import Layout
from backtest_persist.backends.json.names import unescape
from backtest_persist.backends.json.sidecar import HIDDEN, parts_of
from backtest_persist.backends.json.value_file import SUFFIX
from backtest_persist.domains.candle import CANDLE
from backtest_persist.errors import BacktestPersistError, InvalidPayloadError
from backtest_persist.operations.transfer.report import Skipped
from backtest_persist.operations.transfer.series_files import SERIES_LAYOUT, SeriesFile, month_of_file

__all__ = ("Found", "Scan", "scan")

Context = dict[str, Any]

_UNREADABLE = (BacktestPersistError, OSError)


@dataclass(frozen=True)
class Found:
    """A file that holds a value."""

    domain: str
    contexts: tuple[Context, ...]
    """The possible contexts of the value, the most probable first."""
    path: Path
    stem: str


@dataclass
class Scan:
    """The result of a scan; `found` and `skipped` have an entry for each domain."""

    found: dict[str, list[Found]]
    """The values of each domain."""
    skipped: dict[str, list[Skipped]]
    """The files among the values of a domain that are not values."""
    series: list[SeriesFile] = field(default_factory=list[SeriesFile])
    """The series files, by series and month."""
    ignored: dict[str, int] = field(default_factory=dict[str, int])
    """The top-level directories that hold no persisted data, and the number of files in each."""


def scan(root: Path, layouts: Mapping[str, Layout]) -> Scan:
    """Walk a dump whose domains have these layouts; does I/O, reads no value.

    `OSError` when the directory itself, or its ``data``, cannot be read.
    """
    result = Scan({domain: [] for domain in layouts}, {domain: [] for domain in layouts})
    for domain, layout in layouts.items():
        problems: list[tuple[Path, str]] = []
        for path, names in _walk(root.joinpath(*_tree(layout)), problems):
            stems = [name.removesuffix(SUFFIX) for name in names]
            for name, stem, contexts in zip(names, stems, _contexts(root, layout, path, stems), strict=True):
                value = _rejection(name) or contexts or f"the {domain} domain has no value at such a path"
                if isinstance(value, str):
                    problems.append((path / name, value))
                else:
                    result.found[domain].append(Found(domain, value, path, stem))
        result.skipped[domain] = [Skipped(str(path.relative_to(root)), reason) for path, reason in problems]
    trees = {(HIDDEN,), *map(_tree, layouts.values())}
    if CANDLE.name in layouts:
        trees.add(_tree(SERIES_LAYOUT))
        _scan_series(root, result)
    for top in sorted(root.iterdir()):
        for below in sorted(top.iterdir()) if top.name == "data" else [top]:
            parts = below.relative_to(root).parts
            if parts not in trees and (count := sum(len(names) for _, names in _walk(below, []))):
                result.ignored["/".join(parts)] = count
    return result


def _scan_series(root: Path, result: Scan) -> None:
    """Find the series files."""
    tree, problems = root / SERIES_LAYOUT.path, list[tuple[Path, str]]()
    for path, names in _walk(tree, problems):
        directories = path.relative_to(tree).parts if path.is_relative_to(tree) else ()
        try:
            labels = [parts_of(root, parent, name) for parent, name in _steps(tree, directories)]
            series, problem = _readings(SERIES_LAYOUT, directories, labels), "no series has such a path"
        except _UNREADABLE as error:
            series, problem = [], str(error)
        for name in names:
            month = month_of_file(name)
            if reason := _leftover(name) or ("" if month else "not a series file, such as 2024-01.ndjson.gz"):
                problems.append((path / name, reason))
            elif month and series:
                result.series.append(SeriesFile(path / name, month, **series[0]))
            else:
                problems.append((path / name, problem))
    result.skipped[CANDLE.name] += [Skipped(str(path.relative_to(root)), reason) for path, reason in problems]


def _tree(layout: Layout) -> tuple[str, ...]:
    """Return the directory that no other domain shares."""
    return tuple(layout.path.split("/")[:2])


def _rejection(name: str) -> str:
    """Return the reason why a file of this name is not a value; "" when it can be one."""
    if reason := _leftover(name):
        return reason
    try:
        name.encode()
    except UnicodeEncodeError:
        return "its name is not UTF-8"
    return "" if name.endswith(SUFFIX) else "not a JSON file"


def _leftover(name: str) -> str:
    return "the leftover of a write that was interrupted" if name.startswith(TEMPORARY) else ""


def _walk(path: Path, problems: list[tuple[Path, str]]) -> Iterator[tuple[Path, list[str]]]:
    """Iterate over directories and the names of their files, following links; adds what is unreadable to `problems`."""

    def failed(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError) or os.path.islink(error.filename):
            problems.append((Path(error.filename), f"cannot be read: {error.strerror}"))

    if os.path.isfile(path):
        yield path.parent, [path.name]
        return
    for directory, directories, names in os.walk(path, onerror=failed, followlinks=True):
        here = Path(directory)
        loops = {name for name in directories if _is_loop(here / name)}
        problems += [(here / name, "a link to a directory that contains it") for name in sorted(loops)]
        directories[:] = sorted({*directories} - loops)
        yield here, sorted(names)


def _is_loop(directory: Path) -> bool:
    return directory.is_symlink() and any(map(directory.samefile, directory.absolute().parents))


def _contexts(root: Path, layout: Layout, path: Path, stems: Sequence[str]) -> Iterator[tuple[Context, ...] | str]:
    """Iterate over the possible contexts of each file of a directory, or the reason why they are unknown."""
    tree = root / layout.path
    inside = path.is_relative_to(tree)
    directories = list(path.relative_to(tree).parts) if inside else []
    regular = len(directories) == len(layout.directories)
    try:
        labels = [parts_of(root, parent, name) for parent, name in _steps(tree, directories)]
        of_directory = _readings(layout, directories, labels) if regular else []
    except _UNREADABLE as error:
        yield from [str(error)] * len(stems)
        return
    for stem in stems:
        try:
            label = parts_of(root, path, stem) if "%~" in stem else None
        except _UNREADABLE as error:
            yield str(error)
            continue
        name = label[0] if label else unescape(stem)
        readings = of_directory
        if inside and not regular:
            shape, name = _unnested(layout, directories, name)
            same = shape[: len(directories)] == directories
            known = [*labels, *[None] * (len(shape) - len(directories))] if same else [None] * len(shape)
            readings = _readings(layout, shape, known)
        file = layout.parse_name(name) if inside else None
        yield (
            ()
            if file is None
            else tuple(
                {**context, **file}
                for context in readings
                if all(context.get(field, value) == value for field, value in file.items())
            )
        )


def _readings(layout: Layout, directories: Sequence[str], labels: Sequence[list[str] | None]) -> list[Context]:
    """Return the contexts that these directories can name, the most probable first."""
    if len(directories) != len(layout.directories):
        return []
    contexts: list[Context] = [{}]
    for fields, segment, parts in zip(layout.directories, directories, labels, strict=True):
        options = list(_splits(layout, fields, segment)) if parts is None else [_labelled(layout, fields, parts)]
        contexts = [{**context, **option} for context in contexts for option in options]
    return contexts


def _steps(tree: Path, directories: Sequence[str]) -> Iterator[tuple[Path, str]]:
    for name in directories:
        yield tree, name
        tree /= name


def _unnested(layout: Layout, directories: Sequence[str], name: str) -> tuple[list[str], str]:
    """Undo the directories that an empty frame removes and a ``/`` in a symbol adds in the TypeScript framework."""
    wanted, fields = len(layout.directories), [field for group in layout.directories for field in group]
    shape = list(directories)
    if len(shape) == wanted - 1 and fields[-1:] == ["frame_name"]:
        return [*shape, ""], name
    if len(shape) < wanted or not wanted:
        return shape, name
    if layout.path == "session":
        return shape[:wanted], "/".join([*shape[wanted:], name])
    if layout.file == ("timestamp",):
        return [shape[0], "/".join(shape[1:-1]), shape[-1]], name
    if wanted == 1 and layout.file == ("symbol",):
        steps = [*shape, name]
        for cut in range(1, len(steps)):
            joined, symbol = "/".join(steps[:cut]), "/".join(steps[cut:])
            if joined.startswith(f"{symbol}_"):
                return [joined], symbol
    elif wanted == 1 and len(fields) > 1:
        return ["/".join(shape)], name
    return shape, name


def _labelled(layout: Layout, fields: Sequence[str], parts: list[str]) -> Context:
    if len(parts) < len(fields) and "frame_name" in fields:
        at = fields.index("frame_name")
        parts = [*parts[:at], "", *parts[at:]]
    context = {field: layout.parse(field, part) for field, part in zip(fields, parts, strict=False)}
    if len(parts) != len(fields) or None in context.values():
        raise InvalidPayloadError(f"the names of its directory, kept in {HIDDEN}, are damaged")
    return context


def _splits(layout: Layout, fields: Sequence[str], segment: str) -> Iterator[Context]:
    """Iterate over the readings of a joined name, the most probable first."""
    if len(fields) == 1:
        value = layout.parse(fields[0], unescape(segment))
        if value is not None:
            yield {fields[0]: value}
        return
    names, parts, flags = list(fields), segment.split("_"), Context()
    for end in (-1, 0):  # a flag is one word
        while names and parts and layout.is_flag(names[end]):
            name = names.pop(end)
            flags[name] = layout.parse(name, parts.pop(end))
    if None in flags.values() or bool(names) != bool(parts):
        return
    if "frame_name" in names and len(names) > 1 and (len(parts) < len(names) or not flags.get("backtest", True)):
        # the TypeScript framework leaves an empty frame out, and its live trading has none
        frameless = [name for name in names if name != "frame_name"]
        yield from _cuts(layout, frameless, parts, {**flags, "frame_name": ""})
    if names:
        yield from _cuts(layout, names, parts, flags)
    else:
        yield flags


def _cuts(layout: Layout, fields: Sequence[str], parts: Sequence[str], known: Context) -> Iterator[Context]:
    found: list[tuple[int, Context]] = []
    for cuts in combinations(range(1, len(parts)), len(fields) - 1):
        bounds = [0, *cuts, len(parts)]
        groups = [parts[start:end] for start, end in pairwise(bounds)]
        names = [unescape("_".join(group)) for group in groups]
        context = {field: layout.parse(field, name) for field, name in zip(fields, names, strict=True)}
        if all(names) and None not in context.values():
            wide = sum(
                len(group) - 1
                for field, group in zip(fields, groups, strict=True)
                if field not in ("strategy_name", "risk_name")
            )
            found.append((wide, {**context, **known}))
    yield from (context for _, context in sorted(found, key=lambda option: option[0]))
