"""Workarounds for bugs of others, each with its issue, the versions that have it, and a test that asserts the bug.

`tests/unit/test_workarounds.py` and `tests/faults/test_workarounds.py` fail once a bug is mended; then its workaround
can go. Two workarounds are elsewhere, as they are decisions of code that has to be there anyway:
`backtest_persist.core.indexes.prepare_indexes` waits for an index that mongod 6.0 lists before it can be used, and
`backtest_persist.connections.values.CODEC_OPTIONS` goes without a ``type_registry``.
"""

from pymongo.errors import ConfigurationError

__all__ = ("is_sessionless",)


def is_sessionless(error: BaseException) -> bool:
    """Whether the driver refused a connection that takes no sessions; nothing was sent.

    A connection that was opened while its server was just becoming the primary keeps what it was told then, that
    there are no sessions, for as long as it lives; the driver keeps it, and raises this for whatever needs a session.
    It has no code and no class of its own.

    https://github.com/mongodb/mongo-python-driver/pull/1491 (PYTHON-3587, since PyMongo 4.7; still so in 4.20):
    `pymongo.asynchronous.client_session.AsyncClientSession._apply_to` asks the connection.
    """
    return isinstance(error, ConfigurationError) and str(error).startswith("Sessions are not supported")
