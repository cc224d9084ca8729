"""Servers that fail on demand, and checks of what each test has left behind."""

import asyncio
import gc
import logging
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from pydantic import SecretStr
from pymongo import MongoClient

from backtest_persist import Container, Settings, embedded
from tests.support.fail_points import TEST_COMMANDS, Failing, failing_commands
from tests.support.servers import PrivateMongo
from tests.support.stopwatch import HANG


@pytest.fixture(autouse=True)
def one_document_per_context(request: pytest.FixtureRequest) -> Iterator[None]:
    """Whatever happened in a test, no context has two documents after it."""
    used = next((name for name in ("mongo_settings", "settings") if name in request.fixturenames), None)
    settings: Settings | None = request.getfixturevalue(used) if used else None
    yield
    if settings is None:
        return
    with MongoClient[dict[str, Any]](settings.mongo_connection_string.get_secret_value()) as client:
        database = client.get_default_database()
        for service in Container(settings).db_services:
            context = {name: f"${name}" for name in service.context_type.wire_names()}
            groups = [{"$group": {"_id": context, "count": {"$sum": 1}}}, {"$match": {"count": {"$gt": 1}}}]
            assert list(database[service.collection].aggregate(groups)) == [], service.collection


@pytest.fixture(autouse=True)
async def nothing_is_left_in_the_event_loop() -> AsyncIterator[None]:
    """Closed containers leave no task, and no exception that nobody has retrieved."""
    complaints: list[str] = []
    listener = logging.Handler(logging.ERROR)
    listener.emit = lambda record: complaints.append(record.getMessage())
    logging.getLogger("asyncio").addHandler(listener)
    before = asyncio.all_tasks()
    yield
    left = asyncio.all_tasks() - before - {asyncio.current_task()}
    if left:
        await asyncio.wait(left, timeout=HANG)
    assert [task for task in left if not task.done()] == []
    gc.collect()  # asyncio reports an exception that nobody has retrieved when the task is deleted
    logging.getLogger("asyncio").removeHandler(listener)
    assert complaints == []


@pytest.fixture(scope="session")
async def servers() -> AsyncIterator[Settings]:
    """One mongod with fail points and one redis-server."""
    async with embedded(mongod_options=TEST_COMMANDS) as settings:
        yield settings


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """Settings with an application name for this test alone, by which a fail point selects its clients."""
    uri = settings.mongo_connection_string.get_secret_value()
    name = settings.redis_key_prefix.rstrip(":")
    return settings.model_copy(
        update={"mongo_connection_string": SecretStr(f"{uri}&appName={name}&heartbeatFrequencyMS=500")}
    )


@pytest.fixture(scope="session")
async def mongo(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[PrivateMongo]:
    """A mongod that a test may kill, if it starts it again, and that may step down."""
    mongo = PrivateMongo(tmp_path_factory.mktemp("mongo"))
    await mongo.start()
    yield mongo
    await mongo.kill()


@pytest.fixture
def mongo_settings(settings: Settings, mongo: PrivateMongo) -> Settings:
    """Settings that lead to a database of this test in the private mongod."""
    name = settings.redis_key_prefix.rstrip(":")
    uri = mongo.uri.replace("/?", f"/{name}?") + "&heartbeatFrequencyMS=500"
    return settings.model_copy(update={"mongo_connection_string": SecretStr(uri)})


@pytest.fixture
def failing(settings: Settings) -> Failing:
    """Make mongod fail commands of the clients of this test; see `failing_commands`."""
    return failing_commands(settings)
