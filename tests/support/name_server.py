"""A name server that can be dead, silent or wrong, and the names that it knows."""

import asyncio
import socket
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any, Literal

import dns.asyncresolver
import dns.message
import dns.rcode
import dns.resolver
import dns.rrset
import pytest

__all__ = ("NameServer", "name_server")

CLUSTER = "cluster.backtest.example"
"""The host of a ``mongodb+srv`` URI."""
MEMBER = "member.backtest.example"


class NameServer(asyncio.DatagramProtocol):
    """Answers DNS queries of this process."""

    cluster = CLUSTER

    def __init__(self, member_port: int) -> None:
        self.member_port = member_port
        self.state: Literal["silent", "ignorant", "answering"] = "silent"
        self.unanswered: list[tuple[bytes, Any]] = []
        """The queries that came while it was silent."""
        self._transport: Any = None

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def answer_late(self) -> None:
        """Answer from now on, those queries as well that have had no answer so far."""
        self.state = "answering"
        while self.unanswered:
            self.datagram_received(*self.unanswered.pop())

    @property
    def port(self) -> int:
        """The UDP port."""
        return self._transport.get_extra_info("sockname")[1]

    def datagram_received(self, data: bytes, addr: Any) -> None:
        if self.state == "silent":
            self.unanswered.append((data, addr))
            return
        query = dns.message.from_wire(data)
        answer = dns.message.make_response(query)
        [question] = query.question
        if self.state == "ignorant":
            answer.set_rcode(dns.rcode.NXDOMAIN)
        elif str(question.name) == f"_mongodb._tcp.{CLUSTER}.":
            answer.answer.append(
                dns.rrset.from_text(question.name, 60, "IN", "SRV", f"0 0 {self.member_port} {MEMBER}.")
            )
        self._transport.sendto(answer.to_wire(), addr)


@asynccontextmanager
async def name_server(member_port: int, monkeypatch: pytest.MonkeyPatch) -> AsyncGenerator[NameServer]:
    """Run a name server, the only one that this process asks; it knows a cluster of one member, on that port here."""
    loop = asyncio.get_running_loop()
    transport, server = await loop.create_datagram_endpoint(lambda: NameServer(member_port), ("127.0.0.1", 0))
    for module in (dns.resolver, dns.asyncresolver):
        resolver: Any = module.Resolver(configure=False)
        resolver.nameservers, resolver.port = ["127.0.0.1"], server.port
        monkeypatch.setattr(module, "default_resolver", resolver)
    resolve: Any = socket.getaddrinfo

    def resolve_member(host: Any, *arguments: Any, **options: Any) -> Any:
        return resolve("127.0.0.1" if host == MEMBER else host, *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", resolve_member)
    try:
        yield server
    finally:
        transport.close()
