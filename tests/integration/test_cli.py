"""The command line as a whole: version, help, errors and the event loop."""

import sys
from pathlib import Path

import anyio
import pytest

from backtest_persist import Settings, __version__
from tests.support.processes import run_cli


@pytest.fixture(scope="session")
def driver() -> str:
    """One driver: these tests are about the command line."""
    return "motor"


async def test_the_version_and_the_help_are_printed(settings: Settings, tmp_path: Path) -> None:
    """--version prints the version; --help names every command."""
    version = await run_cli("--version", settings=settings, cwd=tmp_path)
    assert version.stdout.strip() == __version__
    text = await run_cli("--help", settings=settings, cwd=tmp_path)
    for command in ("demo", "doctor", "export-dump", "import-dump", "initiate", "migrate", "rebuild-cache", "verify"):
        assert f" {command} " in text.stdout


async def test_an_unreachable_server_is_one_clear_line(settings: Settings, tmp_path: Path) -> None:
    """A command without servers exits with 1 and one line on standard error, which says what to do."""
    gone = settings.model_copy(
        update={
            "mongo_connection_string": type(settings.mongo_connection_string)("mongodb://127.0.0.1:1/x?timeoutMS=300")
        }
    )
    result = await run_cli("migrate", settings=gone, cwd=tmp_path)
    assert (result.returncode, result.stdout) == (1, "")
    (line,) = result.stderr.splitlines()
    assert line.startswith("backtest-persist: ")
    assert "no primary answers: 127.0.0.1:1: " in line
    assert "`docker compose up -d`" in line


@pytest.mark.parametrize(("prelude", "expected"), [("", "uvloop"), ("sys.modules['uvloop'] = None", "asyncio")])
async def test_commands_run_on_uvloop_if_it_is_there(prelude: str, expected: str) -> None:
    """Commands run on uvloop where the extra `speed` is installed, and on asyncio's loop elsewhere."""
    program = f"""
import asyncio, sys
{prelude}
from backtest_persist.cli import main
from backtest_persist.cli.app import app
@app.command
async def loop():
    print(type(asyncio.get_running_loop()).__module__)
main()
"""
    command = [sys.executable, "-c", program, "loop"]
    ran = await anyio.run_process(command, check=False)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.decode().startswith(expected)
