"""The commands `initiate`, `migrate` and `doctor`: what they print and how they exit."""

import json
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import pytest
from pydantic import SecretStr
from pymongo import AsyncMongoClient

from backtest_persist import Container, Settings
from tests.support.containers import with_uri
from tests.support.processes import run_cli
from tests.support.servers import private_mongod


@pytest.fixture(scope="session")
def driver() -> str:
    """One driver: these tests are about the command line."""
    return "motor"


async def test_migrate_shows_and_drops_narrow_indexes(settings: Settings, tmp_path: Path) -> None:
    """A dry run shows them, the command drops them, a second one finds nothing to do; documents stay."""
    name = "symbol_1_interval_1_timestamp_1"
    async with AsyncMongoClient[dict[str, Any]](settings.mongo_connection_string.get_secret_value()) as client:
        candles = client.get_default_database()["candle-items"]
        await candles.create_index([("symbol", 1), ("interval", 1), ("timestamp", 1)], unique=True)
        await candles.insert_one({"exchangeName": "e", "symbol": "s", "interval": "1m", "timestamp": 0})

        shown = await run_cli("migrate", "--dry-run", settings=settings, cwd=tmp_path)
        assert shown.returncode == 0, shown.stderr
        assert name in shown.stdout
        assert name in await candles.index_information()

        dropped = await run_cli("migrate", settings=settings, cwd=tmp_path)
        assert dropped.returncode == 0, dropped.stderr
        assert name in dropped.stdout
        assert name not in await candles.index_information()
        assert await candles.count_documents({}) == 1

        again = await run_cli("migrate", settings=settings, cwd=tmp_path)
        assert again.returncode == 0
        assert "Nothing to migrate" in again.stdout


async def test_a_replica_set_is_initiated_once(settings: Settings, tmp_path: Path) -> None:
    """A second time it names the member that is there, not the one that was asked for."""
    async with private_mongod(tmp_path, "--replSet", "rs0") as uri:
        ours = with_uri(settings, f"{uri}db?directConnection=true")
        member = unquote(uri.removeprefix("mongodb://").rstrip("/"))
        first = await run_cli("initiate", "--member", member, settings=ours, cwd=tmp_path)
        again = await run_cli("initiate", "--member", "another:27017", settings=ours, cwd=tmp_path)
    assert first.returncode == again.returncode == 0
    assert "ready" in str(first.stdout)
    address = f"mongodb://{quote(member, safe='')}/db?directConnection=true"
    for shown in (first, again):
        assert unquote(shown.stdout.splitlines()[-1]) == unquote(f"CC_MONGO_CONNECTION_STRING={address}")
    assert "another:27017 is not in it" in " ".join(again.stdout.split())
    assert "not in it" not in str(first.stdout)


GONE = "mongodb://name:canary@127.0.0.1:1/x?timeoutMS=300"


NO_REDIS = SecretStr("redis://name:canary@127.0.0.1:1")


async def test_the_doctor_exits_with_what_it_found(container: Container, settings: Settings, tmp_path: Path) -> None:
    """0 when all is well or there are warnings, 1 for a problem; --json is all of it."""
    await container.wait_for_init()
    well = await run_cli("doctor", settings=settings, cwd=tmp_path, columns=80)
    assert (well.returncode, well.stderr) == (0, "")
    assert max(map(len, well.stdout.splitlines())) <= 80
    assert "problem: 0" in well.stdout
    assert any(line.split()[:2] == ["ok", "mongodb.topology"] for line in well.stdout.splitlines())

    await container.mongo_service.database["signal-items"].drop_indexes()
    warned = await run_cli("doctor", "--json", settings=settings, cwd=tmp_path)
    assert warned.returncode == 0
    report = json.loads(warned.stdout)
    assert report["level"] == "warning"
    (finding,) = (finding for finding in report["findings"] if finding["level"] != "ok")
    assert finding["check"] == "mongodb.indexes.signal"
    assert finding["values"] == {"state": "missing", "missing": ["symbol_1_strategyName_1_exchangeName_1"]}

    await container.mongo_service.database["signal-items"].create_index([("symbol", 1)], unique=True)
    bad = await run_cli("doctor", settings=settings, cwd=tmp_path, columns=80)
    assert bad.returncode == 1
    assert max(map(len, bad.stdout.splitlines())) <= 80
    assert "problem  mongodb.indexes.signal" in bad.stdout
    assert "backtest-persist migrate" in bad.stdout


@pytest.mark.parametrize("gone", ["mongodb", "redis", "both"])
async def test_a_server_that_is_down(settings: Settings, tmp_path: Path, gone: str) -> None:
    """The doctor exits with 1 and tells of the other one; verify and rebuild-cache exit with 1 and one line."""
    changes: dict[str, Any] = {}
    if gone != "redis":
        changes["mongo_connection_string"] = SecretStr(GONE)
    if gone != "mongodb":
        changes["redis_url"] = NO_REDIS
    broken = settings.model_copy(update=changes)
    result = await run_cli("doctor", "--json", settings=broken, cwd=tmp_path)
    assert result.returncode == 1, result.stderr
    report = json.loads(result.stdout)
    problems = [finding["check"] for finding in report["findings"] if finding["level"] == "problem"]
    assert problems == (["mongodb", "redis"] if gone == "both" else [gone])
    up = {finding["check"] for finding in report["findings"] if finding["level"] == "ok"}
    assert ("mongodb.latency" in up, "redis.latency" in up) == (gone == "redis", gone == "mongodb")
    assert "canary" not in result.stdout + result.stderr
    shown = await run_cli("doctor", settings=broken, cwd=tmp_path, columns=80)
    assert max(map(len, shown.stdout.splitlines())) <= 80
    assert {"reachable", "there", "->"} & set(shown.stdout.split())
    for command in ("verify", "rebuild-cache"):
        result = await run_cli(command, settings=broken, cwd=tmp_path)
        assert (result.returncode, result.stdout) == (1, ""), command
        assert result.stderr.splitlines()[-1].startswith("backtest-persist: ")
        assert "Traceback" not in result.stderr
        assert "canary" not in result.stderr


async def test_a_bad_setting_is_a_finding(settings: Settings, tmp_path: Path) -> None:
    """The doctor reports it like everything else, and shows no secret."""
    broken = settings.model_copy(update={"mongo_connection_string": SecretStr("mongodb://u:can@ary@x:y/z")})
    result = await run_cli("doctor", "--json", settings=broken, cwd=tmp_path)
    assert result.returncode == 1
    assert "CC_MONGO_CONNECTION_STRING is not usable" in json.loads(result.stdout)["findings"][1]["text"]
    assert "ary" not in result.stdout + result.stderr
    (tmp_path / ".env").write_text("CC_REDIS_TIMEOUT_MS=canary\n")
    result = await run_cli("doctor", "--json", settings=settings, cwd=tmp_path)
    assert result.returncode == 1
    assert json.loads(result.stdout)["findings"][0]["check"] == "settings"
    assert "canary" not in result.stdout + result.stderr
