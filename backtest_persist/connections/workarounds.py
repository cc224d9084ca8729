"""Workarounds for bugs of others, each with its issue, the versions that have it, and a test that asserts the bug.

The tests, in ``tests/unit/test_workarounds.py``, fail once a bug is mended; then its workaround can go.

One workaround is in `backtest_persist.core.indexes.prepare_indexes`, as it is a step of what has to be done there: an
index is listed as soon as somebody begins to build it, and mongod 6.0 may say that it exists a little before it does.
"""

import asyncio
import sys
from collections.abc import Awaitable, Callable, Generator
from contextlib import suppress
from typing import Any, Final, TypeVar

from bson.codec_options import CodecOptions
from pymongo.asynchronous.database import AsyncDatabase
from pymongo.errors import ConfigurationError, InvalidOperation, PyMongoError

__all__ = (
    "PYMONGO_SURVIVES_A_TIMER",
    "TYPE_REGISTRY",
    "PlainDocument",
    "WithoutAsyncgenHooks",
    "close_next_connection",
    "is_left",
    "is_sessionless",
    "keep_closed",
    "raise_swallowed_cancellation",
    "transport_of",
)

T = TypeVar("T")

PYMONGO_SURVIVES_A_TIMER: Final = False
"""Whether a timer of ours may cancel what awaits PyMongo's own asynchronous API.

Its pool waits by `asyncio.wait_for(condition.wait(), timeout)`. If that is cancelled while it ends the inner wait,
because its own timeout has passed, Python 3.11 leaves the inner task to itself: it acquires the lock of the pool, and
nobody releases that. A caller who cancels once at such a moment can do that as well; a timer for the same deadline
always picks the moment.

https://github.com/python/cpython/issues/96764 (`wait_for` was rewritten for Python 3.12); PyMongo 4.20,
``pymongo/lock.py``, ``_async_cond_wait``.
"""

TYPE_REGISTRY: Final = None
"""The ``type_registry`` of our codec options: there is none.

With one, PyMongo decodes the reply to a write as a `RawBSONDocument` first, and cannot retry a write whose reply has a
``writeConcernError`` with labels: it calls ``update`` on that, which such a document does not have.

https://github.com/mongodb/mongo-python-driver/pull/530 (PYTHON-2452), where its review asks about this; PyMongo 4.20,
``pymongo/helpers_shared.py``, ``_check_command_response``.
"""


class PlainDocument(dict[str, Any]):
    """A document as the driver decodes it, which denies that it has ``$ref``; `to_plain` makes a dict of it.

    Of a payload with the keys of a reference PyMongo would make a `DBRef`, which forgets their order and a ``$db`` of
    None. The specification demands a way to turn that off
    (https://github.com/mongodb/specifications/pull/996, DRIVERS-1173), and PyMongo has none
    (https://github.com/mongodb/mongo-python-driver/pull/722; 4.20, ``bson/__init__.py``, ``_get_object``).
    """

    def __getitem__(self, key: str) -> Any:
        if key == "$ref":
            raise KeyError(key)
        return super().__getitem__(key)


def is_sessionless(error: BaseException) -> bool:
    """Whether the driver has met a connection that takes no sessions; nothing was sent.

    A connection that was opened while its server was just becoming the primary was told that there are none, and keeps
    to it for as long as it lives; so does the driver, which keeps the connection. The error has neither a class nor a
    code, so its message is read.

    https://github.com/mongodb/mongo-python-driver/pull/1491 (PYTHON-3587, since PyMongo 4.7); 4.20,
    ``pymongo/client_session_shared.py``.
    """
    return isinstance(error, ConfigurationError) and str(error).startswith("Sessions are not supported")


async def close_next_connection(database: AsyncDatabase[Any]) -> None:
    """Let the driver close the connection that it used last: see `is_sessionless`.

    It closes one by which it fails to read an answer, and the one that was used last is the next one to be used.
    """
    with suppress(_UnreadableError, PyMongoError):
        await database.command("ping", codec_options=_UNREADABLE)


class _UnreadableError(Exception):
    pass


class _Unreadable(dict[str, Any]):
    def __init__(self) -> None:
        raise _UnreadableError


_UNREADABLE = CodecOptions[Any](document_class=_Unreadable)


def keep_closed(client: Any) -> None:
    """Keep a client of PyMongo, of either API, from opening once it is closed; to be called before it is.

    A client of a ``mongodb+srv`` URI opens when a name server has answered, and to close it before that does nothing.
    The thread of Motor that waits for the answer goes on when nobody waits for it, and then starts monitors with
    threads and connections that nobody closes.

    Not reported; PyMongo 4.20, ``pymongo/synchronous/mongo_client.py``, ``close`` and ``_get_topology``.
    """
    if client._topology is None:
        client._init_background = _refuse_to_open


def _refuse_to_open() -> None:
    raise InvalidOperation("Cannot use MongoClient after close")


async def raise_swallowed_cancellation(task: asyncio.Task[Any], requests: int, error: BaseException | None) -> None:
    """Cancel this task if it was cancelled since it had so many requests for it, and goes on without.

    `asyncio.wait_for`, by which PyMongo waits, forgets a cancellation when the answer has just come.

    https://github.com/python/cpython/issues/86296, Python 3.11; mended in 3.12.
    """
    if task.cancelling() > requests and (error is None or isinstance(error, Exception)):
        for _ in range(2):  # turns of the loop, in which anyio repeats its own
            await asyncio.sleep(0)
        raise asyncio.CancelledError


def transport_of(connection: Any) -> asyncio.WriteTransport | None:
    """Return the transport of an open connection of redis-py, so that it can be aborted; None for another connection.

    When a command is cancelled while it is being sent, redis-py closes its `StreamWriter`, which goes on sending what
    is in its buffer: a ``SET`` of many megabytes arrives seconds after its caller was told that it timed out. There is
    no public way to the transport.

    Not reported; redis-py 8.1, ``redis/asyncio/connection.py``, ``AbstractConnection.disconnect``.
    """
    writer: asyncio.StreamWriter | None = getattr(connection, "_writer", None)
    return None if writer is None else writer.transport


def is_left(connection: Any) -> bool:
    """Whether the server has closed an idle connection of redis-py, as far as the event loop has heard.

    redis-py looks only when it sends the next command, and its ``can_read``, which does this, is a coroutine.

    Not reported; redis-py 8.1, ``redis/_parsers/base.py``, ``_AsyncRESPBase.can_read``.
    """
    reader: asyncio.StreamReader | None = getattr(connection, "_reader", None)
    return reader is not None and reader.at_eof()


class WithoutAsyncgenHooks(Awaitable[T], Generator[Any, Any, T]):
    """Awaits what begins and ends asynchronous generators, as PyMongo does, in a loop that is shutting down.

    A loop warns of each generator that begins after ``loop.shutdown_asyncgens()`` was called, also of one that begins
    and ends inside of a generator which that closes; where warnings are errors, closing would fail. Only hooks that are
    put aside for each step of this coroutine leave those of the other tasks alone.

    Python 3.11 to 3.13, ``asyncio/base_events.py``, ``_asyncgen_firstiter_hook``; not reported. On closing generators
    at the end of a loop: https://github.com/python-trio/trio/issues/2081.
    """

    def __init__(self, work: Awaitable[T]) -> None:
        self._steps = work.__await__()

    def __await__(self) -> Generator[Any, Any, T]:
        return self

    def send(self, value: Any) -> Any:
        """Take a step."""
        return self._step(self._steps.send, value)

    def throw(self, kind: Any, value: Any = None, traceback: Any = None) -> Any:
        """Take a step with an exception."""
        return self._step(self._steps.throw, kind if value is None else value)

    def _step(self, step: Callable[[Any], Any], argument: Any) -> Any:
        hooks = sys.get_asyncgen_hooks()
        sys.set_asyncgen_hooks(firstiter=None)
        try:
            return step(argument)
        finally:
            sys.set_asyncgen_hooks(*hooks)
