"""Fixtures of all tests: real servers, and containers with a fresh database for each test.

``CC_TEST_BACKEND`` chooses the servers: ``embedded`` (the default) starts private ones, ``testcontainers`` starts
Docker containers (images by ``MONGO_IMAGE`` and ``REDIS_IMAGE``), ``env`` takes those of the ``CC_*`` settings.
"""

import gc
import logging
import os
import signal
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import anyio.to_thread
import hypothesis
import pytest
from pymongo import AsyncMongoClient, MongoClient

from backtest_persist import Container, Registry, Settings, embedded

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell sets it for a job in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which child processes inherit

hypothesis.settings.register_profile("tests", hypothesis.settings(), deadline=None)  # of an example: machines are busy
hypothesis.settings.load_profile("tests")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give a soak test an hour before it counts as hanging, and run the demo first, as it takes longest."""
    items.sort(key=lambda item: item.path.name != "test_demo.py")
    for item in items:
        if item.get_closest_marker("soak"):
            item.add_marker(pytest.mark.timeout(3600))


def pytest_collection_finish() -> None:
    """Take what is there before the first test out of the garbage collector, which many tests call.

    Looking through all imported packages again takes it a quarter of a second each time.
    """
    gc.collect()
    gc.freeze()


@asynccontextmanager
async def _containers() -> AsyncGenerator[Settings]:
    from testcontainers.community.redis import RedisContainer
    from testcontainers.core.container import DockerContainer
    from testcontainers.core.wait_strategies import LogMessageWaitStrategy

    mongo: Any = DockerContainer(os.environ.get("MONGO_IMAGE", "mongo:7")).with_exposed_ports(27017)
    mongo = mongo.with_command("--replSet rs0")
    mongo = mongo.waiting_for(LogMessageWaitStrategy("Waiting for connections"))
    redis: Any = RedisContainer(os.environ.get("REDIS_IMAGE", "redis:7"))
    try:
        await anyio.to_thread.run_sync(mongo.start)
        await anyio.to_thread.run_sync(redis.start)
        host = f"{mongo.get_container_host_ip()}:{mongo.get_exposed_port(27017)}"
        await anyio.to_thread.run_sync(_initiate, host)
        yield Settings(
            mongo_connection_string=f"mongodb://{host}/backtest-kit?directConnection=true",  # pyright: ignore[reportArgumentType]
            redis_host=redis.get_container_host_ip(),
            redis_port=int(redis.get_exposed_port(6379)),
        )
    finally:
        await anyio.to_thread.run_sync(redis.stop)
        await anyio.to_thread.run_sync(mongo.stop)


def _initiate(host: str) -> None:
    with MongoClient[dict[str, Any]](f"mongodb://{host}/?directConnection=true") as client:
        client.admin.command("replSetInitiate", {"_id": "rs0", "members": [{"_id": 0, "host": "localhost:27017"}]})
        while not client.admin.command("hello")["isWritablePrimary"]:
            pass


@asynccontextmanager
async def _environment() -> AsyncGenerator[Settings]:
    yield Settings()


Empty = Callable[[str], Awaitable[None]]
"""Removes what a test has stored; see the fixture `empty`."""

BACKENDS: dict[str, Callable[[], AbstractAsyncContextManager[Settings]]] = {
    "embedded": embedded,
    "testcontainers": _containers,
    "env": _environment,
}


@pytest.fixture(scope="session")
async def servers() -> AsyncIterator[Settings]:
    """One mongod (replica set) and one redis-server for the whole run."""
    async with BACKENDS[os.environ.get("CC_TEST_BACKEND", "embedded")]() as settings:
        yield settings


@pytest.fixture(scope="session", params=["motor", "pymongo"])
def driver(request: pytest.FixtureRequest) -> str:
    """Name a MongoDB driver; a test that uses it runs once for each."""
    return request.param


@pytest.fixture(scope="module")
async def empty(servers: Settings) -> AsyncIterator[Empty]:
    """Drop the database of that name, and the keys of Redis with that prefix, by clients that a module shares."""
    container = Container(servers)
    uri = servers.mongo_connection_string.get_secret_value()
    async with AsyncMongoClient[dict[str, Any]](uri, serverMonitoringMode="poll") as client:
        await client.admin.command("ping")  # its tasks are there before those of the first test

        async def empty(name: str) -> None:
            await client.drop_database(name)
            redis: Any = container.redis_service.client
            keys = [key async for key in redis.scan_iter(match=f"{name}:*", count=1000)]
            for start in range(0, len(keys), 1000):
                await redis.unlink(*keys[start : start + 1000])

        yield empty
    await container.close()


@pytest.fixture
async def settings(servers: Settings, driver: str, empty: Empty) -> AsyncIterator[Settings]:
    """Settings with a database and a Redis prefix for this test, which are emptied after it.

    The Redis deadline is long, so that a test of the cache does not depend on how busy the machine is.
    """
    name = f"test-{uuid4().hex[:12]}"
    uri = urlsplit(servers.mongo_connection_string.get_secret_value())._replace(path=f"/{name}").geturl()
    update: dict[str, Any] = {
        "mongo_connection_string": uri,
        "mongo_driver": driver,
        "mongo_timeout_ms": 30_000,
        "redis_key_prefix": f"{name}:",
        "redis_timeout_ms": 5_000,
    }
    yield Settings(**{**servers.model_dump(), **update})
    await empty(name)


@pytest.fixture
async def container(settings: Settings) -> AsyncIterator[Container]:
    """A container on a fresh database; each service prepares its collection when it is first used."""
    container = Container(settings)
    yield container
    await container.close()


@pytest.fixture
def persist(container: Container) -> Registry:
    """The registry under test."""
    return Registry(container)


@pytest.fixture
async def witness(settings: Settings) -> AsyncIterator[Registry]:
    """Another process: it shares nothing with the one under test but the servers."""
    async with Container(settings) as container:
        yield Registry(container)


@pytest.fixture
def warned(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """Return the events that the package has logged as warnings so far."""
    caplog.set_level(logging.WARNING, "backtest_persist")
    return lambda: [str(vars(record)["event"]) for record in caplog.records if record.name == "backtest_persist"]
