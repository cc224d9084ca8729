"""Passwords show nowhere, whatever goes wrong, with all logging switched on."""

import asyncio
import logging
import multiprocessing
import pickle
import traceback
import warnings
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import pytest
from pydantic import SecretStr

from backtest_persist import (
    BacktestPersistError,
    Container,
    PersistSignalInstance,
    Registry,
    Settings,
    SettingsError,
)
from tests.support.cases import CASES, PAYLOAD
from tests.support.containers import open_container
from tests.support.locked_servers import ADMIN, replace_in_mongo_uri, replace_in_redis_url
from tests.support.public_calls import adapter_calls, cache_calls, db_calls, run_to_end

CANARIES = ("can@ry", "c%4nary", "canary:option", "canary-redis", "canary-kérberos")
SHOWN = {form for canary in CANARIES for form in (canary, quote(canary, safe=""), repr(canary)[1:-1])}
MONGO, PERCENT, OPTION, REDIS, ACCENT = (quote(canary, safe="") for canary in CANARIES)

PLACES: dict[str, dict[str, str]] = {
    "nobody listens": {
        "mongo_connection_string": f"mongodb://joe:{MONGO}@127.0.0.1:1/x",
        "redis_url": f"redis://joe:{REDIS}@127.0.0.1:1",
    },
    "no such host": {
        "mongo_connection_string": f"mongodb://joe:{PERCENT}@nowhere.invalid/x",
        "redis_url": f"redis://joe:{ACCENT}@nowhere.invalid",
    },
    "no such socket": {
        "mongo_connection_string": f"mongodb://joe:{MONGO}@%2Fnowhere%2Fmongod.sock/x",
        "redis_url": f"unix://joe:{REDIS}@/nowhere/redis.sock",
    },
    "parts": {
        "mongo_connection_string": f"mongodb://joe:{ACCENT}@127.0.0.1:1/x",
        "redis_port": "1",
        "redis_password": CANARIES[3],
    },
    "an option": {
        "mongo_connection_string": f"mongodb://127.0.0.1:1/x?tls=true&tlsCertificateKeyFilePassword={OPTION}",
        "redis_url": f"rediss://:{REDIS}@127.0.0.1:1?ssl_password={OPTION}",
    },
    "a property": {
        "mongo_connection_string": f"mongodb://joe:{MONGO}@127.0.0.1:1/x?authMechanism=PLAIN"
        f"&authMechanismProperties=SERVICE_NAME:{OPTION}",
        "redis_url": f"redis://127.0.0.1:1?password={REDIS}",
    },
    "not encoded": {
        "mongo_connection_string": "mongodb://joe:canary-redis@can@ry@127.0.0.1/x",
        "redis_url": "redis://joe:canary-redis/can@ry@127.0.0.1",
    },
    "no scheme": {
        "mongo_connection_string": f"joe:{MONGO}@127.0.0.1/x",
        "redis_url": f"joe:{REDIS}@127.0.0.1",
    },
    "another scheme": {
        "mongo_connection_string": f"mongo://joe:{MONGO}@127.0.0.1/x",
        "redis_url": f"http://joe:{REDIS}@127.0.0.1",
    },
    "no such file": {
        "mongo_connection_string": f"mongodb://joe:{MONGO}@h/x?tls=true&tlsCAFile=/nowhere"
        f"&tlsCertificateKeyFilePassword={OPTION}",
        "redis_url": f"rediss://joe:{REDIS}@127.0.0.1:1?ssl_ca_certs=/nowhere&ssl_password={OPTION}",
    },
    "an option that is none": {
        "mongo_connection_string": f"mongodb://joe:{MONGO}@127.0.0.1:1/x?passwort={OPTION}",
        "redis_url": f"redis://joe:{REDIS}@127.0.0.1:1?passwort={OPTION}",
    },
}


class Witness:
    """Everything a person could read: what is logged, warned of, and said by errors."""

    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        self._caplog = caplog
        self.texts: list[str] = []
        self.errors: list[BaseException] = []

    def saw(self, error: BaseException) -> None:
        self.errors.append(error)
        self.texts += traceback.format_exception(error)
        link: BaseException | None = error
        while link is not None:  # what is suppressed in a traceback, too
            self.texts += [str(link), repr(link)]
            link = link.__cause__ or link.__context__

    @property
    def loggers(self) -> set[str]:
        return {record.name for record in self._caplog.get_records("call")}

    def leaks(self) -> list[str]:
        logged = self._caplog.get_records("call")
        records = [f"{record.getMessage()} {vars(record)!r}" for record in logged]
        formatted = [logging.Formatter().format(record) for record in logged]
        said = [*self.texts, *records, *formatted]
        return [text for text in said if any(canary in text for canary in SHOWN)]


@pytest.fixture
def witness(caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> Iterator[Witness]:
    """Sees all records of all loggers, the drivers' as well, what is written to the terminal, and all errors."""
    caplog.set_level(logging.DEBUG)
    witness = Witness(caplog)
    yield witness
    witness.texts += capfd.readouterr()
    assert witness.leaks() == []


async def use(container: Container, witness: Witness) -> None:
    """One write and one read of every domain by every way, and the life of a container."""
    services = [container.mongo_service, container.redis_service, *container.db_services]
    steps: list[Any] = [container.wait_for_init(), container.mongo_service.ping(), container.redis_service.ping()]
    for case in CASES:
        calls = [*db_calls(container, case)[:1], *cache_calls(container, case)[:1], *adapter_calls(container, case)[:1]]
        steps += [run_to_end(call.make(**call.arguments)) for call in calls]
    for outcome in await asyncio.gather(*steps, return_exceptions=True):
        if isinstance(outcome, BaseException):
            witness.saw(outcome)
    witness.texts += [text for thing in (container, *services) for text in (repr(thing), str(thing), f"{thing}")]


@pytest.mark.parametrize("place", PLACES)
async def test_no_secret_shows_while_nothing_works(place: str, driver: str, witness: Witness) -> None:
    """With servers that cannot be reached, or settings that cannot work."""
    settings = Settings(mongo_driver=driver, mongo_timeout_ms=200, **PLACES[place])  # pyright: ignore[reportArgumentType]
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        async with open_container(settings) as container:
            await use(container, witness)
    witness.texts += [str(warning.message) for warning in warned]
    witness.texts += [repr(settings), str(settings), settings.model_dump_json(), repr(settings.model_dump())]
    assert len(witness.errors) > 15
    assert {type(error) for error in witness.errors if not isinstance(error, BacktestPersistError)} == set()


@pytest.mark.parametrize("server", ["mongo", "redis"])
async def test_no_secret_shows_when_a_password_is_wrong(
    settings: Settings, witness: Witness, server: str, driver: str
) -> None:
    """With servers that answer, and refuse; the drivers log at DEBUG what they send, but for passwords."""
    wrong = replace_in_mongo_uri if server == "mongo" else replace_in_redis_url
    settings = settings.model_copy(update={"mongo_timeout_ms": 5000})
    async with open_container(wrong(settings, f":{ADMIN[1]}@", f":{MONGO}@")) as container:
        await use(container, witness)
        if server == "redis":
            assert await container.signal_db_service.upsert("s", "t", "e", PAYLOAD)
    assert any("pymongo" in name for name in witness.loggers)
    assert len(witness.errors) > 15
    said = "check user and password" if server == "mongo" else "AuthenticationError"
    assert said in "".join(witness.texts)


async def test_the_drivers_log_payloads_at_debug_and_no_password(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    """The loggers of the drivers are as the page describes them; ours never logs a payload."""
    caplog.set_level(logging.DEBUG)
    async with open_container(settings) as container:
        await container.signal_db_service.upsert("s", "t", "e", {"note": "a payload"})
    lines = [(record.name, record.getMessage()) for record in caplog.records]
    assert "pymongo.command" in {name for name, text in lines if "a payload" in text}
    assert not [text for name, text in lines if name == "backtest_persist" and "a payload" in text]
    assert not [text for _, text in lines if ADMIN[1] in text]


def report(settings: Settings, answers: Any) -> None:
    """Run in another process: say what arrived."""
    answers.put((settings.redis_password.get_secret_value(), settings.model_fields_set))


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_settings_reach_a_process_that_multiprocessing_starts(method: str) -> None:
    """They are its argument, through the pipe between the two; no other pickle has them."""
    settings = Settings(redis_password=SecretStr(CANARIES[0]), redis_port=7)
    context: Any = multiprocessing.get_context(method)
    answers = context.SimpleQueue()
    process = context.Process(target=report, args=(settings, answers))
    process.start()
    assert answers.get() == (CANARIES[0], {"redis_password", "redis_port"})
    process.join()
    with pytest.raises(SettingsError, match="pickled"):
        answers.put(settings)


@pytest.mark.parametrize("given", ["mapping", "settings"])
def test_nothing_of_a_container_is_pickled(given: str) -> None:
    """Neither a container, nor a service or an adapter of it, whichever way it was given its passwords."""
    secrets = {"redis_password": CANARIES[0]}
    container = Container(secrets if given == "mapping" else Settings(**secrets))  # pyright: ignore[reportArgumentType]
    adapter = PersistSignalInstance("s", "t", "e", ioc=container)
    suffixes = ("mongo_service", "redis_service", "_cache_service", "_db_service")
    services = [value for name, value in vars(container).items() if name.endswith(suffixes)]
    assert len(services) == 2 + 2 * len(CASES)
    for thing in (container, *services, adapter, Registry(container)):
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
            with pytest.raises((SettingsError, TypeError, AttributeError)) as caught:
                pickle.dumps(thing, protocol)
            assert not any(canary in str(caught.value) for canary in SHOWN)
