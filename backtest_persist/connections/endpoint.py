"""Endpoints: where a connection leads, and what to do when there is no server, in words that fit the case."""

import re
from collections.abc import Callable
from dataclasses import dataclass

__all__ = ("NO_NAME_SERVER", "Endpoint", "Outage", "connection_advice", "start_advice", "unsupported")


@dataclass(frozen=True, slots=True)
class Outage:
    """Why a MongoDB client has no server that takes writes."""

    problem: str
    was_known: bool
    """Whether there was one before."""
    has_members: bool
    """Whether members of its replica set answer, none of which is the primary."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a connection leads, as errors name it; never with a user or a password."""

    server: str
    setting: str | None
    """The setting that the address comes from; None for a client that the container was given."""
    hosts: Callable[[], str | None]
    outage: Callable[[], Outage | None] = lambda: None
    was_known: Callable[[], bool] = lambda: False
    """Whether the server has answered before."""


_CA_OPTIONS = {"MongoDB": "tlsCAFile=", "Redis": "ssl_ca_certs="}
_TLS_OPTIONS = {"MongoDB": "tls=true in the connection string", "Redis": "rediss:// in CC_REDIS_URL"}


def connection_advice(said: str, endpoint: Endpoint) -> str:
    """Return what to do about TLS and passwords, by what a driver says; empty if it says nothing of them."""
    if re.search(r"CERTIFICATE_VERIFY_FAILED.*(mismatch|not valid for)", said):
        return "connect under a name that is in its certificate"
    if "CERTIFICATE_VERIFY_FAILED" in said:
        return f"name the CA that signed its certificate ({_CA_OPTIONS[endpoint.server]})"
    if "Authentication failed" in said:
        return "check user and password"
    if re.search("[Cc]onnection closed", said) and not endpoint.was_known():
        return f"a server that wants TLS needs {_TLS_OPTIONS[endpoint.server]}"
    return ""


NO_NAME_SERVER = "no name server has answered"
"""The words of an outage whose server is not resolved yet."""
_IS_HERE = re.compile(r"(?<![\w.-])(localhost|127\.\d+\.\d+\.\d+|\[?::1\]?)(?![\w.-])|\.sock\b|\bunix socket\b")
_IS_REFUSED = re.compile(r"refused|Connect call failed|No such file|Errno 2\b")
_HAS_NO_ADDRESS = re.compile(r"Name or service not known|nodename nor servname|name resolution|No address associated")
_OWN_SERVERS = {
    "MongoDB": "`docker compose up -d` starts servers here, `embedded()` private ones, and "
    "`persist.use_json(directory)` needs none",
    "Redis": "`docker compose up -d` starts servers here, and `embedded()` private ones",
}


def start_advice(said: str, endpoint: Endpoint, *, was_known: bool) -> str:
    """Return what to do about a server that cannot be used; one that refuses connections here is to be started."""
    setting = endpoint.setting or "the address of the client"
    if NO_NAME_SERVER in said:
        return "Check the name server and try again"
    if _HAS_NO_ADDRESS.search(said):
        return f"Check the host in {setting}, and the name server"
    if was_known and not (_IS_HERE.search(said) and _IS_REFUSED.search(said)):
        return "Check the server and try again"
    return f"Start it, or correct {setting}; {_OWN_SERVERS[endpoint.server]}"


def unsupported(mode: str, endpoint: Endpoint) -> str:
    """Return what is wrong with a Redis server in that mode (``cluster`` or ``sentinel``), and what to do."""
    setting = endpoint.setting or "the address of the client"
    if mode == "sentinel":
        return (
            f"the server is a Sentinel, which stores nothing; {setting} has to name the Redis that it watches, or "
            "give the container a client that asks it: redis_client=Sentinel(...).master_for(...)"
        )
    return (
        f"the server is a node of a Redis Cluster, which this package does not use; {setting} has to name a Redis "
        "that is not clustered. It holds ids only, so a small one is enough"
    )
