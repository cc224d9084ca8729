"""The file of one value, as the TypeScript framework writes it, read and stored together with its record."""

import os
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple, cast

from backtest_persist.backends.json import codec
from backtest_persist.backends.json.atomic import TEMPORARY, FileChange, read_file, replace_file
from backtest_persist.backends.json.layout import Layout, Shape
from backtest_persist.backends.json.sidecar import Records, digest, load_records, record_file, store_records
from backtest_persist.core.instants import checked_int64, to_int
from backtest_persist.core.row import to_millis
from backtest_persist.errors import InvalidKeyError, InvalidPayloadError, InvalidWhenError

__all__ = (
    "SUFFIX",
    "CreationClock",
    "Plan",
    "Stored",
    "Times",
    "ValueFile",
    "Write",
    "members",
    "natural",
    "value_stems",
)

SUFFIX = ".json"

_TICK_NS = 1000
"""The distance between two creation times, which common file systems keep apart."""


class Stored(NamedTuple):
    """A value as it was found."""

    value: Any
    removed: bool
    """Whether it is a tombstone."""
    when: int
    """Since when it is known, in simulation time (ms UTC); 0 when nothing says so: it was always known."""
    created: int
    """When it was first written, in ns since the epoch."""
    updated: int
    """When its file was written, in ns since the epoch."""


@dataclass(frozen=True)
class Write:
    """A value to be stored under a name."""

    name: str
    text: bytes
    when: int | None = None
    created: int | None = None
    """When it was first written, in ns since the epoch; None for now."""


class Times(NamedTuple):
    """When a value was first written, and when it was written last, in ns since the epoch."""

    created: int
    updated: int


class Plan(NamedTuple):
    """The effect that a write of a value would have on its files."""

    records: Records | None
    """Its new records; None if they stay as they are."""
    text: bytes | None
    """Its new text; None if it stays as it is."""
    times: Times


class CreationClock:
    """Gives each new value of a dump a later creation time, so that lists keep the order of the writes."""

    def __init__(self) -> None:
        self._last = 0

    def next(self) -> int:
        """Return the current time in ns since the epoch, or a microsecond after the last one returned."""
        self._last = max(self._last + _TICK_NS, time.time_ns() // _TICK_NS * _TICK_NS)
        return self._last


@dataclass(slots=True)
class ValueFile:
    """The file of a value in a directory of a dump."""

    root: Path
    layout: Layout
    directory: Path
    stem: str

    @property
    def path(self) -> Path:
        """Where the file is, or would be."""
        return self.directory / f"{self.stem}{SUFFIX}"

    @property
    def records(self) -> str:
        """The path of its records."""
        return record_file(self.root, self.directory, self.stem)

    def _load_records(self) -> Records:
        if self.layout.timed:
            advice = (
                f"Remove it together with {self.path}, and write that value again: with its record alone removed, it "
                "would be seen by readers of any time, before it was known too"
            )
        else:
            advice = "Remove it; its value then has the place of its last write in lists"
        return load_records(self.records, advice)

    def load(self) -> Stored | None:
        """Read the value with its record, None when it does not exist; `InvalidPayloadError` when it is damaged."""
        path = f"{self.directory}/{self.stem}{SUFFIX}"  # a Path takes several times as long as the rest of this loop
        recorded = self.layout.timed or self.layout.ordered
        while True:
            try:
                with open(path, "rb") as opened:
                    text, updated = opened.read(), os.fstat(opened.fileno()).st_mtime_ns
            except FileNotFoundError:
                return None
            known = self._load_records() if recorded else {}
            record = known.get(digest(text), {})
            if record or not known or read_file(path) == text:  # else it was replaced twice between the two reads
                break
        value, removed = self.parse(text)
        when = record["when"] if "when" in record else _when_in_payload(self.layout, value)
        return Stored(value, removed, when, record.get("created", updated), updated)

    def plan(self, write: Write, *, old: bytes | None, replaced: Path | None, now: Callable[[], int]) -> Plan:
        """Return the effect of storing a value.

        `old` is the text in this file, and `replaced` the file of the value that is replaced, which may be another
        one. `now` returns the creation time for a `write` without one, in ns since the epoch.
        """
        known = self._load_records()
        old_record = {} if old is None else known.get(digest(old), {})
        record: dict[str, int] = {} if write.when is None else {"when": write.when}
        if replaced is not None and self.layout.ordered:
            record["created"] = old_record.get("created", replaced.stat().st_mtime_ns)
        records = {} if old is None else {digest(old): old_record}
        records[digest(write.text)] = record
        records = {key: fields for key, fields in records.items() if fields}
        if old == write.text:
            text, updated = None, self.path.stat().st_mtime_ns
        else:
            text, updated = write.text, now() if write.created is None else write.created
        return Plan(None if records == known else records, text, Times(record.get("created", updated), updated))

    def store(self, plan: Plan, *, flush: bool) -> None:
        """Carry out a plan: the records first, then the value, so that it has its record at every instant."""
        if plan.records is not None:
            store_records(Path(self.records), plan.records, flush=flush)
        if plan.text is not None:
            replace_file(self.path, plan.text, mtime_ns=plan.times.updated, flush=flush)

    def changes(self, plan: Plan) -> Iterator[FileChange]:
        """Iterate over what `store` would do, in its order."""
        if plan.records is not None:
            yield FileChange(Path(self.records), codec.dumps(plan.records))
        if plan.text is not None:
            yield FileChange(self.path, plan.text, plan.times.updated)

    def parse(self, text: bytes) -> tuple[Any, bool]:
        """Return the value of a text and whether it is a tombstone; `InvalidPayloadError` when it is damaged."""
        try:
            content = codec.loads(text)
            tombstone = self.layout.removable and members(content).keys() == {codec.LITERAL, "removed"}
            value: Any = codec.decode(content[codec.LITERAL] if tombstone else content)
            if not isinstance(value, self.layout.value_types):
                raise ValueError(f"it holds no {'array' if self.layout.shape is Shape.LIST else 'object'}")
            removed = (
                content["removed"] if tombstone else self.layout.removable and members(value).get("removed") is True
            )
            return value, bool(removed)
        except (RecursionError, ValueError) as error:
            problem = "nested too deep" if isinstance(error, RecursionError) else error
            raise InvalidPayloadError(f"The file {self.path} is damaged: {problem}. Repair or remove it.") from None


def value_stems(directory: Path) -> list[str]:
    """List the stems of the value files in a directory, in no order; [] when it does not exist."""
    try:
        with os.scandir(directory) as entries:
            return [
                entry.name.removesuffix(SUFFIX)
                for entry in entries
                if entry.name.endswith(SUFFIX) and not entry.name.startswith(TEMPORARY) and entry.is_file()
            ]
    except FileNotFoundError:
        return []


def members(value: Any) -> dict[str, Any]:
    """Return the members of an object; {} for anything else."""
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def natural(name: str) -> list[tuple[int, int, str]]:
    """Return a sort key that puts 2 before 10, the order in which the framework lists its files."""
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in re.split(r"(\d{1,18})", name) if part]


def _when_in_payload(layout: Layout, value: Any) -> int:
    """Return the `when` that a payload of the framework contains, as ISO 8601 text or in ms; 0 without a valid one."""
    if not layout.stated_by:
        return 0
    when = members(value).get(layout.stated_by)
    if isinstance(when, str):
        try:
            when = datetime.fromisoformat(when)
        except ValueError:
            return 0
    try:
        if isinstance(when, datetime):
            return to_millis(when)
        millis = int(when) if isinstance(when, float) else to_int(when)
        return 0 if millis is None else checked_int64(millis, layout.stated_by)
    except (InvalidKeyError, InvalidWhenError, OverflowError, ValueError):
        return 0
