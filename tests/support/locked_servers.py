"""Servers that need a password and TLS: MongoDB by itself, Redis behind a proxy that terminates the TLS.

By the proxy the tests do not depend on how redis-server was built. Neither server has a TCP port; the two proxies
listen on free ports of the loopback address.
"""

import asyncio
import ssl
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast
from urllib.parse import unquote, urlsplit

import trustme
from pydantic import SecretStr
from pymongo import AsyncMongoClient
from redis.asyncio import Redis

from backtest_persist import Settings, embedded

__all__ = (
    "ADMIN",
    "LockedServers",
    "locked_servers",
    "replace_in_mongo_uri",
    "replace_in_redis_url",
)

ADMIN = ("admin", "correct-horse")
"""User and password of the administrator of both servers."""


@dataclass(frozen=True)
class LockedServers:
    """A mongod and a redis-server that are locked, their administrator, and the files a client needs."""

    settings: Settings
    """Settings of the administrator, with the right CA and host name."""
    ca: Path
    """The CA that signed the certificate of both servers, which is for ``localhost`` only."""
    other_ca: Path
    """A CA that signed nothing."""


@asynccontextmanager
async def locked_servers(directory: Path) -> AsyncGenerator[LockedServers]:
    """Start both servers and create their administrator; the certificates are written to `directory`."""
    authority = trustme.CA()
    certificate = authority.issue_cert("localhost")
    ca, other_ca, server, key = (directory / name for name in ("ca.pem", "other-ca.pem", "server.pem", "key"))
    authority.cert_pem.write_to_path(ca)
    trustme.CA().cert_pem.write_to_path(other_ca)
    certificate.private_key_and_cert_chain_pem.write_to_path(server)
    key.write_text("k" * 64)  # by which the members of a replica set know each other; it turns authentication on
    key.chmod(0o600)
    options = [*("--keyFile", str(key)), *("--tlsMode", "preferTLS"), *("--tlsCertificateKeyFile", str(server))]
    options += [*("--tlsCAFile", str(ca)), "--tlsAllowConnectionsWithoutCertificates"]
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    cast("Any", certificate).configure_cert(context)
    user, password = ADMIN
    async with embedded(mongod_options=options) as inside:
        assert inside.redis_url is not None
        mongo_uri, redis_url = inside.mongo_connection_string.get_secret_value(), inside.redis_url.get_secret_value()
        async with AsyncMongoClient[dict[str, Any]](mongo_uri) as client:  # the first user needs no password
            await client.admin.command("createUser", user, pwd=password, roles=["root"])
        async with AsyncMongoClient[dict[str, Any]](
            mongo_uri, username=user, password=password, authSource="admin"
        ) as client:
            await client.admin.command("setParameter", 1, tlsMode="requireTLS")
        async with cast("Any", Redis).from_url(redis_url) as redis:
            await redis.execute_command("ACL", "SETUSER", user, "on", f">{password}", "~*", "+@all")
            await redis.execute_command("ACL", "SETUSER", "default", "off")
        async with (
            _forwarded(unquote(urlsplit(mongo_uri).netloc), None) as mongo_port,
            _forwarded(unquote(urlsplit(redis_url).path), context) as redis_port,
        ):
            tls = f"directConnection=true&authSource=admin&tls=true&tlsCAFile={ca}"
            mongo = f"mongodb://{user}:{password}@localhost:{mongo_port}/?{tls}"
            redis = f"rediss://{user}:{password}@localhost:{redis_port}?ssl_ca_certs={ca}"
            settings = Settings(mongo_connection_string=SecretStr(mongo), redis_url=SecretStr(redis))
            yield LockedServers(settings, ca, other_ca)


@asynccontextmanager
async def _forwarded(path: str, context: ssl.SSLContext | None) -> AsyncGenerator[int]:
    """Forward a TCP port to a Unix socket and yield the port; with a context, TLS is terminated here."""
    tasks: set[asyncio.Task[None]] = set()

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = cast("asyncio.Task[None]", asyncio.current_task())
        tasks.add(task)
        try:
            upstream_reader, upstream_writer = await asyncio.open_unix_connection(path)
            await asyncio.gather(_copy(reader, upstream_writer), _copy(upstream_reader, writer))
        finally:
            tasks.discard(task)

    server = await asyncio.start_server(forward, "127.0.0.1", 0, ssl=context)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        with suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
    finally:
        writer.transport.abort()


def replace_in_mongo_uri(settings: Settings, old: str, new: str) -> Settings:
    """Return the settings with a part of the connection string replaced."""
    uri = settings.mongo_connection_string.get_secret_value()
    assert old in uri
    return settings.model_copy(update={"mongo_connection_string": SecretStr(uri.replace(old, new))})


def replace_in_redis_url(settings: Settings, old: str, new: str) -> Settings:
    """Return the settings with a part of the Redis URL replaced."""
    assert settings.redis_url is not None
    url = settings.redis_url.get_secret_value()
    assert old in url
    return settings.model_copy(update={"redis_url": SecretStr(url.replace(old, new))})
