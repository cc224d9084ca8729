"""Settings: arguments beat the environment, which beats .env; bad values are named, secrets never shown."""

import pickle
from pathlib import Path
from typing import Any

import pytest

from backtest_persist import Container, Settings, SettingsError


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
    assert pickle.loads(pickle.dumps(settings)) == settings
