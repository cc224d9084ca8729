"""Servers of these tests' own: mongod with its fail points switched on, so that it answers with errors on demand."""

import asyncio
import gc
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import pytest
from pydantic import SecretStr
from pymongo import AsyncMongoClient, MongoClient

from backtest_persist import Container, Settings, embedded
from tests.support.servers import OwnMongo

Failing = Callable[..., AbstractAsyncContextManager[None]]


@pytest.fixture(autouse=True)
def one_document_of_a_context(request: pytest.FixtureRequest) -> Iterator[None]:
    """Whatever has happened: when a test is over, no context has two documents."""
    used = next((name for name in ("own", "settings") if name in request.fixturenames), None)
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
    """When the containers of a test are closed, their tasks have ended, and no error of one was lost."""
    complaints: list[str] = []
    listener = logging.Handler(logging.ERROR)
    listener.emit = lambda record: complaints.append(record.getMessage())
    logging.getLogger("asyncio").addHandler(listener)
    before = asyncio.all_tasks()
    yield
    left = asyncio.all_tasks() - before - {asyncio.current_task()}
    if left:
        await asyncio.wait(left, timeout=3)
    assert [task for task in left if not task.done()] == []
    gc.collect()  # an exception that nobody has seen is told of when its task is
    logging.getLogger("asyncio").removeHandler(listener)
    assert complaints == []


@pytest.fixture(scope="session")
async def servers() -> AsyncIterator[Settings]:
    """One mongod with fail points and one redis-server."""
    async with embedded(mongod_options=("--setParameter", "enableTestCommands=1")) as settings:
        yield settings


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """Settings whose clients have an application name of the test's own, by which a fail point tells them apart."""
    uri = settings.mongo_connection_string.get_secret_value()
    name = settings.redis_key_prefix.rstrip(":")
    return settings.model_copy(
        update={"mongo_connection_string": SecretStr(f"{uri}&appName={name}&heartbeatFrequencyMS=500")}
    )


@pytest.fixture(scope="session")
async def mongo(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[OwnMongo]:
    """A mongod that a test may kill, if it starts it again, and whose primary may step down."""
    mongo = OwnMongo(tmp_path_factory.mktemp("mongo"))
    await mongo.start()
    yield mongo
    await mongo.kill()


@pytest.fixture
def own(settings: Settings, mongo: OwnMongo) -> Settings:
    """Settings that lead to that mongod, and to a database of the test's own."""
    name = settings.redis_key_prefix.rstrip(":")
    uri = mongo.uri.replace("/?", f"/{name}?") + "&heartbeatFrequencyMS=500"
    return settings.model_copy(update={"mongo_connection_string": SecretStr(uri)})


@pytest.fixture
def failing(settings: Settings) -> Failing:
    """Make mongod fail the next such command of the clients of this test, as the data of the fail point says.

    With `after`, so many pass, and all that follow fail. It is an error when there was none to fail.
    """
    uri = settings.mongo_connection_string.get_secret_value()

    @asynccontextmanager
    async def fail(*commands: str, times: int = 1, after: int = 0, **data: Any) -> AsyncGenerator[None]:
        name = settings.redis_key_prefix.rstrip(":")
        async with AsyncMongoClient[dict[str, Any]](uri, appName="tests") as client:
            fail_point = {"failCommands": list(commands), "appName": name, **data}
            command: dict[str, Any] = {"configureFailPoint": "failCommand"}
            mode = {"skip": after} if after else {"times": times}
            before = (await client.admin.command({**command, "mode": mode, "data": fail_point}))["count"]
            try:
                yield
            finally:
                count = (await client.admin.command({**command, "mode": "off"}))["count"]  # since the server started
            assert count > before, f"no {' or '.join(commands)} has failed"

    return fail
