"""The parts of a diagnosis that tests compare, by the name of the check."""

from collections.abc import Mapping
from typing import Any

from backtest_persist.operations import Diagnosis, Finding, Level

__all__ = ("levels", "not_ok", "texts", "values")


def levels(diagnosis: Diagnosis) -> dict[str, Level]:
    """Return the levels of all findings that are not ok."""
    return {finding.check: finding.level for finding in diagnosis.findings if finding.level is not Level.OK}


def not_ok(diagnosis: Diagnosis) -> dict[str, Finding]:
    """Return all findings that are not ok."""
    return {finding.check: finding for finding in diagnosis.findings if finding.level is not Level.OK}


def texts(diagnosis: Diagnosis) -> dict[str, str]:
    """Return text and advice of all findings."""
    return {finding.check: f"{finding.text} {finding.advice}" for finding in diagnosis.findings}


def values(diagnosis: Diagnosis) -> dict[str, Mapping[str, Any]]:
    """Return the measured values of all findings."""
    return {finding.check: finding.values for finding in diagnosis.findings}
