"""Settings: arguments beat the environment, which beats .env; bad values are named, secrets never shown."""

import copy
import pickle
import traceback
from pathlib import Path
from typing import Any

import pytest
import redis
from pydantic import SecretStr
from pymongo import MongoClient
from redis.asyncio import Redis, RedisCluster

from backtest_persist import Container, Settings, SettingsError, setup


@pytest.fixture(autouse=True)
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty directory and an environment without CC_* variables."""
    for name in Settings.model_fields:
        monkeypatch.delenv(f"CC_{name.upper()}", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_defaults_are_those_of_the_contract() -> None:
    """Localhost, the database backtest-kit, Motor, 5 s for MongoDB and 100 ms for Redis, no password."""
    settings = Settings()
    uri = settings.mongo_connection_string.get_secret_value()
    assert uri == "mongodb://localhost:27017/backtest-kit?wtimeoutMS=15000"
    assert (settings.redis_host, settings.redis_port, settings.redis_user) == ("127.0.0.1", 6379, "")
    assert settings.redis_password.get_secret_value() == ""
    assert (settings.mongo_driver, settings.mongo_timeout_ms, settings.redis_timeout_ms) == ("motor", 5000, 100)


def test_arguments_beat_the_environment_which_beats_the_env_file(
    nowhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each source is used where the ones before it say nothing; foreign lines in .env do not disturb."""
    (nowhere / ".env").write_text("CC_REDIS_HOST=from-file\nCC_REDIS_PORT=1\nCC_REDIS_USER=file\nOTHER=1\nCC_OTHER=2\n")
    monkeypatch.setenv("CC_REDIS_PORT", "2")
    monkeypatch.setenv("CC_REDIS_USER", "environment")
    settings = Settings(redis_user="argument")
    assert (settings.redis_host, settings.redis_port, settings.redis_user) == ("from-file", 2, "argument")
    arguments: dict[str, Any] = {"CC_REDIS_PORT": 3}
    assert Settings(**arguments).redis_port == 3


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"redis_port": "x"}, "redis_port"),
        ({"redis_port": 0}, "redis_port"),
        ({"mongo_driver": "odd"}, "mongo_driver"),
        ({"mongo_timeout_ms": -1}, "mongo_timeout_ms"),
        ({"redis_prot": 1}, "redis_prot"),
        ({"CC_REDIS_PASSWORT": "hunter2"}, "CC_REDIS_PASSWORT"),
    ],
)
def test_a_bad_setting_is_named(values: dict[str, Any], named: str) -> None:
    """A value that cannot work and a name that does not exist are a SettingsError without the value."""
    with pytest.raises(SettingsError, match=named) as caught:
        Settings(**values)
    assert "hunter2" not in str(caught.value)
    container = Container(values)  # no error yet: nothing is read before the first use
    with pytest.raises(SettingsError, match=named):
        _ = container.settings


def test_secrets_do_not_show() -> None:
    """Neither a repr nor a str of the settings or of a container has them."""
    secrets: dict[str, Any] = {
        "mongo_connection_string": "mongodb://joe:hunter2@h/x",
        "redis_url": "redis://:hunter2@h",
        "redis_password": "hunter2",
    }
    settings = Settings(**secrets)
    container = Container(settings)
    shown = [repr(settings), str(settings), repr(container), repr(vars(container)), settings.model_dump_json()]
    assert not [text for text in shown if "hunter2" in text]


def test_settings_are_not_pickled() -> None:
    """A pickle would hold the passwords; copies are made as before."""
    settings = Settings(redis_password=SecretStr("hunter2"))
    with pytest.raises(SettingsError, match="pickled"):
        pickle.dumps(settings)
    with pytest.raises(SettingsError, match="pickled"):
        pickle.dumps({"settings": settings})
    assert copy.deepcopy(settings) == copy.copy(settings) == settings.model_copy() == settings


def test_an_env_file_that_is_not_utf_8_is_named(nowhere: Path) -> None:
    """The error says what to do."""
    (nowhere / ".env").write_bytes(b"CC_REDIS_HOST=caf\xe9\n")
    with pytest.raises(SettingsError, match="UTF-8"):
        Settings()


@pytest.mark.parametrize("given", ["mongodb://joe:hunter2@h/x", 5, ["a"], {1: 2}])
def test_settings_are_a_mapping(given: Any) -> None:
    """Anything else is refused without being shown."""
    with pytest.raises(SettingsError) as caught:
        setup(given)
    assert "hunter2" not in str(caught.value)
    container = Container(given)
    with pytest.raises(SettingsError):
        _ = container.settings


UNUSABLE = [
    "mongodb://joe:hunter2@h/x?tls=true&tlsCAFile=/nowhere/ca.pem",
    "mongodb://joe:hunter2@h/a%00b",
    "mongodb://joe:hunter2@h/a%20b",
    "mongodb://joe:hunter2@h/x?w=0",
    "mongodb://joe:hunter2@h:70000/x",
    "",
]


@pytest.mark.parametrize("driver", ["motor", "pymongo"])
@pytest.mark.parametrize("uri", UNUSABLE)
async def test_a_mongo_uri_that_cannot_work_is_a_settings_error(uri: str, driver: str) -> None:
    """Whatever the driver raises, no write is left unacknowledged, and no secret is shown."""
    container = Container({"mongo_connection_string": uri, "mongo_driver": driver})
    with pytest.raises(SettingsError) as caught:
        await container.signal_db_service.upsert("s", "t", "e", {"n": 1})
    assert "hunter2" not in str(caught.value)
    await container.close()


BAD_URIS: dict[str, str] = {
    "": "it is empty",
    "'mongodb://joe:hunter2@h/x'": "it is in quotes",
    "mongodb://joe:hunter2@h/x\n": "a blank or a line break",
    "joe:hunter2@h:27017": "it has no scheme",
    "redis://joe:hunter2@h": "it is a Redis URL, which belongs into CC_REDIS_URL",
    "mongodb://joe:hun@ter2@h/x": "InvalidURI.*percent-encoded",
}


@pytest.mark.parametrize("uri", BAD_URIS)
async def test_each_bad_mongo_uri_has_a_sentence(uri: str) -> None:
    """It says what is wrong with this one, and quotes nothing of it."""
    container = Container({"mongo_connection_string": uri})
    with pytest.raises(SettingsError, match=f"^CC_MONGO_CONNECTION_STRING is not usable.*{BAD_URIS[uri]}") as caught:
        _ = container.mongo_service.client
    assert "hunt" not in "".join(traceback.format_exception(caught.value))
    await container.close()


ENCODE = "percent-encode user and password"
BAD_URLS: dict[str, str] = {
    "": "it is empty",
    " ": "it is empty",
    '"redis://:hunter2@h:6379/0"': "it is in quotes",
    "'redis://:hunter2@h:6379/0": "it is in quotes",
    "redis://:hunter2@h:6379/0 ": "a blank or a line break",
    "redis://:hunt er2@h:6379/0": "a blank or a line break",
    "redis://:hunter2@h:6379/0\n": "a blank or a line break",
    "redis://:hunter2#x@h:6379/0": "it holds a #",
    "redis://:hunter2@h:6379/0#x": "it holds a #",
    "redis://:hunter2/x@h:6379/0": rf"it holds a / or \? before the host; {ENCODE}",
    "redis://:hunter2?x@h:6379/0": rf"it holds a / or \? before the host; {ENCODE}",
    "h:6379": "it has no scheme",
    "joe:hunter2@h": "it has no scheme",
    "redis:/h": "it has no scheme",
    "http://:hunter2@h": "its scheme is not one of Redis",
    "REDIS://:hunter2@h": "its scheme is not one of Redis",
    "mongodb://joe:hunter2@h/x": "CC_MONGO_CONNECTION_STRING",
    "redis+sentinel://:hunter2@h:26379/mymaster/0": "Sentinel URLs are not supported; .*redis_client=Sentinel",
    "sentinel://h:26379": "Sentinel URLs are not supported",
    "rediss+cluster://:hunter2@a:1,b:2": "Redis Cluster is not supported; name a Redis that is not clustered",
    "redis://:hunter2@a:6379,b:6379/0": "it names several hosts; name one",
    "redis://:hunter2@h:port": "its port is no number",
    "redis://:hunter2@h:65536": "its port is no number",
    "redis://:hunter2@h:0": "its port is 0",
    "redis://:hunter2@[::1": "its host is no host name",
    "redis://:hunter2@h/hunter2": "its path is no number of a database",
    "redis://:hunter2@h/0/1": "its path is no number of a database",
    "redis://h?socket_keepaliv=hunter2": "its option number 1 is none that redis-py knows; is socket_keepalive meant",
    "redis://h?db=1&hunter2": "its option number 2 is none that redis-py knows",
    "redis://h?ssl_ca_certs=hunter2": "its option number 1 is none that redis-py knows",
    "redis://h?socket_timeout=hunter2": "the value of one of its options cannot be read",
    "unix://": "it has no path",
}


@pytest.mark.parametrize("url", BAD_URLS)
async def test_each_bad_redis_url_has_a_sentence(url: str) -> None:
    """It says what is wrong with this one, and quotes nothing of it."""
    container = Container({"redis_url": url})
    with pytest.raises(SettingsError, match=f"^CC_REDIS_URL is not usable: .*{BAD_URLS[url]}") as caught:
        container.redis_service.check()
    assert "hunt" not in "".join(traceback.format_exception(caught.value))
    assert caught.value.setting == "CC_REDIS_URL"
    await container.close()


BAD_HOSTS: dict[str, str] = {
    "redis://:hunter2@h:6379": "it is a URL; put it into CC_REDIS_URL",
    "h:6379": "the port into CC_REDIS_PORT",
    "[::1]": "leave the brackets out",
    "/run/redis.sock": "unix:///path into CC_REDIS_URL",
    "'h'": "quotes or blanks",
    "h ": "quotes or blanks",
    "a,b": "several hosts",
    "joe:hunter2@h": "CC_REDIS_USER and CC_REDIS_PASSWORD",
    "h/0": "no host name",
}


@pytest.mark.parametrize("host", BAD_HOSTS)
async def test_a_redis_host_is_a_host(host: str) -> None:
    """What belongs into other settings is told so."""
    container = Container({"redis_host": host})
    with pytest.raises(SettingsError, match=f"^CC_REDIS_HOST is not usable: .*{BAD_HOSTS[host]}") as caught:
        container.redis_service.check()
    assert caught.value.setting == "CC_REDIS_HOST"
    assert "hunter2" not in str(caught.value)
    await container.close()


@pytest.mark.parametrize(
    ("given", "host"),
    [
        ({"redis_host": "::1"}, "::1"),
        ({"redis_host": "cache-1.example.com"}, "cache-1.example.com"),
        ({"redis_url": "redis://"}, "localhost"),
        ({"redis_url": "redis://[::1]:7/"}, "::1"),
        ({"redis_url": "rediss://joe:p%23%2F%40%20@h:7/3?ssl_ca_certs=/x&health_check_interval=30"}, "h"),
        ({"redis_url": "redis://joe:p@ss@h:7?db=3&client_name=me"}, "h"),
        ({"redis_url": "unix://joe:p@/run/redis.sock?db=3"}, None),
    ],
    ids=str,
)
async def test_a_redis_address_that_works_is_not_refused(given: dict[str, Any], host: str | None) -> None:
    """Nothing but what cannot work is."""
    container = Container(given)
    client: Any = container.redis_service.client
    connection = client.connection_pool.make_connection()
    assert getattr(connection, "host", None) == host
    await container.close()


async def test_what_this_package_relies_on_wins_over_the_redis_url() -> None:
    """Answers stay bytes and the pool keeps its size; the rest of the URL applies."""
    container = Container({"redis_url": "redis://h:7/3?decode_responses=True&max_connections=1&client_name=me"})
    client: Any = container.redis_service.client
    pool = client.connection_pool
    assert (pool.connection_kwargs["decode_responses"], pool.max_connections) == (False, 16)
    assert [pool.connection_kwargs[name] for name in ("host", "port", "db", "client_name")] == ["h", 7, 3, "me"]
    await container.close()


async def test_an_injected_redis_client_returns_bytes() -> None:
    """One that decodes is refused at once."""
    client: Any = Redis(decode_responses=True)
    with pytest.raises(SettingsError, match="decode_responses"):
        Container(redis_client=client)
    await client.aclose()


REDIS_CLIENTS: list[Any] = [RedisCluster(host="localhost"), redis.Redis(), object()]
MONGO_CLIENTS: list[Any] = [MongoClient(connect=False), object()]


@pytest.mark.parametrize("client", REDIS_CLIENTS, ids=lambda client: type(client).__name__)
def test_an_injected_client_of_another_kind_is_refused_at_once(client: Any) -> None:
    """A client of a cluster, one that is not asynchronous, and anything else."""
    with pytest.raises(SettingsError, match=r"^The redis_client .*redis\.asyncio\.Redis"):
        Container(redis_client=client)


@pytest.mark.parametrize("client", MONGO_CLIENTS, ids=lambda client: type(client).__name__)
def test_an_injected_mongo_client_is_asynchronous(client: Any) -> None:
    """Anything else is refused at once, and told what to give instead."""
    with pytest.raises(SettingsError, match=r"^The mongo_client must be .*AsyncMongoClient"):
        Container(mongo_client=client)


def test_an_env_file_that_cannot_be_read_is_named(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory of that name is ignored; a file that this user may not read is an error."""
    (nowhere / ".env").write_text("CC_REDIS_HOST=x")
    real: Any = open

    def refused(file: Any, *arguments: Any, **options: Any) -> Any:
        if str(file).endswith(".env"):
            raise PermissionError(13, "Permission denied", str(file))
        return real(file, *arguments, **options)

    monkeypatch.setattr("builtins.open", refused)
    with pytest.raises(SettingsError, match=r"\.env file cannot be read: Permission denied"):
        Settings()
