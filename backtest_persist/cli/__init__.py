"""The command line, ``backtest-persist``; its commands stand in `app`."""

import asyncio
import inspect
import sys
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from backtest_persist.errors import BacktestPersistError

__all__ = ("main",)

_EXTRAS = {
    "attrs": "cli",
    "basana": "demo",
    "bokeh_sampledata": "demo",
    "ccxt": "ccxt",
    "cyclopts": "cli",
    "rich": "cli",
}
"""The extra that brings a package, by the name under which the package is imported."""


def main() -> None:
    """Run the command that the arguments name, on uvloop if it is installed, and exit with its status.

    0 is success, 1 an error of this package, 2 a bad argument or a missing extra, 130 Ctrl-C.
    """
    reconfigure: Any = getattr(sys.stdout, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(errors="backslashreplace")  # the name of a file may be no text
    try:
        sys.exit(_run())
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in _EXTRAS:
            raise
        _fail(f'{package} is not installed; run: pip install "backtest-persist[{_EXTRAS[package]}]"', 2)
    except BacktestPersistError as error:
        _fail(" ".join(str(error).split()), 1)
    except KeyboardInterrupt:
        _fail("interrupted", 130)


def _run() -> int | None:
    from backtest_persist.cli.app import app  # needs the extra cli

    command, arguments, _ = app.parse_args()
    result: Any = command(*arguments.args, **arguments.kwargs)
    if not inspect.iscoroutine(result):
        return result
    uvloop: Any = import_module("uvloop") if find_spec("uvloop") else None
    with asyncio.Runner(loop_factory=uvloop and uvloop.new_event_loop) as runner:
        return runner.run(result)


def _fail(message: str, status: int) -> None:
    print(f"backtest-persist: {message}", file=sys.stderr)
    sys.exit(status)
