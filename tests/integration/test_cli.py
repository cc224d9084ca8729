"""The command line: what it prints and how it exits, on real servers."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import anyio
import pytest
from pymongo import AsyncMongoClient

from backtest_persist import Settings, __version__
from tests.support.dumps import ORIGINAL, write_dump
from tests.support.processes import run_cli as run


async def test_migrate_shows_and_drops_narrow_indexes(settings: Settings, tmp_path: Path) -> None:
    """A dry run shows them, the command drops them, a second one finds nothing to do; documents stay."""
    name = "symbol_1_interval_1_timestamp_1"
    async with AsyncMongoClient[dict[str, Any]](settings.mongo_connection_string.get_secret_value()) as client:
        candles = client.get_default_database()["candle-items"]
        await candles.create_index([("symbol", 1), ("interval", 1), ("timestamp", 1)], unique=True)
        await candles.insert_one({"exchangeName": "e", "symbol": "s", "interval": "1m", "timestamp": 0})

        shown = await run("migrate", "--dry-run", settings=settings, cwd=tmp_path)
        assert shown.returncode == 0, shown.stderr
        assert name in shown.stdout
        assert name in await candles.index_information()

        dropped = await run("migrate", settings=settings, cwd=tmp_path)
        assert dropped.returncode == 0, dropped.stderr
        assert name in dropped.stdout
        assert name not in await candles.index_information()
        assert await candles.count_documents({}) == 1

        again = await run("migrate", settings=settings, cwd=tmp_path)
        assert again.returncode == 0
        assert "Nothing to migrate" in again.stdout


async def test_the_version_and_the_help_are_printed(settings: Settings, tmp_path: Path) -> None:
    """--version prints the version; --help names the commands."""
    version = await run("--version", settings=settings, cwd=tmp_path)
    assert version.stdout.strip() == __version__
    text = await run("--help", settings=settings, cwd=tmp_path)
    assert "demo" in text.stdout
    assert "migrate" in text.stdout


async def test_an_unreachable_server_is_one_clear_line(settings: Settings, tmp_path: Path) -> None:
    """A command without servers exits with 1 and a message on stderr, no traceback."""
    gone = settings.model_copy(
        update={
            "mongo_connection_string": type(settings.mongo_connection_string)("mongodb://127.0.0.1:1/x?timeoutMS=300")
        }
    )
    result = await run("migrate", settings=gone, cwd=tmp_path)
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert "Nothing was applied" in " ".join(result.stderr.split())


async def test_import_and_export_print_reports_and_exit_with_what_happened(settings: Settings, tmp_path: Path) -> None:
    """0 when all went well, 3 when something was skipped, 1 for an error; --json is the whole report."""
    dump, out = tmp_path / "dump", tmp_path / "out"
    write_dump(dump, ORIGINAL)
    dry = await run("import-dump", str(dump), "--dry-run", settings=settings, cwd=tmp_path)
    assert dry.returncode == 0, dry.stderr
    assert "Nothing was written" in dry.stdout
    done = await run("import-dump", "dump", settings=settings, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"{len(ORIGINAL)} files in" in done.stdout
    assert "Importing" in done.stderr  # the progress bar

    write_dump(dump, {f"data/storage/live/[bold]{n}.json": "{" for n in range(30)})
    shown = await run("import-dump", str(dump), settings=settings, cwd=tmp_path)
    assert shown.returncode == 3
    assert "30 files were skipped" in shown.stdout
    assert "[bold]0.json" in shown.stdout
    assert "data/storage/live: 10 more" in shown.stdout
    full = await run(
        "import-dump",
        str(dump),
        "--json",
        "--exchange",
        "gate_io",
        "--exchange",
        "x_y",
        settings=settings,
        cwd=tmp_path,
    )
    assert full.returncode == 3
    report = json.loads(full.stdout)
    assert len(report["skipped"]) == 30
    assert report["domains"]["storage"] == {"files": 34, "new": 0, "same": 4, "skipped": 30}

    exported = await run("export-dump", str(out), "--json", settings=settings, cwd=tmp_path)
    assert exported.returncode == 0, exported.stderr
    assert sum(json.loads(exported.stdout)["domains"].values()) == len(ORIGINAL)
    refused = await run("export-dump", str(out), settings=settings, cwd=tmp_path)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr.splitlines()[-1].startswith("backtest-persist:")
    assert "not an empty directory" in refused.stderr


async def test_a_report_names_files_whose_names_are_no_text(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bytes that are no UTF-8 are shown as escapes, from which a program gets the name that is meant."""
    monkeypatch.setenv("PYTHONIOENCODING", "utf-8:strict")
    dump, name = tmp_path / "dump", os.fsdecode(b"data/storage/live/\xff.json")
    write_dump(dump, {**ORIGINAL, name: "{}"})
    shown = await run("import-dump", str(dump), settings=settings, cwd=tmp_path)
    assert shown.returncode == 3, shown.stderr
    assert r"data/storage/live/\udcff.json: its name is no UTF-8" in shown.stdout
    full = await run("import-dump", str(dump), "--json", settings=settings, cwd=tmp_path)
    assert full.returncode == 3, full.stderr
    assert [skipped["path"] for skipped in json.loads(full.stdout)["skipped"]] == [name]


@pytest.mark.parametrize(("prelude", "expected"), [("", "uvloop"), ("sys.modules['uvloop'] = None", "asyncio")])
async def test_commands_run_on_uvloop_if_it_is_there(prelude: str, expected: str) -> None:
    """The extra `speed` is taken by being installed, and missed by nobody."""
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
