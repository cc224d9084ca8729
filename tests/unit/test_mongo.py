"""The MongoDB side of a container, as far as no server is needed."""

import asyncio
from collections.abc import Callable
from typing import Any, Literal

import pytest
from pydantic import SecretStr
from pymongo.errors import ConfigurationError

from backtest_persist import ClosedError, ErrorReason, Settings, SettingsError, StoreUnavailableError
from backtest_persist.connections import MongoService, MongoState, Operation
from backtest_persist.logger import LoggerService

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


async def test_a_preparation_that_another_caller_has_begun_is_waited_for_within_the_deadline() -> None:
    """Then the call is told that nothing was sent, and why."""
    mongo = service()

    async def prepare(state: MongoState) -> None:
        await asyncio.sleep(1)

    preparing = asyncio.create_task(mongo.prepared("signal-items", prepare, patience=1))
    await asyncio.sleep(0)
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
