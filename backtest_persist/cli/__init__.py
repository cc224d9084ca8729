"""The command line: ``backtest-persist demo``, ``migrate`` and ``initiate``."""

import sys

from backtest_persist.errors import BacktestPersistError

__all__ = ("main",)

_EXTRA = ("attrs", "basana", "bokeh_sampledata", "cyclopts", "rich")


def main() -> None:
    """Run the command that the arguments name and exit with its status.

    0 is success, 1 an error of this package, 2 a bad argument or a missing extra, 130 Ctrl-C.
    """
    try:
        from backtest_persist.cli.app import app  # needs the extra

        sys.exit(app(result_action="return_value"))
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in _EXTRA:
            raise
        _fail(f'{package} is not installed; run: pip install "backtest-persist[demo]"', 2)
    except BacktestPersistError as error:
        _fail(" ".join(str(error).split()), 1)
    except KeyboardInterrupt:
        _fail("interrupted", 130)


def _fail(message: str, status: int) -> None:
    print(f"backtest-persist: {message}", file=sys.stderr)
    sys.exit(status)
