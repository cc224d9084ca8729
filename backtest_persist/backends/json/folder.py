"""The files of a dump: every value in a file of its own, replaced atomically, and beside it what JSON has no place for.

A value is written to a temporary file, flushed to the disk and renamed, so a reader sees the old or the new one, and a
crash leaves at most a temporary file, which the next `Folder.sweep` removes. The files hold what the TypeScript
framework writes, and nothing else. Those that it has for names with ``/``, which it makes directories of, are read as
long as there are none of ours. What it does not keep lies in the hidden tree ``.backtest-persist``, mirrored:

``records/``
    The `when` of a value, and when it was first written if that is no longer the time of its file. A record names its
    value by a digest. It is written before its value and keeps the record of the value that stands, so that at every
    instant the value in the file has its record; a file that somebody else wrote has none.
``labels/``
    The parts of a name that does not tell them: one joined from parts that hold ``_``, or shortened. The first writer
    of such a directory owns it; other parts that would give the same name get a stricter one.
"""

import asyncio
import errno
import math
import os
import re
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from hashlib import blake2b
from itertools import count
from pathlib import Path
from typing import Annotated, Any, TypeVar, cast

from anyio.to_thread import run_sync
from pydantic import Field, TypeAdapter

from backtest_persist.backends.json import codec
from backtest_persist.backends.json.layout import LAYOUTS, Layout, Segment
from backtest_persist.backends.json.names import escape, nested, unescape
from backtest_persist.contracts import When
from backtest_persist.core.row import to_millis
from backtest_persist.errors import (
    InvalidPayloadError,
    InvalidWhenError,
    SettingsError,
    StoreUnavailableError,
    WriteOutcomeUnknownError,
    WriteRejectedError,
)

__all__ = (
    "HIDDEN",
    "SUFFIX",
    "TEMPORARY",
    "DumpFiles",
    "Folder",
    "Stored",
    "Write",
    "load",
    "members",
    "natural",
    "parts_of",
)

HIDDEN = ".backtest-persist"
SUFFIX = ".json"
TEMPORARY = ".tmp-"
_FOREIGN_LEFTOVER_SECONDS = 120
"""The age at which the original removes its own temporary files."""
_LOCK_SECONDS = 5.0
_REST_SECONDS = 1.0
_LOOK_SECONDS = 0.002
"""How often a writer looks whether a directory is free."""
_AT_ONCE = 100
"""How many values of one call are written before others get their turn."""
_TICK_NS = 1000
"""Entries of one call are told apart by 1 us, which common file systems keep."""

T = TypeVar("T")

_PARTS = TypeAdapter(Annotated[list[str], Field(min_length=1)])
_RECORDS = TypeAdapter(dict[str, dict[str, int]])


@dataclass(frozen=True)
class Stored:
    """A value as it was found."""

    value: Any
    removed: bool
    """Whether it is a tombstone."""
    when: int
    """Since when it is known, in simulation time (ms UTC); 0 when nothing says it: it was always known."""
    created: int
    """When it was first written, in ns since the epoch."""


@dataclass(frozen=True)
class Write:
    """A value to be stored under a name."""

    name: str
    text: bytes
    when: int | None = None
    created: int | None = None
    """When it was first written, in ns since the epoch; None for now."""


class DumpFiles:
    """A dump directory.

    All writes of a process go through one thread, in the order in which they were handed to it, so a cancelled
    write cannot land after a later one. Other processes are kept out by a lock on the directory that is written to.
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        if "\0" in str(root):
            raise SettingsError("The name of a directory holds no zero character.")
        self.root = Path(root).absolute()
        self.tick = 0
        self._thread: ThreadPoolExecutor | None = None
        self._pid = 0

    def folder(self, domain: str, **context: Any) -> "Folder":
        """The directory of a context; `InvalidKeyError` for a part that is no key component."""
        return Folder(self, domain, context)

    async def write(self, work: Callable[[], T]) -> T:
        """Run `work` in the writing thread, after what was handed to it before."""
        if self._thread is None or self._pid != os.getpid():  # a fork has no threads
            self._thread, self._pid = ThreadPoolExecutor(1, "backtest-persist-dump"), os.getpid()
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)


class Folder:
    """The directory of one context; its methods take names as they are, and do their I/O in threads."""

    def __init__(self, dump: DumpFiles, domain: str, context: Mapping[str, Any]) -> None:
        self._dump = dump
        self._layout = LAYOUTS[domain]
        self._segments = tuple(self._layout.folder(context))
        self._what = f"{domain} ({', '.join(f'{field}={value!r:.80}' for field, value in context.items())})"
        self._claimed: Path | None = None
        self._turns: dict[asyncio.AbstractEventLoop, asyncio.Lock] = {}

    def describe(self, name: str = "") -> str:
        """The domain and the context, for a message."""
        return f"{self._what}, {name!r:.80}" if name else self._what

    # --- reading ---

    async def read(self, name: str) -> Stored | None:
        """The value of a name, or None. `InvalidPayloadError` for a damaged file."""
        return await run_sync(partial(self._read, _segment(name)))

    async def read_window(self, names: Iterable[str]) -> list[Any] | None:
        """The values of all these names, or None when any is missing."""
        return await run_sync(self._read_window, names)

    async def read_all(self) -> list[tuple[str, Stored]]:
        """(name, value) of the whole directory, oldest first."""
        return await run_sync(self._read_all)

    # --- writing ---

    async def sweep(self) -> None:
        """Remove what a crash has left in this directory; nothing else changes."""
        async with self._turn():
            await self._dump.write(self._sweep)

    async def write(self, writes: Sequence[Write], *, replace: bool = True, flush: bool = True) -> int:
        """Store values, in order; without `replace` the first write wins. Returns how many were new.

        Between many of them others get their turn, in this process and in others; a cancelled call ends with the part
        that is under way. Without `flush` they are on the disk only after a `sync` of the caller's own.

        Raises `WriteRejectedError` when the file system refuses, `StoreUnavailableError` when another process does not
        let go of the directory, and `WriteOutcomeUnknownError` for either when a part may have been stored.
        """
        new = 0
        async with self._turn():
            for at in range(0, len(writes), _AT_ONCE):
                if at and flush:
                    await asyncio.sleep(2 * _LOOK_SECONDS)  # else nobody who looks would ever find it free
                part = writes[at : at + _AT_ONCE]
                new += await self._dump.write(partial(self._write, part, replace, flush, at))
        return new

    async def remove(self, name: str) -> None:
        """Turn the value of a name into a tombstone; nothing happens when there is none."""
        async with self._turn():
            await self._dump.write(partial(self._remove, _segment(name)))

    def _turn(self) -> asyncio.Lock:
        """Held while a call writes, so that the next one of this loop does not get in between its parts."""
        loop = asyncio.get_running_loop()
        if loop not in self._turns:
            for other in [other for other in list(self._turns) if other.is_closed()]:
                self._turns.pop(other, None)
            self._turns[loop] = asyncio.Lock()
        return self._turns[loop]

    # --- in a thread ---

    def _read(self, segment: Segment) -> Stored | None:
        with self._reading():
            return self._load(self._path(), segment)

    def _read_window(self, names: Iterable[str]) -> list[Any] | None:
        with self._reading():
            path = self._path()
            values: list[Any] = []
            for name in names:
                file = path / f"{escape(name)}{SUFFIX}"
                text = _text(file)
                if text is None and (theirs := self._theirs(path, name)) is not None:
                    file, text = theirs, _text(theirs)
                if text is None:
                    return None
                values.append(_parse(text, file, self._layout)[0])
            return values

    def _read_all(self) -> list[tuple[str, Stored]]:
        found: list[tuple[str, Stored]] = []
        with self._reading():
            path = self._path()
            theirs = self._nested(path)
            for directory in [path] if theirs is None or not theirs.is_dir() else [path, theirs]:
                ours = {name for name, _ in found}
                for file in _json_files(directory):
                    stem = file.removesuffix(SUFFIX)
                    name = self._name(directory, stem)
                    stored = None if name in ours else load(self._dump.root, self._layout, directory, stem)
                    if stored is not None:
                        found.append((name, stored))
        return sorted(found, key=lambda entry: (entry[1].created, natural(entry[0])))

    def _load(self, path: Path, segment: Segment) -> Stored | None:
        """The value of our file, or else of the original's."""
        stored = load(self._dump.root, self._layout, path, segment.plain)
        if stored is None and (theirs := self._theirs(path, segment.parts[0])) is not None:
            return load(self._dump.root, self._layout, theirs.parent, theirs.name.removesuffix(SUFFIX))
        return stored

    def _write(self, writes: Sequence[Write], replace: bool, flush: bool, stored: int = 0) -> int:
        new = 0
        with self._writing(lambda: stored > 0) as (path, descriptor):
            for write in writes:
                segment = _segment(write.name)
                if segment.labelled:
                    self._label(path, segment)
                outcome = self._put(path, segment, write, replace, flush)
                stored += outcome is not None
                new += outcome is True
            if flush:
                os.fsync(descriptor)
        return new

    def _put(self, path: Path, segment: Segment, write: Write, replace: bool = True, flush: bool = True) -> bool | None:
        """Whether the value was new; None when nothing was to be done."""
        file, records = path / f"{segment.plain}{SUFFIX}", self._hidden("records", path, segment.plain)
        old = _text(file)
        before = self._theirs(path, segment.parts[0]) if old is None else file
        if before is not None and not replace:
            return None
        known = _load_records(records)
        fields: dict[str, int] = {} if write.when is None else {"when": write.when}
        standing = {} if old is None else known.get(_digest(old), {})
        kept = {} if old is None else {_digest(old): standing}
        if before is not None and self._layout.ordered:
            fields["created"] = standing.get("created", before.stat().st_mtime_ns)
        wanted = {**kept, _digest(write.text): fields}
        wanted = {digest: record for digest, record in wanted.items() if record}
        if wanted != known and (wanted or known):
            _make(records.parent, flush=flush)
            _replace(records, codec.dumps(wanted), flush=flush)
            if flush:
                _flush(records.parent)
        if old == write.text:
            return False
        self._dump.tick = max(self._dump.tick + _TICK_NS, time.time_ns() // _TICK_NS * _TICK_NS)
        _replace(file, write.text, self._dump.tick if write.created is None else write.created, flush=flush)
        return before is None

    def _remove(self, segment: Segment) -> None:
        with self._errors(lambda: False):
            path = self._path()
            if not path.is_dir() and self._theirs(path, segment.parts[0]) is None:
                return
        stored = False
        with self._writing(lambda: stored) as (path, descriptor):
            standing = self._load(path, segment)
            if standing is None or standing.removed:
                return
            text = codec.tombstone(standing.value)
            self._put(path, segment, Write("", text, standing.when if self._layout.timed else None))
            stored = True
            os.fsync(descriptor)

    def _sweep(self) -> None:
        with self._errors(lambda: False):
            path = self._path()
            if not path.is_dir():
                return
            mirrors = [self._hidden(kind, path, "").parent for kind in ("records", "labels")]
            tree = len(path.relative_to(self._dump.root / self._layout.path).parts)
            above = [self._hidden("labels", parent, "").parent for parent in list(path.parents)[:tree]]
            _unlink(file for directory in above for file in _leftovers(directory, locked=False))
            if not any(any(_leftovers(directory)) for directory in (path, *mirrors)):
                return
            with suppress(TimeoutError), _locked(path, wait=False):  # who writes there is no crash
                _unlink(file for directory in (path, *mirrors) for file in _leftovers(directory))

    # --- paths ---

    def _path(self, *, claim: bool = False) -> Path:
        """The directory of this context; with `claim` it is made, and no other context will take it."""
        if self._claimed is not None and (not claim or self._claimed.is_dir()):
            return self._claimed
        path = self._dump.root / self._layout.path
        for segment in self._segments:
            owned = not segment.labelled or self._label(path, segment, claim=claim)
            path /= segment.plain if owned else segment.strict
        if claim:
            _make(path)
            self._check_case()
            self._claimed = path
        return path

    def _check_case(self) -> None:
        """Refuse a file system on which two names would share a file."""
        tree, other = self._dump.root / self._layout.path, self._dump.root / self._layout.path.upper()
        if other.exists() and other.samefile(tree):
            raise SettingsError(
                f"The file system of {self._dump.root} does not tell upper and lower case apart, so two names would "
                f"share a file. Choose a directory on one that does."
            )

    def _label(self, path: Path, segment: Segment, *, claim: bool = True) -> bool:
        """Whether the plain name belongs to these parts, or to nobody yet; `claim` settles it."""
        root, label = self._dump.root, self._hidden("labels", path, segment.plain)
        owner = parts_of(root, path, segment.plain)
        if owner is None and claim:
            _make(label.parent)
            _replace(label, codec.dumps(list(segment.parts)), keep=True)
            _flush(label.parent)
            owner = parts_of(root, path, segment.plain)
        return owner is None or owner == list(segment.parts)

    def _theirs(self, path: Path, name: str) -> Path | None:
        """The file that the original has for a name that it nests; None when there is none."""
        theirs = self._nested(path, name)
        file = None if theirs is None else theirs.with_name(f"{theirs.name}{SUFFIX}")
        return None if file is None or not file.is_file() else file

    def _nested(self, path: Path, *names: str) -> Path | None:
        """Where the original keeps this context, or a name in it, if it nests them.

        None if it does not, or if `path` is the stricter one of a context that shares the original's with another.
        """
        steps = nested([*("_".join(segment.parts) for segment in self._segments), *names])
        tree = self._dump.root / self._layout.path
        if not steps or path != tree.joinpath(*(segment.plain for segment in self._segments)):
            return None
        return tree.joinpath(*steps)

    def _hidden(self, kind: str, path: Path, stem: str) -> Path:
        return _hidden(self._dump.root, kind, path, stem)

    def _name(self, path: Path, stem: str) -> str:
        parts = parts_of(self._dump.root, path, stem) if "%~" in stem else None
        return unescape(stem) if parts is None else parts[0]

    # --- locks and errors ---

    @contextmanager
    def _reading(self) -> Generator[None]:
        try:
            yield
        except NotADirectoryError:
            raise StoreUnavailableError(f"{self._what}: a part of its path is a file; move it away.") from None
        except OSError as error:
            raise StoreUnavailableError(f"{self._what} cannot be read: {_cause(error)}.") from None

    @contextmanager
    def _writing(self, stored: Callable[[], bool]) -> Generator[tuple[Path, int]]:
        """Make the directory of this context, and keep others from writing to it; `stored`: whether anything was."""
        with self._errors(stored):
            path = self._path(claim=True)
            with _locked(path) as descriptor:
                yield path, descriptor

    @contextmanager
    def _errors(self, stored: Callable[[], bool]) -> Generator[None]:
        try:
            yield
        except OSError as error:
            problem = f"{self._what} cannot be written: {_cause(error)}."
            if stored():
                raise WriteOutcomeUnknownError(f"{problem} A part may have been stored; read to see.") from None
            refused = StoreUnavailableError if isinstance(error, TimeoutError) else WriteRejectedError
            raise refused(f"{problem} Nothing was stored.") from None


def load(root: Path, layout: Layout, path: Path, stem: str) -> Stored | None:
    """The value of a file, or None when there is none; `InvalidPayloadError` when it is damaged."""
    file, records = path / f"{stem}{SUFFIX}", _hidden(root, "records", path, stem)
    while True:
        try:
            with open(file, "rb") as opened:
                text, created = opened.read(), os.fstat(opened.fileno()).st_mtime_ns
        except FileNotFoundError:
            return None
        known = _load_records(records) if layout.timed or layout.ordered else {}
        record = known.get(_digest(text), {})
        if record or not known or _text(file) == text:  # else it was replaced twice between the two reads
            break
    value, removed = _parse(text, file, layout)
    when = record.get("when")
    return Stored(value, removed, _stated(layout, value) if when is None else when, record.get("created", created))


def parts_of(root: Path, path: Path, segment: str) -> list[str] | None:
    """The parts of a name that does not tell them itself; None when nobody has written them down.

    `InvalidPayloadError` when what was written down is damaged.
    """
    file = _hidden(root, "labels", path, segment)
    return _noted(file, _PARTS, f"Remove it, and {segment} belongs to whoever writes there next")


def natural(name: str) -> list[tuple[int, int, str]]:
    """A sort key that puts 2 before 10, as the original lists its files."""
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in re.split(r"(\d{1,18})", name) if part]


def _hidden(root: Path, kind: str, path: Path, stem: str) -> Path:
    ending = f"%~{SUFFIX}" if kind == "labels" else SUFFIX  # which no directory of labels has
    return root / HIDDEN / kind / path.relative_to(root) / f"{stem}{ending}"


def _stated(layout: Layout, value: Any) -> int:
    """The `when` that a payload of the original states itself, as ISO 8601 text or ms."""
    stated = members(value).get(layout.stated_by) if layout.stated_by else None
    if isinstance(stated, str):
        try:
            stated = datetime.fromisoformat(stated)
        except ValueError:
            return 0
    try:
        return to_millis(int(stated) if isinstance(stated, float) else cast("When", stated))
    except (InvalidWhenError, OverflowError, ValueError):
        return 0


def _segment(name: str) -> Segment:
    return Segment((name,), ambiguous=False)


def _parse(text: bytes, file: Path, layout: Layout) -> tuple[Any, bool]:
    """The value of a text, and whether it is a tombstone."""
    try:
        marks = codec.loads(text)
        tombstone = layout.removable and members(marks).keys() == {codec.LITERAL, "removed"}
        value: Any = codec.decode(marks[codec.LITERAL] if tombstone else marks)
        if not isinstance(value, list if layout.fixed_file else dict | None):
            raise ValueError(f"it holds no {'array' if layout.fixed_file else 'object'}")
        removed = marks["removed"] if tombstone else layout.removable and members(value).get("removed") is True
        return cast("Any", value), bool(removed)
    except (RecursionError, ValueError) as error:
        problem = "nested too deep" if isinstance(error, RecursionError) else error
        raise InvalidPayloadError(f"The file {file} is damaged: {problem}. Repair or remove it.") from None


def members(value: Any) -> dict[str, Any]:
    """The members of an object; none of anything else."""
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def _text(file: Path) -> bytes | None:
    try:
        with open(file, "rb") as opened:
            return opened.read()
    except FileNotFoundError:
        return None


def _load_records(file: Path) -> dict[str, dict[str, int]]:
    return _noted(file, _RECORDS, "Remove it, and its value is read as one that somebody else wrote") or {}


def _noted(file: Path, kind: TypeAdapter[T], otherwise: str) -> T | None:
    """What a file of the hidden tree holds, or None when there is none; `InvalidPayloadError` when it is damaged."""
    text = _text(file)
    try:
        return None if text is None else kind.validate_json(text, strict=True)
    except ValueError:
        raise InvalidPayloadError(f"The file {file} is damaged. {otherwise}.") from None


def _cause(error: OSError) -> str:
    """What the system says, of which file, and what to do about it."""
    named = f"{error.strerror}: {error.filename}" if error.filename else f"{error.strerror}"
    return f"{named}; give this user access to it" if isinstance(error, PermissionError) else named


def _digest(text: bytes) -> str:
    return blake2b(text, digest_size=16).hexdigest()


_numbers = count()


def _replace(file: Path, text: bytes, created: int | None = None, *, keep: bool = False, flush: bool = True) -> None:
    """Put a text in the place of a file, atomically; with `keep` only where there is none."""
    temporary = file.with_name(f"{TEMPORARY}{os.getpid()}-{next(_numbers)}")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        try:
            view = memoryview(text)
            while view:
                view = view[os.write(descriptor, view) :]
            if created is not None:
                os.utime(descriptor, ns=(created, created))
            if flush:
                os.fsync(descriptor)
        finally:
            os.close(descriptor)
        if keep:
            with suppress(FileExistsError):
                os.link(temporary, file)
            os.unlink(temporary)
        else:
            os.rename(temporary, file)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _make(path: Path, *, flush: bool = True) -> None:
    """Make a directory and those above it; with `flush` they survive a crash."""
    missing: list[Path] = []
    while not path.is_dir():
        missing.append(path)
        path = path.parent
    for directory in reversed(missing):
        directory.mkdir(exist_ok=True)
        if flush:
            _flush(directory.parent)


def _flush(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _locked(path: Path, *, wait: bool = True) -> Generator[int]:
    """Keep other writers out of a directory, in this process and others; a process that dies lets go of it.

    Who has been waited for in vain just now is not waited for again, so that calls that queue here end together.
    """
    import fcntl  # not on Windows, where the rest of the package can be imported

    descriptor = os.open(path, os.O_RDONLY)
    _locks.add(descriptor)
    now = time.monotonic()
    wait = wait and now > _in_vain.get(path, -math.inf) + _REST_SECONDS
    until = now + _LOCK_SECONDS if wait else now
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > until:
                    if wait:
                        _in_vain[path] = time.monotonic()
                    problem = f"another process keeps {path} locked"
                    raise TimeoutError(errno.ETIMEDOUT, problem) from None
                time.sleep(_LOOK_SECONDS)
        _in_vain.pop(path, None)
        try:
            yield descriptor
        finally:
            fcntl.flock(descriptor, fcntl.LOCK_UN)  # a child that was forked meanwhile may have the descriptor as well
    finally:
        _locks.discard(descriptor)
        os.close(descriptor)


_locks: set[int] = set()
_in_vain: dict[Path, float] = {}
"""When a directory was waited for in vain."""


def _disinherit() -> None:
    """Let go, in a child that was forked, of what its parent has locked."""
    while _locks:
        os.close(_locks.pop())


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_disinherit)


def _json_files(path: Path) -> Iterable[str]:
    try:
        with os.scandir(path) as entries:
            return [
                entry.name
                for entry in entries
                if entry.name.endswith(SUFFIX) and not entry.name.startswith(TEMPORARY) and entry.is_file()
            ]
    except FileNotFoundError:
        return []


def _unlink(leftovers: Iterable[Path]) -> None:
    """Remove them; those that this user may not remove are for another."""
    for leftover in leftovers:
        try:
            leftover.unlink(missing_ok=True)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
                raise


def _leftovers(directory: Path, *, locked: bool = True) -> Iterator[Path]:
    """Temporary files of writers that are gone: ours, if their directory is locked; foreign ones by their age."""
    oldest = time.time() - _FOREIGN_LEFTOVER_SECONDS
    if directory.is_dir():
        for file in directory.iterdir():
            if file.name.startswith(TEMPORARY):
                ours = locked and re.fullmatch(rf"{re.escape(TEMPORARY)}\d+-\d+", file.name)
                with suppress(FileNotFoundError):  # its writer is not gone
                    if ours or file.stat().st_mtime < oldest:
                        yield file
