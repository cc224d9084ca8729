"""The conformance kit on every backend of this package, and on one that is not."""

import asyncio
import hashlib
import os
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlsplit

import pytest
from pydantic import SecretStr
from pymongo import AsyncMongoClient

from backtest_persist import Container, Registry, Settings
from backtest_persist.testing import Conformance
from tests.support.reference_backend import Reference, Store


class TestReference(Conformance):
    """The backend of a user."""

    def use(self, persist: Registry, place: Path) -> None:
        persist.use(Reference(Store(place)).factories())


class TestJson(Conformance):
    """JSON files."""

    def use(self, persist: Registry, place: Path) -> None:
        persist.use_json(place)


class OnMongo(Conformance):
    """MongoDB with Redis in front: each place is a database, and a prefix in Redis.

    The environment leads the other processes of a test to the servers.
    """

    driver: ClassVar[str]

    @asynccontextmanager
    async def open(self, place: Path) -> AsyncGenerator[Registry]:
        container = Container(settings_at(place))
        try:
            yield Registry(container)
        finally:
            await container.close()

    @pytest.fixture(autouse=True)
    async def servers_in_the_environment(
        self, servers: Settings, drop: Callable[[str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> AsyncIterator[None]:
        for name, value in self.environment(servers).items():
            monkeypatch.setenv(name, value)
        yield
        for place in (tmp_path, *(tmp_path / name for name in os.listdir(tmp_path))):
            drop(name_of(place))

    def environment(self, servers: Settings) -> dict[str, str]:
        """Long deadlines: what is read must not depend on how busy the machine is."""
        found = {
            "CC_MONGO_CONNECTION_STRING": servers.mongo_connection_string.get_secret_value(),
            "CC_MONGO_DRIVER": self.driver,
            "CC_MONGO_TIMEOUT_MS": "60000",
            "CC_REDIS_HOST": servers.redis_host,
            "CC_REDIS_PORT": str(servers.redis_port),
            "CC_REDIS_USER": servers.redis_user,
            "CC_REDIS_PASSWORD": servers.redis_password.get_secret_value(),
            "CC_REDIS_TIMEOUT_MS": "5000",
        }
        return found if servers.redis_url is None else {**found, "CC_REDIS_URL": servers.redis_url.get_secret_value()}


class TestMongoByMotor(OnMongo):
    driver = "motor"


class TestMongoByPymongo(OnMongo):
    driver = "pymongo"


class TestMongoWithoutRedis(OnMongo):
    """Redis is down: nothing listens where it should."""

    driver = "motor"

    def environment(self, servers: Settings) -> dict[str, str]:
        return {**super().environment(servers), "CC_REDIS_URL": "unix:///nonexistent/redis.sock"}


@pytest.fixture(scope="module")
async def drop(servers: Settings) -> AsyncIterator[Callable[[str], None]]:
    """Drops a database while the next test runs, because MongoDB takes its time; at the end it empties Redis, too."""
    dropping: list[asyncio.Task[None]] = []
    async with AsyncMongoClient[Any](servers.mongo_connection_string.get_secret_value()) as client:
        yield lambda name: dropping.append(asyncio.create_task(client.drop_database(name)))
        await asyncio.gather(*dropping)
    container = Container(servers)
    redis: Any = container.redis_service.client
    keys = [key async for key in redis.scan_iter(match="kit-*", count=1000)]
    for start in range(0, len(keys), 1000):
        await redis.unlink(*keys[start : start + 1000])
    await container.close()


def settings_at(place: Path) -> Settings:
    """The settings of the environment, with a database and a Redis prefix that the place names."""
    servers, name = Settings(), name_of(place)
    uri = urlsplit(servers.mongo_connection_string.get_secret_value())._replace(path=f"/{name}").geturl()
    return servers.model_copy(update={"mongo_connection_string": SecretStr(uri), "redis_key_prefix": f"{name}:"})


def name_of(place: Path) -> str:
    return f"kit-{hashlib.sha256(bytes(place)).hexdigest()[:16]}"
