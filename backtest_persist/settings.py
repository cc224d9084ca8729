"""Settings: arguments beat the environment, the environment beats ``.env``."""

from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, NonNegativeInt, PositiveInt, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from backtest_persist.errors import SettingsError

__all__ = ("DEFAULT_DATABASE", "Settings")

DEFAULT_DATABASE = "backtest-kit"


def _environment_name(field: str) -> str:
    return f"CC_{field.upper()}"


class Settings(BaseSettings):
    """Where the servers are and how long to wait for them.

    Every field is read from the environment (or ``.env``) under its name in capitals with the prefix ``CC_``;
    both spellings are accepted as arguments: ``Settings(redis_port=6380)`` or ``Settings(CC_REDIS_PORT=6380)``.
    Secrets never appear in a repr. A bad value or an unknown argument is a `SettingsError`, and so is a pickle, unless
    it goes to a child process that multiprocessing is starting.
    """

    model_config = SettingsConfigDict(
        alias_generator=_environment_name,
        populate_by_name=True,
        env_file=".env",
        env_file_encoding="utf-8",
        env_ignore_empty=True,
        extra="ignore",
        frozen=True,
        hide_input_in_errors=True,
        validate_default=False,
    )

    mongo_connection_string: SecretStr = SecretStr("mongodb://localhost:27017/backtest-kit?wtimeoutMS=15000")
    """MongoDB URI; its path names the database (``backtest-kit`` when it has none)."""

    mongo_driver: Literal["motor", "pymongo"] = "motor"
    """``motor``, or ``pymongo`` for PyMongo's own ``AsyncMongoClient``."""

    mongo_timeout_ms: PositiveInt = 5000
    """Deadline of one MongoDB operation, server selection and retries included, in ms."""

    mongo_max_pool_size: PositiveInt = 32
    """Connections to each MongoDB server at most."""

    redis_url: SecretStr | None = None
    """``redis://``, ``rediss://`` or ``unix://`` URL; replaces the four ``redis_*`` parts below."""

    redis_host: str = "127.0.0.1"
    """Host of Redis."""

    redis_port: int = Field(default=6379, ge=1, le=65535)
    """TCP port of Redis."""

    redis_user: str = ""
    """User of Redis; empty for the default user."""

    redis_password: SecretStr = SecretStr("")
    """Password of Redis; empty for none."""

    redis_timeout_ms: PositiveInt = 100
    """Deadline of one Redis command in ms; past it the operation goes on without the cache."""

    redis_max_connections: PositiveInt = 16
    """Connections to Redis at most; further callers wait for one."""

    redis_key_prefix: str = ""
    """Put before every Redis key, to keep databases apart that share one Redis."""

    id_memory: NonNegativeInt = 10_000
    """Ids of each domain that a process keeps in front of Redis, those used last; 0 keeps none."""

    candle_cache: bool = True
    """Whether stored candles put their ids into Redis (525,600 keys per symbol and year of 1m candles)."""

    candle_chunk_size: PositiveInt = 2500
    """Candles per bulk write."""

    candle_memory_mb: NonNegativeInt = 64
    """MiB of candles that a run keeps in memory at most; 0 keeps none."""

    allow_early_times: bool = False
    """Whether an int may be an instant of 1970 to March 1973; otherwise one that would be is refused as seconds."""

    if not TYPE_CHECKING:  # the type checker sees the fields as keyword arguments

        def __init__(self, **values: Any) -> None:
            known = {name for field in type(self).model_fields for name in (field, _environment_name(field))}
            known |= {"_env_file", "_env_file_encoding"}
            unknown = sorted(values.keys() - known)
            if unknown:
                raise SettingsError(f"Unknown setting {', '.join(unknown)}; the settings are {_names()}.")
            try:
                super().__init__(**values)
            except ValidationError as error:
                problems = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
                raise SettingsError(f"Bad setting: {problems}.") from None
            except UnicodeDecodeError:
                raise SettingsError("The .env file is not UTF-8; save it as UTF-8.") from None
            except OSError as error:
                raise SettingsError(f"The .env file cannot be read: {error.strerror}.") from None

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Allow it only on the way to a child process that multiprocessing is starting, as with its own secrets.

        That is a pipe between the two; any other pickle could end up in a file, a queue or a cache.
        """
        from multiprocessing.context import get_spawning_popen  # most processes never need it

        if get_spawning_popen() is None:
            raise SettingsError(
                "Settings hold passwords and are not pickled, except as an argument of a process that multiprocessing "
                "starts: Process(args=...), or initargs=... of a pool. Elsewhere read them anew in the other process."
            )
        return super().__reduce_ex__(protocol)


def _names() -> str:
    return ", ".join(sorted(_environment_name(field) for field in Settings.model_fields))


def load(settings: Settings | Mapping[str, Any] | None) -> Settings:
    """Return settings as they are, or build them from a mapping, or from the environment alone."""
    if isinstance(settings, Settings):
        return settings
    if settings is not None and not isinstance(settings, Mapping):
        raise SettingsError(
            f"Settings are a Settings or a mapping, not {type(settings).__name__}; write "
            "Settings(mongo_connection_string=...)."
        )
    return Settings(**{str(name): value for name, value in (settings or {}).items()})


def deferred(settings: Settings | Mapping[str, Any] | Callable[[], Settings] | None) -> Callable[[], Settings]:
    """Return what gives these settings, and loads them on its first call if they are not loaded yet."""
    return settings if callable(settings) else cache(partial(load, settings))
