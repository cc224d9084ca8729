"""The parts that all commands share: exit statuses, flags, containers and JSON reports."""

import json
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Annotated, Any

from cyclopts import Parameter

from backtest_persist.container import Container

__all__ = ("INCOMPLETE", "Flag", "open_container", "print_json")

INCOMPLETE = 3
"""The exit status of a command that finished, but skipped something or left something wrong."""

Flag = Annotated[bool, Parameter(negative=())]
"""An option without a negative form."""


@asynccontextmanager
async def open_container() -> AsyncGenerator[Container]:
    """Yield a container on the servers of the ``CC_*`` settings, and close it; no index is created or verified."""
    container = Container()
    try:
        yield container
    finally:
        await container.close()


def print_json(report: Any) -> None:
    """Print a report as JSON on standard output."""
    json.dump(report, sys.stdout, indent=2)
    print()
