"""The commands `import-dump` and `export-dump`: what they print and how they exit."""

import json
import os
from pathlib import Path

import pytest

from backtest_persist import Settings
from tests.support.dumps import (
    ORIGINAL,
    write_dump,
)
from tests.support.processes import run_cli


@pytest.mark.parametrize("driver", ["motor"], indirect=True)
async def test_import_and_export_print_reports_and_exit_with_what_happened(settings: Settings, tmp_path: Path) -> None:
    """0 when all went well, 3 when something was skipped, 1 for an error; --json is the whole report."""
    dump, out = tmp_path / "dump", tmp_path / "out"
    write_dump(dump, ORIGINAL)
    dry = await run_cli("import-dump", str(dump), "--dry-run", settings=settings, cwd=tmp_path)
    assert dry.returncode == 0, dry.stderr
    assert "Nothing was written" in dry.stdout
    done = await run_cli("import-dump", "dump", settings=settings, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"{len(ORIGINAL)} files in" in done.stdout
    assert "Importing" in done.stderr  # the progress bar

    write_dump(dump, {f"data/storage/live/[bold]{n}.json": "{" for n in range(30)})
    shown = await run_cli("import-dump", str(dump), settings=settings, cwd=tmp_path)
    assert shown.returncode == 3
    assert "30 files were skipped" in shown.stdout
    assert "[bold]0.json" in shown.stdout
    assert "data/storage/live: 10 more" in shown.stdout
    full = await run_cli(
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

    exported = await run_cli("export-dump", str(out), "--json", settings=settings, cwd=tmp_path)
    assert exported.returncode == 0, exported.stderr
    assert sum(json.loads(exported.stdout)["domains"].values()) == len(ORIGINAL)
    refused = await run_cli("export-dump", str(out), settings=settings, cwd=tmp_path)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr.splitlines()[-1].startswith("backtest-persist:")
    assert "not an empty directory" in refused.stderr


@pytest.mark.parametrize("driver", ["pymongo"], indirect=True)
async def test_a_report_names_files_whose_names_are_no_text(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bytes that are no UTF-8 are shown as escapes, from which a program gets the name that is meant."""
    monkeypatch.setenv("PYTHONIOENCODING", "utf-8:strict")
    dump, name = tmp_path / "dump", os.fsdecode(b"data/storage/live/\xff.json")
    write_dump(dump, {**ORIGINAL, name: "{}"})
    shown = await run_cli("import-dump", str(dump), settings=settings, cwd=tmp_path)
    assert shown.returncode == 3, shown.stderr
    assert r"data/storage/live/\udcff.json: its name is not UTF-8" in shown.stdout
    full = await run_cli("import-dump", str(dump), "--json", settings=settings, cwd=tmp_path)
    assert full.returncode == 3, full.stderr
    assert [skipped["path"] for skipped in json.loads(full.stdout)["skipped"]] == [name]
