"""A `mongodb+srv` URI while name servers are dead, silent or wrong: an outage like any other."""

import asyncio
from contextlib import aclosing
from typing import Literal

import pytest
from pydantic import SecretStr

from backtest_persist import Container, ErrorReason, Settings, StoreUnavailableError
from tests.support.name_server import name_server
from tests.support.proxy import mongo_proxy
from tests.support.servers import wait_until
from tests.support.stopwatch import GRACE, Stopwatch

DEADLINE = 2.0
"""Long enough for the words of the driver to come in time on a busy machine."""
SAID: dict[Literal["silent", "ignorant"], str] = {
    "silent": "no name server has resolved the host: The resolution lifetime expired after .*: Server Do53:127",
    "ignorant": r"resolved the host: The DNS query name does not exist: _mongodb\._tcp\..* Check the host in CC_MONGO",
}


async def test_an_outage_of_dns_is_an_outage(mongo_settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every call ends in time with the words of the driver; the same container works once DNS is back."""
    async with mongo_proxy(mongo_settings) as (proxy, through), name_server(proxy.port, monkeypatch) as dns:
        name = mongo_settings.redis_key_prefix.rstrip(":")
        uri = f"mongodb+srv://{dns.cluster}/{name}?tls=false&heartbeatFrequencyMS=500"
        update = {"mongo_connection_string": SecretStr(uri), "mongo_timeout_ms": int(DEADLINE * 1000)}
        settings = through.model_copy(update=update)
        container = Container(settings)
        db = container.signal_db_service
        for dns.state, said in SAID.items():
            for call in (lambda: db.upsert("s", "t", "e", {}), db.wait_for_init):
                with Stopwatch() as watch, pytest.raises(StoreUnavailableError, match=said) as caught:
                    await call()
                assert watch.seconds < DEADLINE + GRACE
                error = caught.value
                assert (error.reason, error.retryable) == (ErrorReason.CONNECTION, True)
                assert (error.host, error.setting) == (dns.cluster, "CC_MONGO_CONNECTION_STRING")
                assert error.__cause__ is None
        dns.state = "silent"
        patient = SecretStr(f"{uri}&connectTimeoutMS=3000")  # of a query
        async with aclosing(Container(settings.model_copy(update={"mongo_connection_string": patient}))) as other:
            with Stopwatch() as watch, pytest.raises(StoreUnavailableError, match=f"{dns.cluster}: no name server has"):
                await other.signal_db_service.find_all()
            assert watch.seconds < DEADLINE + GRACE
        dns.state = "answering"
        row = await db.upsert("s", "t", "e", {"n": 1})
        assert await db.find_all() == [row]
        await container.close()


async def test_a_client_that_was_closed_before_dns_answers_stays_closed(
    mongo_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer comes after `close`: no thread connects to the server, and no client is left open."""
    async with mongo_proxy(mongo_settings) as (proxy, through), name_server(proxy.port, monkeypatch) as dns:
        name = mongo_settings.redis_key_prefix.rstrip(":")
        uri = SecretStr(f"mongodb+srv://{dns.cluster}/{name}?tls=false&connectTimeoutMS=10000")  # of a query
        settings = through.model_copy(update={"mongo_connection_string": uri, "mongo_timeout_ms": 10_000})
        container = Container(settings)
        call = asyncio.create_task(container.mongo_service.ping())

        async def is_asked() -> bool:
            return bool(dns.unanswered)

        await wait_until(is_asked)
        call.cancel()
        await asyncio.wait([call])
        await container.close()
        dns.answer_late()
        async with Container(settings) as other:  # which takes longer than the answer to the first one
            await other.signal_db_service.upsert("s", "t", "e", {"n": 1})
        await proxy.wait_until_disconnected()
