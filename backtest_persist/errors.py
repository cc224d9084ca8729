"""Every error this package raises.

::

    BacktestPersistError
    ├── InvalidKeyError            a part of a context, a key or a window is unusable; nothing was sent
    ├── InvalidPayloadError        a payload or candle cannot be stored exactly; nothing was sent
    ├── InvalidWhenError           a simulation time is missing, naive or not a number; nothing was sent
    ├── WriteRejectedError         the server refused the write; the stored value is unchanged
    ├── WriteOutcomeUnknownError   the connection broke in mid-write; the next read tells whether it was applied
    ├── StoreUnavailableError      a server did not answer within its deadline; nothing was applied
    ├── IndexConflictError         the unique index of a domain cannot be relied on; says how to repair it
    ├── ClosedError                the container was closed
    └── SettingsError              a setting, or the installation, cannot work

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
    """A part of a context, a key or a candle window is unusable; nothing was sent."""


class InvalidPayloadError(BacktestPersistError):
    """A payload or a candle cannot be stored exactly as given; nothing was sent."""


class InvalidWhenError(BacktestPersistError):
    """A simulation time is missing, naive or not a number; nothing was sent."""


class WriteRejectedError(BacktestPersistError):
    """The server refused the write; the stored value is unchanged."""


class WriteOutcomeUnknownError(BacktestPersistError):
    """The connection broke during a write that may have been applied; the next read tells."""


class StoreUnavailableError(BacktestPersistError):
    """A server did not answer within its deadline; nothing was applied."""


class IndexConflictError(BacktestPersistError):
    """The unique index of a domain is missing, blocked or too narrow; the message says how to repair it."""


class ClosedError(BacktestPersistError):
    """The container was closed; open another one."""


class SettingsError(BacktestPersistError):
    """A setting, or the installation, cannot work; the message names it."""
