"""Child processes: Python programs and the command line, connected to the servers of given settings."""

import asyncio
import fcntl
import json
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any

import pytest

from backtest_persist import Settings

__all__ = (
    "CLI_PROGRAM",
    "ROOT",
    "command_runner",
    "fork_for_lines",
    "run_cli",
    "run_in_terminal",
    "run_program",
    "settings_environment",
    "start_program",
    "start_python",
)

ROOT = Path(__file__).parents[2]
"""The directory of the repository."""

CLI_PROGRAM = "from backtest_persist.cli import main; main()"
"""The program of the console script."""


def settings_environment(settings: Settings, *, timeouts: bool = True) -> dict[str, str]:
    """Return the ``CC_*`` variables by which another process has the same servers, database, prefix and timeouts."""
    variables = {
        "CC_MONGO_CONNECTION_STRING": settings.mongo_connection_string.get_secret_value(),
        "CC_MONGO_DRIVER": settings.mongo_driver,
        "CC_REDIS_HOST": settings.redis_host,
        "CC_REDIS_KEY_PREFIX": settings.redis_key_prefix,
        "CC_REDIS_PASSWORD": settings.redis_password.get_secret_value(),
        "CC_REDIS_PORT": str(settings.redis_port),
        "CC_REDIS_USER": settings.redis_user,
    }
    if timeouts:
        variables["CC_MONGO_TIMEOUT_MS"] = str(settings.mongo_timeout_ms)
        variables["CC_REDIS_TIMEOUT_MS"] = str(settings.redis_timeout_ms)
    if settings.redis_url is not None:
        variables["CC_REDIS_URL"] = settings.redis_url.get_secret_value()
    return variables


def command_runner(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Awaitable[tuple[int, str]]]:
    """Return what runs a command in this process, which takes less time, and returns its status and output."""
    for name, value in settings_environment(settings).items():
        monkeypatch.setenv(name, value)

    async def run(*arguments: str) -> tuple[int, str]:
        from backtest_persist.cli.app import app

        command, bound, _ = app.parse_args(arguments)
        status: Any = await command(*bound.args, **bound.kwargs)
        return status or 0, capsys.readouterr().out

    return run


async def start_python(
    *arguments: str, environment: Mapping[str, str] | None = None, **options: Any
) -> asyncio.subprocess.Process:
    """Start a Python interpreter in the repository; `environment` is added to that of the tests.

    `options` are those of `asyncio.create_subprocess_exec`.
    """
    return await asyncio.create_subprocess_exec(
        *(sys.executable, *arguments), cwd=ROOT, env={**os.environ, **(environment or {})}, **options
    )


async def start_program(code: str, *arguments: object, **options: Any) -> asyncio.subprocess.Process:
    """Start a Python program that is given as text; `options` are those of `start_python`."""
    return await start_python("-c", code, *map(str, arguments), **options)


async def run_program(code: str, *arguments: object) -> None:
    """Run a Python program that is given as text; it has to end within a minute, without an error."""
    process = await start_program(code, *arguments)
    async with asyncio.timeout(60):
        assert await process.wait() == 0


async def run_cli(
    *arguments: str, settings: Settings, cwd: Path, columns: int = 200
) -> subprocess.CompletedProcess[str]:
    """Run ``backtest-persist`` to its end, on the servers of the settings, without colours.

    Its timeouts are the defaults, or those of a ``.env`` in `cwd`.
    """
    environment = {**os.environ, "COLUMNS": str(columns), "NO_COLOR": "1"}
    environment |= settings_environment(settings, timeouts=False)
    return await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", CLI_PROGRAM, *arguments],
        capture_output=True,
        text=True,
        env=environment,
        cwd=cwd,
        timeout=120,
        check=False,
    )


async def run_in_terminal(*arguments: str, columns: int) -> str:
    """Run ``backtest-persist`` to its end in a terminal; returns all that it has printed."""
    master, slave = pty.openpty()
    try:
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
        process = await start_program(
            CLI_PROGRAM, *arguments, environment={"TERM": "xterm"}, stdin=slave, stdout=slave, stderr=slave
        )
    finally:
        os.close(slave)
    try:
        output = await asyncio.to_thread(_read_all, master)
    finally:
        os.close(master)
    assert await process.wait() == 0, output
    return output.decode()


def _read_all(terminal: int) -> bytes:
    output = b""
    while True:
        try:
            output += os.read(terminal, 65536)
        except OSError:  # EIO: nobody has the other end open any more
            return output


def fork_for_lines(work: Callable[..., Coroutine[Any, Any, None]], fork: Callable[[], int] = os.fork) -> None:
    """Fork a process for each line of the input, which does the work with the arguments in it, and print its pid.

    Forking spares the imports, so that many processes can be started, and killed, in little time.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # so that who is killed is gone at once
    for line in sys.stdin:
        pid = fork()
        if not pid:
            os.close(0)
            asyncio.run(work(*json.loads(line)))
            os._exit(0)
        print(pid, flush=True)
