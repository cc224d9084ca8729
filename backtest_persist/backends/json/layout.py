"""The place of each domain in a dump: the directories and files of the TypeScript framework, as one table.

A directory or a file is named by one field of the context, or by several joined with ``_``.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from backtest_persist.backends.json.names import escape, shorten
from backtest_persist.core.keys import checked_flag, checked_name, checked_timestamp, mode_word
from backtest_persist.core.ohlcv import interval_step_ms

__all__ = ("LAYOUTS", "MODES", "Layout", "Segment")

MODES = {mode_word(backtest): backtest for backtest in (True, False)}


@dataclass(frozen=True)
class Segment:
    """A path segment and the parts from which it is joined."""

    parts: tuple[str, ...]
    ambiguous: bool
    """Whether other parts give the same `plain` name."""

    @property
    def plain(self) -> str:
        """The name that the TypeScript framework gives these parts."""
        return shorten("_".join(map(escape, self.parts)))

    @property
    def strict(self) -> str:
        """A name that no other parts have."""
        if not self.ambiguous:
            return self.plain
        return shorten("_".join(escape(part).replace("_", "%5F") for part in self.parts))

    @property
    def labelled(self) -> bool:
        """Whether the parts cannot be read from the name alone."""
        return self.ambiguous or "%~" in self.plain


@dataclass(frozen=True)
class Layout:
    """The place of one domain: a fixed path, directories named by fields of the context, and files."""

    path: str
    directories: tuple[tuple[str, ...], ...]
    """The fields of each directory."""
    file: tuple[str, ...]
    """The fields of the name of a file; empty for a file with a fixed name."""
    fixed_file: str = ""
    ordered: bool = False
    """Whether the domain is read as a list, oldest first."""
    removable: bool = False
    """Whether a value can be removed; it is then a tombstone, and ``removed`` in a payload marks one."""
    timed: bool = False
    """Whether a value has a `when`."""
    stated_by: str = ""
    """The field in which a payload of the framework contains its `when`."""

    def folder(self, context: Mapping[str, Any]) -> Iterator[Segment]:
        """Iterate over the directories of a context; `InvalidKeyError` for a part that is no key component."""
        for fields in self.directories:
            if (segment := _segment(fields, context)).parts:
                yield segment

    def name(self, context: Mapping[str, Any]) -> str:
        """Return the name of the value of a context; `InvalidKeyError` for a part that is no key component."""
        return "_".join(_part(field, context[field]) for field in self.file) or self.fixed_file


def _segment(fields: tuple[str, ...], context: Mapping[str, Any]) -> Segment:
    parts = tuple(part for field in fields if (part := _part(field, context[field])))
    free = sum(field != "backtest" for field in fields)
    joined = free > 1 and any("_" in part for part in parts)
    return Segment(parts, ambiguous=joined or ("frame_name" in fields and free > 1 and not context["backtest"]))


def _part(field: str, value: Any) -> str:
    if field == "backtest":
        return mode_word(checked_flag(value, field))
    if field == "timestamp":
        return str(checked_timestamp(value, field))
    if field == "interval":
        interval_step_ms(value)
    if field == "frame_name" and value == "":  # the framework leaves the frame of live trading out
        return ""
    return checked_name(value, field)


_SSE = ("symbol", "strategy_name", "exchange_name")

LAYOUTS: Mapping[str, Layout] = {
    "breakeven": Layout("data/breakeven", (_SSE,), ("signal_id",), timed=True),
    "candle": Layout("data/candle", (("exchange_name",), ("symbol",), ("interval",)), ("timestamp",)),
    "interval": Layout(
        "data/interval",
        (("bucket",),),
        ("entry_key",),
        ordered=True,
        removable=True,
        timed=True,
        stated_by="when",
    ),
    "log": Layout("data/log/log", (), ("entry_id",), ordered=True),
    "measure": Layout("data/measure", (("bucket",),), ("entry_key",), ordered=True, removable=True),
    "memory": Layout(
        "memory",
        (("signal_id",), ("bucket_name",)),
        ("memory_id",),
        ordered=True,
        removable=True,
        timed=True,
        stated_by="when",
    ),
    "notification": Layout("data/notification", (("backtest",),), ("notification_id",), ordered=True),
    "partial": Layout("data/partial", (_SSE,), ("signal_id",), timed=True),
    "recent": Layout(
        "data/recent", ((*_SSE, "frame_name", "backtest"),), ("symbol",), timed=True, stated_by="timestamp"
    ),
    "risk": Layout("data/risk", (("risk_name", "exchange_name"),), (), fixed_file="positions", timed=True),
    "schedule": Layout("data/schedule", (_SSE,), ("symbol",)),
    "session": Layout(
        "session",
        (("strategy_name",), ("exchange_name",), ("frame_name",)),
        ("symbol", "backtest"),
        timed=True,
        stated_by="when",
    ),
    "signal": Layout("data/signal", (_SSE,), ("symbol",)),
    "state": Layout("state", (("signal_id",), ("bucket_name",)), ("bucket_name",), timed=True, stated_by="when"),
    "storage": Layout("data/storage", (("backtest",),), ("signal_id",), ordered=True),
}
