"""The report of the doctor: findings, each with a level and advice."""

import statistics
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from backtest_persist.errors import BacktestPersistError, ErrorReason, SettingsError

__all__ = ("PINGS", "Diagnosis", "Finding", "Level", "median_ms", "server_advice")

PINGS = 7
"""The number of pings whose median is the latency of a server."""

_ADVICE = {
    ErrorReason.NOT_PERMITTED: "Grant the user the rights that docs/security.md lists.",
    ErrorReason.UNAUTHENTICATED: "Correct user and password in the CC_* settings.",
}


class Level(StrEnum):
    """The severity of a finding."""

    OK = "ok"
    WARNING = "warning"
    """It works, but should be looked at."""
    PROBLEM = "problem"
    """It does not work, or cannot be relied on."""


@dataclass(frozen=True)
class Finding:
    """The result of one check."""

    check: str
    level: Level
    text: str
    advice: str = ""
    """The advice: how to put it right."""
    values: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """The measured values, for programs; times in ms."""


@dataclass
class Diagnosis:
    """The report of `examine`."""

    findings: list[Finding] = field(default_factory=list[Finding])

    @property
    def level(self) -> Level:
        """The level of the worst finding."""
        return max((finding.level for finding in self.findings), key=list(Level).index, default=Level.OK)

    def ok(self, check: str, text: str, **values: Any) -> None:
        """Add the finding of a check that passed."""
        self.findings.append(Finding(check, Level.OK, text, values=values))

    def warning(self, check: str, text: str, advice: str, **values: Any) -> None:
        """Add a finding that somebody should look at."""
        self.findings.append(Finding(check, Level.WARNING, text, advice, values))

    def problem(self, check: str, text: str, advice: str = "", **values: Any) -> None:
        """Add a finding that has to be corrected."""
        self.findings.append(Finding(check, Level.PROBLEM, text, advice, values))


def server_advice(error: BacktestPersistError) -> str:
    """Return what to do about a server that cannot be examined; empty if the message of the error says it."""
    if isinstance(error, SettingsError):
        return "Correct the CC_* settings."
    return _ADVICE.get(error.reason, "") if error.reason else "Start it, or correct the CC_* settings."


async def median_ms(ping: Callable[[], Awaitable[Any]]) -> float:
    """Return the median duration of a few pings, in ms."""
    durations: list[float] = []
    for _ in range(PINGS):
        started = time.perf_counter()
        await ping()
        durations.append(time.perf_counter() - started)
    return round(statistics.median(durations) * 1000, 2)
