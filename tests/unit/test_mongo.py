"""The MongoDB side of a container, as far as no server is needed."""

import asyncio
import time
import traceback
from collections.abc import Callable
from typing import Any, Literal

import pytest
from pydantic import SecretStr
from pymongo.errors import ConfigurationError

from backtest_persist import ClosedError, ErrorReason, Settings, SettingsError, StoreUnavailableError
from backtest_persist.connections import MongoService, MongoState, Operation
from backtest_persist.connections.drivers import open_client
from backtest_persist.connections.selection import ServerSelection
from backtest_persist.logger import LoggerService
from tests.support.stopwatch import HANG, Stopwatch

DRIVERS: tuple[Literal["motor", "pymongo"], ...] = ("motor", "pymongo")
SESSIONLESS = ConfigurationError("Sessions are not supported by this MongoDB deployment")


def service(uri: str = "mongodb://user:hunter2@localhost:1/test", **options: Any) -> MongoService:
    settings = Settings(mongo_connection_string=SecretStr(uri), mongo_timeout_ms=200, **options)
    return MongoService(lambda: settings, LoggerService())


@pytest.mark.parametrize("driver", DRIVERS)
async def test_the_error_of_an_operation_names_server_host_and_setting(driver: str) -> None:
    """Never a user or a password."""
    mongo = service(mongo_driver=driver)
    with pytest.raises(StoreUnavailableError) as caught:
        await mongo.ping()
    error = caught.value
    assert (error.server, error.host, error.setting) == ("MongoDB", "localhost:1", "CC_MONGO_CONNECTION_STRING")
    assert (error.reason, error.retryable) == (ErrorReason.TIMEOUT, True)
    assert "hunter2" not in f"{error} {vars(error)}"
    await mongo.close()


@pytest.mark.parametrize("uri", ["mongodb://", "http://hunter2", "mongodb://localhost/?w=0"])
async def test_a_connection_string_that_cannot_work_is_named_by_its_setting(uri: str) -> None:
    """A program can say which one to correct."""
    with pytest.raises(SettingsError) as caught:
        _ = service(uri).client
    assert caught.value.setting == "CC_MONGO_CONNECTION_STRING"
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("driver", DRIVERS)
async def test_a_client_that_does_not_number_its_writes_is_refused(driver: Any) -> None:
    """Without transaction numbers a late write can overwrite a later one, whoever opened the client."""
    uri = "mongodb://user:hunter2@localhost:1/test?retryWrites=false"
    for mongo, setting in (
        (service(uri, mongo_driver=driver), "CC_MONGO_CONNECTION_STRING"),
        (MongoService(Settings, LoggerService(), open_client(driver, uri, {})), None),
    ):
        with pytest.raises(SettingsError, match=r"retryWrites=false .* say retryWrites=true") as caught:
            _ = mongo.client
        assert caught.value.setting == setting
        assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("driver", DRIVERS)
async def test_options_of_the_connection_string_win(driver: Any) -> None:
    """Every one that docs/settings.md names; without them the settings apply."""

    def options(uri: str) -> tuple[Any, ...]:
        client = service(uri, mongo_driver=driver, mongo_max_pool_size=7).client
        pool = client.options.pool_options
        seconds = (client.options.server_selection_timeout, pool.connect_timeout, client.options.timeout)
        return (*seconds, pool.max_pool_size, pool.appname)

    assert options("mongodb://localhost:1/test") == (0.2, 0.2, 0.2, 7, "backtest-persist")
    given = "serverselectiontimeoutms=800&connectTimeoutMS=900;TIMEOUTMS=1000&maxPoolSize=3&appName=mine"
    assert options(f"mongodb://localhost:1/test?{given.replace(';', '&')}") == (0.8, 0.9, 1.0, 3, "mine")
    assert service("mongodb://localhost:1/test?timeoutMS=1000").seconds == 1.0


@pytest.mark.parametrize("driver", DRIVERS)
async def test_the_wait_for_a_server_is_as_short_as_the_connection_string_says(driver: Any) -> None:
    """Not as long as an operation may take; the first one to wait does not shorten or lengthen the wait of another."""
    mongo = service("mongodb://127.0.0.1:1/test?serverSelectionTimeoutMS=300&timeoutMS=5000", mongo_driver=driver)

    def is_right(started: float, watch: Stopwatch) -> bool:
        return time.monotonic() - started > 0.28 and watch.seconds < 0.45

    async def ping(pause: float) -> bool:
        await asyncio.sleep(pause)
        started = time.monotonic()
        no_server = pytest.raises(
            StoreUnavailableError, match=r"no primary answers: 127\.0\.0\.1:1: .*docker compose up"
        )
        with Stopwatch() as watch, no_server as caught:
            await mongo.ping()
        assert "TopologyDescription" not in str(caught.value)
        assert "site-packages" not in "".join(traceback.format_exception(caught.value))  # lines of the driver
        return is_right(started, watch)

    assert await asyncio.gather(*(ping(pause) for pause in (0, 0.1, 0.25))) == [True] * 3
    started = time.monotonic()
    no_server = pytest.raises(StoreUnavailableError, match="no primary answers")
    with Stopwatch() as watch, no_server, mongo.accept() as state:
        await state.select_server(Operation("find"))
    assert is_right(started, watch)
    await mongo.close()


@pytest.mark.parametrize("driver", DRIVERS)
async def test_closing_ends_the_wait_for_a_server(driver: Any) -> None:
    """Neither a call that waits is cancelled by it, nor is a task left behind."""
    before = asyncio.all_tasks()
    mongo = service("mongodb://127.0.0.1:1/test?serverSelectionTimeoutMS=150&timeoutMS=5000", mongo_driver=driver)
    calls = [asyncio.create_task(mongo.ping()) for _ in range(3)]
    await asyncio.sleep(0.01)
    await mongo.close()
    ends = await asyncio.gather(*calls, return_exceptions=True)
    assert {type(end) for end in ends} == {StoreUnavailableError}
    await asyncio.sleep(0)
    assert {task for task in asyncio.all_tasks() - before if "selection" in repr(task)} == set()


async def test_whether_the_event_loop_has_a_client() -> None:
    """It has from the first use on, until the service is closed."""
    mongo = service()
    assert not mongo.has_client
    assert mongo.client is mongo.client
    assert mongo.has_client
    await mongo.close()
    assert not mongo.has_client
    with pytest.raises(ClosedError):
        mongo.accept()


class Work:
    """A collection's calls in an event loop, which can be drained."""

    def __init__(self, state: MongoState) -> None:
        self.state = state
        self.ends: list[str] = []

    async def drain(self) -> None:
        self.ends.append("drain")

    async def settle(self) -> None:
        self.ends.append("settle")

    async def end(self) -> None:
        self.ends.append("end")


async def test_what_works_on_a_collection_is_made_once_and_drained_before_the_end() -> None:
    """One for each collection, for one client."""
    mongo = service()
    with mongo.accept() as state:
        work = state.per_collection("signal-items", Work)
        assert state.per_collection("signal-items", Work) is work
        assert state.per_collection("log-items", Work) is not work
        assert work.state is state
    await mongo.close()
    assert work.ends[0] == "drain"
    assert work.ends.count("end") == 1
    assert work.ends[-1] == "end"


async def test_closing_waits_for_the_calls_in_progress() -> None:
    """As long as one operation may take."""
    mongo = service()
    over: list[str] = []

    async def call() -> None:
        with mongo.accept():
            await asyncio.sleep(0.05)
            over.append("call")

    task = asyncio.create_task(call())
    await asyncio.sleep(0)
    await mongo.close()
    assert over == ["call"]
    await task


async def test_a_preparation_that_another_caller_has_begun_is_waited_for_within_the_deadline(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Then the call is told that nothing was sent, and why: there is no server, or an index is being built."""
    mongo = service()

    async def prepare(state: MongoState) -> None:
        await asyncio.Event().wait()

    preparing = asyncio.create_task(mongo.prepared("signal-items", prepare, patience=HANG))
    await asyncio.sleep(0)
    with pytest.raises(StoreUnavailableError, match="signal-items: no primary answers: localhost:1 "):
        await mongo.prepared("signal-items", prepare)
    monkeypatch.setattr(ServerSelection, "is_known", True)
    with pytest.raises(StoreUnavailableError, match="Nothing was asked of signal-items") as caught:
        await mongo.prepared("signal-items", prepare)
    assert (caught.value.collection, caught.value.reason) == ("signal-items", ErrorReason.BUSY)
    preparing.cancel()
    await asyncio.wait([preparing])
    await mongo.close()


ERRORS: dict[str, Callable[[MongoState], Exception]] = {
    "the driver's": lambda state: SESSIONLESS,
    "ours": lambda state: StoreUnavailableError("No sessions.", reason=ErrorReason.NO_SESSIONS),
}


@pytest.mark.parametrize("error", ERRORS.values(), ids=ERRORS)
async def test_what_a_connection_without_sessions_refuses_is_sent_again(
    error: Callable[[MongoState], Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By another one, whether the error was translated or not; any other error is raised."""
    mongo = service()
    sent: list[str] = []
    with mongo.accept() as state:

        async def send() -> str:
            sent.append("sent")
            if len(sent) < 3:
                raise error(state)
            raise LookupError

        with pytest.raises(LookupError):
            await state.by_session(send)
    assert len(sent) == 3
    await mongo.close()


async def test_errors_that_others_raise_for_a_state_name_its_server() -> None:
    """A batch, whose deadline has passed, and a part of a batch."""
    mongo = service()
    operation = Operation("write", "signal-items", write=True)
    with mongo.accept() as state:
        assert state.timed_out(operation).host == "localhost:1"
        with pytest.raises(StoreUnavailableError) as caught, state.errors(operation):
            raise SESSIONLESS
        assert caught.value.host == "localhost:1"
    await mongo.close()
