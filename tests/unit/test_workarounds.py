"""Each workaround, and the bug that it is for: a test here that fails says that a bug is mended.

Then the workaround that its docstring names can be deleted, once the oldest version that has the bug is not supported
any more.
"""

import asyncio
import sys
import warnings
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from typing import Any

import bson
import pytest
from bson import BSON, DBRef, Decimal128, encode
from bson.codec_options import CodecOptions, TypeDecoder, TypeRegistry
from pymongo import MongoClient
from pymongo.asynchronous.client_session import AsyncClientSession
from pymongo.asynchronous.mongo_client import AsyncMongoClient
from pymongo.errors import ConfigurationError, InvalidOperation, WriteConcernError
from pymongo.helpers_shared import _check_command_response
from pymongo.lock import _async_cond_wait, _async_create_condition, _async_create_lock
from pymongo.read_preferences import ReadPreference
from redis.asyncio import ConnectionPool

from backtest_persist.connections.values import CODEC_OPTIONS, to_plain
from backtest_persist.connections.workarounds import (
    PYMONGO_SURVIVES_A_TIMER,
    TYPE_REGISTRY,
    WithoutAsyncgenHooks,
    is_left,
    is_sessionless,
    keep_closed,
    raise_swallowed_cancellation,
    transport_of,
)

python_311 = pytest.mark.skipif(sys.version_info >= (3, 12), reason="mended in Python 3.12")


# --- PYMONGO_SURVIVES_A_TIMER ---


@python_311
async def test_bug_a_wait_of_the_pool_that_is_cancelled_as_its_time_is_up_leaves_the_pool_locked() -> None:
    """`PYMONGO_SURVIVES_A_TIMER`: nobody releases the lock that the inner task of `wait_for` acquires."""
    lock = _async_create_lock()
    condition = _async_create_condition(lock)

    async def wait_for_a_connection() -> None:
        async with lock:
            await _async_cond_wait(condition, 0.02)

    waiting = asyncio.create_task(wait_for_a_connection())
    await asyncio.sleep(0.01)
    await lock.acquire()  # somebody else gives a connection back as the time is up
    await asyncio.sleep(0.05)
    waiting.cancel()
    lock.release()
    await asyncio.wait([waiting])
    await asyncio.sleep(0.05)
    assert lock.locked()
    assert not PYMONGO_SURVIVES_A_TIMER
    assert isinstance(waiting.exception(), RuntimeError)  # rather than CancelledError


# --- raise_swallowed_cancellation ---


async def _answered_as_it_is_cancelled(*, guarded: bool) -> "asyncio.Task[str]":
    answer = asyncio.get_running_loop().create_future()

    async def wait() -> str:
        task = asyncio.current_task()
        assert task is not None
        requests = task.cancelling()
        await asyncio.wait_for(answer, 5)
        if guarded:
            await raise_swallowed_cancellation(task, requests, None)
        return "went on"

    task = asyncio.create_task(wait())
    await asyncio.sleep(0)
    answer.set_result(None)
    task.cancel()
    await asyncio.wait([task])
    return task


@python_311
async def test_bug_wait_for_swallows_a_cancellation() -> None:
    """`raise_swallowed_cancellation`: a task whose answer comes as it is cancelled goes on."""
    task = await _answered_as_it_is_cancelled(guarded=False)
    assert not task.cancelled()
    assert task.result() == "went on"


async def test_a_cancellation_that_was_swallowed_is_raised() -> None:
    """By the request that the task counts."""
    assert (await _answered_as_it_is_cancelled(guarded=True)).cancelled()


async def test_no_cancellation_is_invented() -> None:
    """A task that was not cancelled goes on, and one whose cancellation is on its way is left to it."""
    task = asyncio.current_task()
    assert task is not None
    await raise_swallowed_cancellation(task, task.cancelling(), None)
    await raise_swallowed_cancellation(task, -1, asyncio.CancelledError())


# --- keep_closed ---


def _open_after_it_was_closed(monkeypatch: pytest.MonkeyPatch, close: Callable[[Any], None]) -> MongoClient[Any]:
    """Let a name server answer when the client is closed already, and return the client."""
    client = MongoClient[Any]("mongodb+srv://cluster.backtest.example/?tls=false", connect=False)

    def answer_late() -> None:
        close(client)

    monkeypatch.setattr(client, "_resolve_srv", answer_late)
    with suppress(InvalidOperation):
        client._get_topology()
    return client


def test_bug_a_client_that_is_closed_before_dns_answers_opens_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    """`keep_closed`: there is nothing to close yet, so nothing remembers that it was."""
    client = _open_after_it_was_closed(monkeypatch, lambda client: client.close())
    assert client._opened
    client.close()


def test_a_client_that_is_kept_closed_does_not_open(monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread that has waited for the answer is told that it is too late; an open client closes as ever."""

    def close(client: MongoClient[Any]) -> None:
        keep_closed(client)
        client.close()

    assert not _open_after_it_was_closed(monkeypatch, close)._opened
    client = MongoClient[Any]("mongodb://127.0.0.1:1", connect=False)
    close(client)
    with pytest.raises(InvalidOperation):
        client.admin.command("ping")


# --- TYPE_REGISTRY ---


class _Decimals(TypeDecoder):
    bson_type: Any = Decimal128  # pyright: ignore[reportIncompatibleMethodOverride]

    def transform_bson(self, value: Any) -> Any:
        return value.to_decimal()


REPLY = {
    "ok": 1,
    "value": {"a": 1},
    "writeConcernError": {"code": 91, "errmsg": "shutting down"},
    "errorLabels": ["RetryableWriteError"],
}


def _check(options: CodecOptions[Any]) -> None:
    reply: Any = bson._decode_all_selective(encode(REPLY), options, {"value": 1})[0]
    _check_command_response(reply, None, parse_write_concern_error=True)


def test_bug_with_a_type_registry_no_write_is_retried_whose_write_concern_was_not_met() -> None:
    """`TYPE_REGISTRY`: the driver fails with an error that says nothing about the server."""
    with pytest.raises(AttributeError, match="update"):
        _check(CodecOptions(type_registry=TypeRegistry([_Decimals()])))


def test_our_codec_options_let_the_driver_see_that_a_write_may_be_retried() -> None:
    """They have no decoders."""
    with pytest.raises(WriteConcernError) as caught:
        _check(CODEC_OPTIONS)
    assert caught.value.has_error_label("RetryableWriteError")
    assert TYPE_REGISTRY is None


# --- PlainDocument ---

REFERENCE: dict[str, Any] = {"z": 2, "$ref": "c", "$id": 1, "$db": None}


def test_bug_a_reference_forgets_the_order_of_its_keys_and_a_database_of_none() -> None:
    """`PlainDocument`: a payload with these keys would not come back as it was written."""
    decoded = BSON.encode({"payload": REFERENCE}).decode()["payload"]
    assert isinstance(decoded, DBRef)
    assert list(decoded.as_doc().items()) == [("$ref", "c"), ("$id", 1), ("z", 2)]


def test_a_payload_with_the_keys_of_a_reference_is_a_plain_document() -> None:
    """In the order in which it was written, at any depth."""
    document = {"payload": REFERENCE, "list": [REFERENCE, {"deep": REFERENCE}]}
    plain = to_plain(BSON.encode(document).decode(CODEC_OPTIONS))
    assert plain == document
    assert type(plain["payload"]) is dict
    assert list(plain["payload"]) == list(REFERENCE)


# --- is_sessionless (close_next_connection: tests/faults/test_mongo_errors.py) ---


async def test_bug_a_connection_without_sessions_stays_so_and_only_words_say_so() -> None:
    """`is_sessionless`: a session is refused for the connection that the driver picked, by an error without a code."""

    class Connection:
        supports_sessions = False

    session: AsyncClientSession = AsyncMongoClient[dict[str, Any]](connect=False).start_session()
    with pytest.raises(ConfigurationError) as caught:
        session._apply_to({"update": "signal-items"}, False, ReadPreference.PRIMARY, Connection())  # pyright: ignore[reportArgumentType]
    assert type(caught.value) is ConfigurationError
    assert is_sessionless(caught.value)


def test_other_errors_of_the_configuration_are_not_about_sessions() -> None:
    """Nor is any other error with these words."""
    assert not is_sessionless(ConfigurationError("Unknown option"))
    assert not is_sessionless(ValueError("Sessions are not supported by this MongoDB deployment"))


# --- is_left ---


async def test_bug_a_connection_that_the_server_has_closed_counts_as_connected() -> None:
    """`is_left`: an idle connection of redis-py tells of it only when the next command is sent."""
    left = asyncio.Event()

    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await left.wait()
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        host, port = server.sockets[0].getsockname()[:2]
        connection = ConnectionPool(host=host, port=port, redis_connect_func=connected).make_connection()
        assert not is_left(connection)
        await connection.connect()
        assert not is_left(connection)
        left.set()
        async with asyncio.timeout(5):
            while not is_left(connection):
                await asyncio.sleep(0.001)
        assert connection.is_connected
        await connection.disconnect()


# --- transport_of ---


def connected(connection: Any) -> None:
    """Send nothing to a server that answers nothing."""


async def _received_of_a_cancelled_command(*, aborted: bool) -> int:
    """Cancel a command while its server reads nothing; return how much of 9 MB arrives all the same."""
    reading, received = asyncio.Event(), asyncio.get_running_loop().create_future()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reading.wait()
        data = 0
        with suppress(ConnectionError):
            while part := await reader.read(1 << 20):
                data += len(part)
        received.set_result(data)
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        pool: Any = ConnectionPool(port=port, redis_connect_func=connected)
        connection = pool.make_connection()
        await connection.connect()
        transport = transport_of(connection)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await connection.send_command("SET", "k", b"v" * 9_000_000)
        if aborted:
            assert transport is not None
            transport.abort()
        reading.set()
        return await received


async def test_bug_a_command_that_was_cancelled_is_sent_all_the_same() -> None:
    """`transport_of`: redis-py disconnects, but what is in the buffer of the connection arrives later."""
    assert await _received_of_a_cancelled_command(aborted=False) > 9_000_000


async def test_what_was_not_sent_is_dropped_with_its_transport() -> None:
    """Only what the system has taken already arrives."""
    assert await _received_of_a_cancelled_command(aborted=True) < 9_000_000


# --- WithoutAsyncgenHooks ---


async def _inner() -> AsyncGenerator[int]:
    yield 1


async def _drain() -> str:
    async for _ in _inner():
        await asyncio.sleep(0)
    return "drained"


def _shutdown(*, guarded: bool) -> list[str]:
    ends: list[str] = []

    async def outer() -> AsyncGenerator[int]:
        try:
            yield 1
        finally:
            ends.append(await (WithoutAsyncgenHooks(_drain()) if guarded else _drain()))

    async def main() -> None:
        generator = outer()
        await anext(generator)
        await asyncio.get_running_loop().shutdown_asyncgens()

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        asyncio.run(main())
    assert ends == ["drained"]
    return [str(warning.message) for warning in caught]


def test_bug_a_generator_that_begins_and_ends_while_a_loop_shuts_down_is_warned_of() -> None:
    """`WithoutAsyncgenHooks`: though nothing of it is left."""
    messages = _shutdown(guarded=False)
    assert len(messages) == 1
    assert "was scheduled after loop.shutdown_asyncgens() call" in messages[0]


def test_nobody_is_warned_of_the_generators_of_what_closes() -> None:
    """The hooks are back after each step, for the other tasks."""
    hooks = sys.get_asyncgen_hooks()
    assert _shutdown(guarded=True) == []
    assert sys.get_asyncgen_hooks() == hooks


async def test_an_exception_reaches_what_is_awaited_without_hooks() -> None:
    """A cancellation, too."""

    async def work() -> None:
        await asyncio.Event().wait()

    async def main() -> None:
        await WithoutAsyncgenHooks(work())

    task = asyncio.create_task(main())
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
