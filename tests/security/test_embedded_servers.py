"""Embedded servers and another Unix user."""

import asyncio
import os
import sys
import tempfile
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from backtest_persist import embedded

CONNECT = """
import os, socket, sys
os.setgroups([]), os.setgid(65534), os.setuid(65534)
for path in sys.argv[1:]:
    with socket.socket(socket.AF_UNIX) as client:
        try:
            client.connect(path)
            print("connected")
        except OSError as error:
            print(type(error).__name__)
"""


async def as_nobody(*paths: Path) -> list[str]:
    """Connect to sockets as another user, and return how each attempt ends."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-I", "-S", "-c", CONNECT, *map(str, paths)), stdout=-1, cwd="/"
    )
    return (await process.communicate())[0].decode().split()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
async def test_another_user_cannot_connect(monkeypatch: pytest.MonkeyPatch) -> None:
    """The directories keep them out, and so do the sockets by themselves."""
    with tempfile.TemporaryDirectory(dir="/tmp") as public:
        os.chmod(public, 0o755)
        monkeypatch.setattr(tempfile, "tempdir", public)
        async with embedded() as settings:
            assert settings.redis_url is not None
            redis = Path(unquote(urlsplit(settings.redis_url.get_secret_value()).path))
            mongo = Path(unquote(urlsplit(settings.mongo_connection_string.get_secret_value()).netloc))
            modes = {path: path.stat().st_mode for path in (redis.parents[1], redis.parent, mongo.parent)}
            assert await as_nobody(mongo, redis) == ["PermissionError"] * 2
            for directory in modes:
                directory.chmod(0o755)
            assert await as_nobody(mongo, redis) == ["PermissionError"] * 2  # the sockets
            for directory, mode in modes.items():
                directory.chmod(mode)
            for path in (mongo, redis):
                path.chmod(0o666)
            assert await as_nobody(mongo, redis) == ["PermissionError"] * 2  # the directories
            for directory in modes:
                directory.chmod(0o755)
            assert await as_nobody(mongo, redis) == ["connected"] * 2  # nothing else kept them out
