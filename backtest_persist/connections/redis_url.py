"""Redis settings: the options of a connection, and what is wrong with a URL or a host that cannot work."""

import ipaddress
import re
from contextlib import suppress
from difflib import get_close_matches
from inspect import signature
from typing import Any
from urllib.parse import urlsplit

from redis.asyncio.connection import Connection, SSLConnection, UnixDomainSocketConnection, parse_url

from backtest_persist.errors import SettingsError
from backtest_persist.settings import Settings

__all__ = ("connection_options", "describe_bad_url")

_URL = "CC_REDIS_URL"
_HOST = "CC_REDIS_HOST"
_FORM = "write redis://host:6379/0, rediss:// for TLS, or unix:///path"
_ENCODE = "percent-encode user and password (# is %23, / is %2F, ? is %3F, @ is %40, : is %3A)"


def connection_options(settings: Settings) -> dict[str, Any]:
    """Return what the settings say about a connection, as redis-py takes it; `SettingsError` if that cannot work."""
    if settings.redis_url is None:
        _check_host(settings.redis_host)
        return {
            "host": settings.redis_host,
            "port": settings.redis_port,
            "username": settings.redis_user or None,
            "password": settings.redis_password.get_secret_value() or None,
        }
    url = settings.redis_url.get_secret_value()
    problem = describe_bad_url(url)
    if problem is None:
        with suppress(ValueError):  # whose message can quote the URL
            return dict(parse_url(url))
        problem = f"the value of one of its options cannot be read; {_FORM}, and options as redis-py knows them"
    raise SettingsError(f"{_URL} is not usable: {problem}.", setting=_URL)


def _check_host(host: str) -> None:
    problem = None
    if "://" in host:
        problem = f"it is a URL; put it into {_URL}"
    elif host.startswith("/"):
        problem = f"it is a path; for a Unix socket write unix:///path into {_URL}"
    elif re.search(r"[\s'\"]", host):
        problem = "it holds quotes or blanks; remove them"
    elif "," in host:
        problem = "it names several hosts; name one"
    elif "@" in host:
        problem = "it holds a user or a password; put them into CC_REDIS_USER and CC_REDIS_PASSWORD"
    elif ":" in host and not _is_ipv6(host):
        problem = "it holds a port or brackets; put the port into CC_REDIS_PORT, and leave the brackets out"
    elif not re.fullmatch(r"[^/?#\\]+", host):
        problem = "it is no host name"
    if problem is not None:
        raise SettingsError(f"{_HOST} is not usable: {problem}.", setting=_HOST)


def _is_ipv6(host: str) -> bool:
    try:
        ipaddress.IPv6Address(host)
    except ValueError:
        return False
    return True


def describe_bad_url(url: str) -> str | None:
    """Return what is wrong with a Redis URL and what to do, without quoting it; None if nothing is."""
    for find in (_bad_text, _bad_scheme, _bad_address, _bad_option):
        problem = find(url)
        if problem is not None:
            return problem
    return None


def _bad_text(url: str) -> str | None:
    if not url.strip():
        return f"it is empty; {_FORM}, or leave it out"
    if url.strip()[0] in "'\"`" or url.strip()[-1] in "'\"`":
        return "it is in quotes, which belong to the value here; remove them"
    if re.search(r"\s", url):
        return f"it holds a blank or a line break; remove it, or {_ENCODE} (a blank is %20)"
    return None


def _bad_scheme(url: str) -> str | None:
    scheme, separator, _ = url.partition("://")
    if not separator:
        return f"it has no scheme; {_FORM}"
    scheme = scheme.lower()
    if "sentinel" in scheme:
        return (
            "Sentinel URLs are not supported; name the Redis itself, or give the container a client that asks the "
            "Sentinels: Container(settings, redis_client=Sentinel([(host, 26379)]).master_for(service)), with the "
            "Sentinel of redis.asyncio"
        )
    if "cluster" in scheme:
        return (
            "Redis Cluster is not supported; name a Redis that is not clustered, by redis://host:6379/0. It holds ids "
            "only, so a small one is enough"
        )
    if scheme.startswith("mongodb"):
        return "it is a MongoDB URI, which belongs into CC_MONGO_CONNECTION_STRING"
    if scheme not in ("redis", "rediss", "unix") or url[: len(scheme)] != scheme:
        return f"its scheme is not one of Redis; {_FORM}"
    return None


def _bad_address(url: str) -> str | None:
    if "#" in url:
        return f"it holds a #, which ends a URL; {_ENCODE}"
    try:
        parts = urlsplit(url)
    except ValueError:  # its message quotes the URL
        return f"its host is no host name; {_FORM}, and {_ENCODE}"
    _, _, server = parts.netloc.rpartition("@")
    if parts.scheme == "unix":
        return None if parts.path.strip("/") else "it has no path; write unix:///path/of/the/socket"
    if "@" in parts.path + parts.query.partition("=")[0]:
        return f"it holds a / or ? before the host; {_ENCODE}"
    if "," in server:
        return "it names several hosts; name one, as neither Sentinel nor Cluster is supported"
    try:
        port = parts.port
    except ValueError:
        return f"its port is no number from 1 to 65535; {_FORM}, and {_ENCODE}"
    if port == 0:
        return f"its port is 0; {_FORM}"
    if not re.fullmatch(r"/?\d*", parts.path):
        return f"its path is no number of a database; {_FORM}"
    return None


_TYPES: dict[str, type[Any]] = {"redis": Connection, "rediss": SSLConnection, "unix": UnixDomainSocketConnection}


def _bad_option(url: str) -> str | None:
    parts = urlsplit(url)
    known = _option_names(_TYPES[parts.scheme])
    for number, option in enumerate(filter(None, parts.query.split("&")), 1):
        name, separator, _ = option.partition("=")
        if name in known and separator:
            continue
        close = get_close_matches(name, known, 1)  # the name itself can be a part of a password
        meant = f"; is {close[0]} meant?" if close else ""
        return f"its option number {number} is none that redis-py knows{meant}"
    return None


def _option_names(connection: type[Any]) -> set[str]:
    names = {"max_connections"}  # of the pool
    for kind in connection.__mro__:
        names |= signature(kind.__init__).parameters.keys()
    return names - {"self", "args", "kwargs"}
