"""The commands `verify` and `rebuild-cache`: what they print and how they exit."""

import json
from pathlib import Path
from typing import Any

import pytest

from backtest_persist import Container, Settings
from tests.support.cases import CASES
from tests.support.damage import DAMAGED_COUNTS, damage_ids, write_unrelated_keys
from tests.support.documents import fill, keys
from tests.support.processes import run_cli


@pytest.mark.parametrize("driver", ["motor"], indirect=True)
async def test_verify_exits_with_3_until_all_is_fixed(container: Container, settings: Settings, tmp_path: Path) -> None:
    """3 when something is wrong, 0 when it was fixed, 0 when there is nothing; a table or JSON on standard output."""
    await damage_ids(container)
    await write_unrelated_keys(container)
    shown = await run_cli("verify", settings=settings, cwd=tmp_path)
    assert shown.returncode == 3, shown.stderr
    assert "Verifying" in shown.stderr  # the progress bar
    (row,) = (line for line in shown.stdout.splitlines() if "candle" in line)
    assert row.split()[1::2] == ["candle", "2", "2", "4", "1", "0"]
    assert "--fix" in shown.stdout
    assert "other_cache belongs to no domain of this version; keys left alone: 1." in shown.stdout
    full = await run_cli("verify", "--json", settings=settings, cwd=tmp_path)
    assert full.returncode == 3
    assert json.loads(full.stdout)["wrong"] == 7 * len(CASES)
    assert json.loads(full.stdout)["domains"]["signal"] == vars(DAMAGED_COUNTS)
    fixed = await run_cli("verify", "--fix", "--json", settings=settings, cwd=tmp_path)
    assert fixed.returncode == 0, fixed.stderr
    assert json.loads(fixed.stdout)["domains"]["signal"]["fixed"] == 7
    again = await run_cli("verify", settings=settings, cwd=tmp_path)
    assert again.returncode == 0
    assert "--fix" not in again.stdout
    assert "cannot be read" not in again.stdout
    await container.mongo_service.collection("log-items").update_one({}, {"$set": {"payload": 5}})
    damaged = await run_cli("verify", settings=settings, cwd=tmp_path)
    (line,) = (line for line in damaged.stdout.splitlines() if "cannot be read, and lists leave it out" in line)
    assert line.startswith("log-items ")
    assert "is no LogRow: see payload" in line


@pytest.mark.parametrize("driver", ["pymongo"], indirect=True)
async def test_rebuild_cache_fills_what_is_asked_for(container: Container, settings: Settings, tmp_path: Path) -> None:
    """All domains, or those of --domain; an unknown one is a bad argument, exit status 2."""
    await fill(container)
    right = await keys(settings)
    for case in CASES:
        cache: Any = getattr(container, f"{case.domain}_cache_service")
        await cache.clear()
    refused = await run_cli("rebuild-cache", "--domain", "nope", settings=settings, cwd=tmp_path)
    assert (refused.returncode, await keys(settings)) == (2, {})
    wanted = ("--domain", "signal", "--domain", "log")
    part = await run_cli("rebuild-cache", "--json", *wanted, settings=settings, cwd=tmp_path)
    assert (part.returncode, json.loads(part.stdout)["domains"]) == (0, {"log": 1, "signal": 1})
    assert len(await keys(settings)) == 2
    done = await run_cli("rebuild-cache", settings=settings, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Rebuilding" in done.stderr
    assert f"{len(CASES)} ids in" in done.stdout
    assert await keys(settings) == right
