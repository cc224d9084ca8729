"""Unusable components are refused in every place, before anything is sent."""

import asyncio
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import quote

import pytest

from backtest_persist import Container, InvalidKeyError, InvalidPayloadError, StoreUnavailableError
from tests.support.cases import CASES, Case
from tests.support.public_calls import PublicCall, adapter_calls, cache_calls, db_calls, run_to_end

BAD: list[Any] = [{"$gt": ""}, {}, ["a"], [], re.compile("."), b"a", "", "a\0b", "\ud800", None]
PLACES = {
    *("backtest", "bucket", "bucket_name", "entry_id", "entry_key", "exchange_name", "frame_name", "interval", "key"),
    *("memory_id", "notification_id", "risk_name", "signal_id", "strategy_name", "symbol", "timestamp"),
}
LISTS = {"entries", "notifications", "payloads", "signals"}
"""Lists of payloads, each with its key in ``id``."""
WITHOUT_CONTEXT = {"dispose", "wait_for_init"}
"""Methods of an adapter that do not check its context, as the registry has."""


class Silent:
    """Two servers that count the connections to them, and close each at once."""

    def __init__(self, directory: Path, driver: str) -> None:
        self.connections = 0
        self._sockets = [directory / name for name in ("mongodb-1.sock", "redis.sock")]
        mongo, redis = self._sockets
        self.container = Container(
            {
                "mongo_connection_string": f"mongodb://{quote(str(mongo), safe='')}/x?directConnection=true",
                "mongo_driver": driver,
                "mongo_timeout_ms": 500,
                "redis_url": f"unix://{redis}",
            }
        )

    async def listen(self) -> list[asyncio.Server]:
        return [await asyncio.start_unix_server(self._hang_up, path) for path in self._sockets]

    def _hang_up(self, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        writer.close()


@pytest.fixture
async def silent(driver: str) -> AsyncIterator[Silent]:
    """A container of servers that count connections."""
    with TemporaryDirectory() as directory:
        silent = Silent(Path(directory), driver)
        servers = await silent.listen()
        yield silent
        await silent.container.close()
        for server in servers:
            server.close()
            await server.wait_closed()


def unusable(call: PublicCall) -> Iterator[tuple[str, Any]]:
    """Yield every place of a call that takes a component, with each unusable value."""
    for place in sorted(PLACES & call.arguments.keys()):
        usable = {"frame_name": "", "key": None if call.name == "get" else ...}.get(place, ...)
        usable = None if call.name == "list_series" else usable  # of any
        yield from ((place, bad) for bad in BAD if bad is not usable)
    for place in sorted(LISTS & call.arguments.keys()):
        yield from ((place, [{"id": bad}]) for bad in BAD)


async def outcome(call: PublicCall, place: str, bad: Any) -> type[Any]:
    """Return the type of the error of a call with an unusable component in one place."""
    try:
        await run_to_end(call.make(**{**call.arguments, place: bad}))
    except Exception as error:
        return type(error)
    return type(None)


def is_refusal(place: str, kind: type[Any]) -> bool:
    """Of a list the payload that has the key may be what cannot be stored."""
    return kind is InvalidKeyError or (place in LISTS and kind is InvalidPayloadError)


@pytest.mark.parametrize("case", CASES, ids=str)
async def test_no_call_sends_an_unusable_component(silent: Silent, case: Case) -> None:
    """Of every method of the db service, the cache service and the adapter, in every place of a context."""
    container = silent.container
    calls = [*db_calls(container, case), *cache_calls(container, case), *adapter_calls(container, case)]
    calls = [call for call in calls if call.name not in WITHOUT_CONTEXT]
    tried = {
        (call, place, repr(bad)): await outcome(call, place, bad) for call in calls for place, bad in unusable(call)
    }
    passed = [
        (str(call), place, bad, kind) for (call, place, bad), kind in tried.items() if not is_refusal(place, kind)
    ]
    assert (passed, silent.connections) == ([], 0)
    assert len(tried) > 90
    with pytest.raises(StoreUnavailableError):
        await container.redis_service.ping()
    assert silent.connections  # so the servers count
