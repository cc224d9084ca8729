"""The Redis side of a container, as far as no server is needed: when Redis is asked, and what is logged."""

import logging

import pytest
from pydantic import SecretStr
from redis.asyncio import Redis

from backtest_persist import ErrorReason, Settings, SettingsError, StoreUnavailableError
from backtest_persist.connections import RedisService
from backtest_persist.connections.circuit import CircuitState
from backtest_persist.logger import LoggerService


@pytest.fixture
def redis() -> RedisService:
    """A service whose server nobody has started."""
    return RedisService(lambda: Settings(redis_port=1), LoggerService())


@pytest.fixture
def events(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """The log lines of the service."""
    caplog.set_level(logging.INFO, "backtest_persist")
    return caplog


def names(events: pytest.LogCaptureFixture) -> list[str]:
    return [str(vars(record)["event"]) for record in events.records]


async def attempt(redis: RedisService, error: Exception | None, kind: str = "GET") -> str:
    async def call() -> str:
        if error is not None:
            raise error
        return "answered"

    return await redis.attempt(kind, call, "skipped or failed")


ANSWERS = [
    ErrorReason.SERVER_ERROR,
    ErrorReason.NOT_PERMITTED,
    ErrorReason.UNAUTHENTICATED,
    ErrorReason.EVENT_LOOP,
]


@pytest.mark.parametrize("reason", ANSWERS)
async def test_an_answer_that_is_an_error_is_no_outage(
    redis: RedisService, events: pytest.LogCaptureFixture, reason: ErrorReason
) -> None:
    """However often it comes, Redis is asked again; it is logged once for each kind of command."""
    for kind in ("GET", "SET") * 5:
        assert await attempt(redis, StoreUnavailableError("No.", reason=reason), kind) == "skipped or failed"
    assert await attempt(redis, None) == "answered"
    assert redis._circuit.state is CircuitState.CLOSED
    assert names(events) == ["redis.refuses", "redis.refuses", "redis.back"]


async def test_silence_opens_the_circuit_at_once(redis: RedisService, events: pytest.LogCaptureFixture) -> None:
    """One caller pays for a deadline, and one line is logged."""
    await attempt(redis, StoreUnavailableError("Silence.", reason=ErrorReason.TIMEOUT))
    assert redis._circuit.state is CircuitState.OPEN
    assert await attempt(redis, None) == "skipped or failed"
    assert names(events) == ["redis.down"]


async def test_broken_connections_in_a_row_open_the_circuit(
    redis: RedisService, events: pytest.LogCaptureFixture
) -> None:
    """A single one costs little."""
    for state in (CircuitState.CLOSED, CircuitState.CLOSED, CircuitState.OPEN):
        await attempt(redis, StoreUnavailableError("Reset.", reason=ErrorReason.CONNECTION))
        assert redis._circuit.state is state
    assert names(events) == ["redis.down"]


async def test_new_settings_close_the_circuit(redis: RedisService) -> None:
    """They may lead to another server."""
    await attempt(redis, StoreUnavailableError("Silence.", reason=ErrorReason.TIMEOUT))
    redis.reconfigure()
    assert await attempt(redis, None) == "answered"


async def test_the_error_of_a_command_names_server_host_and_setting(redis: RedisService) -> None:
    """Never a user or a password."""
    with pytest.raises(StoreUnavailableError) as caught:
        await redis.ping()
    error = caught.value
    assert (error.server, error.host, error.setting) == ("Redis", "127.0.0.1:1", "CC_REDIS_HOST")
    assert (error.reason, error.retryable) == (ErrorReason.CONNECTION, True)
    await redis.close()


async def test_the_host_of_a_url_is_named_without_its_password() -> None:
    """The setting is that of the URL then."""
    url = SecretStr("redis://user:hunter2@127.0.0.1:1/0")
    redis = RedisService(lambda: Settings(redis_url=url), LoggerService())
    with pytest.raises(StoreUnavailableError) as caught:
        await redis.ping()
    assert (caught.value.host, caught.value.setting) == ("127.0.0.1:1", "CC_REDIS_URL")
    assert "hunter2" not in f"{caught.value} {vars(caught.value)}"
    await redis.close()


async def test_a_url_that_cannot_work_is_named_by_its_setting() -> None:
    """A program can say which one to correct."""
    redis = RedisService(lambda: Settings(redis_url=SecretStr("http://hunter2")), LoggerService())
    with pytest.raises(SettingsError) as caught:
        redis.check()
    assert caught.value.setting == "CC_REDIS_URL"
    assert "hunter2" not in str(caught.value)


def test_a_client_that_decodes_is_refused() -> None:
    """Answers are bytes here."""
    with pytest.raises(SettingsError, match="decode_responses"):
        RedisService(Settings, LoggerService(), Redis(decode_responses=True))
