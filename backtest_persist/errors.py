"""Every error this package raises.

::

    BacktestPersistError
    ├── InvalidKeyError           a context, key, window or filter is unusable
    ├── InvalidPayloadError       a payload or candle cannot be stored exactly
    ├── InvalidWhenError          a simulation time is missing, naive or no number
    ├── WriteRejectedError        the server refused; the stored value is unchanged
    ├── WriteOutcomeUnknownError  may have been applied; the next read tells
    ├── StoreUnavailableError     no answer within the deadline; nothing was applied
    ├── IndexConflictError        a unique index cannot be relied on; how to repair it
    ├── ClosedError               the container was closed
    └── SettingsError             a setting, or the installation, cannot work

With the first three nothing was sent, or no row was touched.
A missing row is never an error: it is ``None``. Messages name the domain and the context, never a payload or a secret.
"""

__all__ = (
    "BacktestPersistError",
    "ClosedError",
    "IndexConflictError",
    "InvalidKeyError",
    "InvalidPayloadError",
    "InvalidWhenError",
    "SettingsError",
    "StoreUnavailableError",
    "WriteOutcomeUnknownError",
    "WriteRejectedError",
)


class BacktestPersistError(Exception):
    """The root of every error raised by this package."""


class InvalidKeyError(BacktestPersistError):
    """A part of a context, a key, a candle window or a filter is unusable; nothing was changed."""


class InvalidPayloadError(BacktestPersistError):
    """A payload or a candle cannot be stored exactly as given (nothing was sent), or a document is damaged."""


class InvalidWhenError(BacktestPersistError):
    """A simulation time is missing, naive or not a number; nothing was sent."""


class WriteRejectedError(BacktestPersistError):
    """The server refused the write; the stored value is unchanged."""


class WriteOutcomeUnknownError(BacktestPersistError):
    """The connection broke during a write that may have been applied; the next read tells."""


class StoreUnavailableError(BacktestPersistError):
    """A server did not answer within its deadline; MongoDB has applied nothing (what Redis may have: see `BaseMap`)."""


class IndexConflictError(BacktestPersistError):
    """The unique index of a domain is missing, blocked or too narrow; the message says how to repair it."""


class ClosedError(BacktestPersistError):
    """The container was closed; open another one."""


class SettingsError(BacktestPersistError):
    """A setting, or the installation, cannot work; the message names it."""
