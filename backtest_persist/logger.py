"""LoggerService: one line per event, structured fields in ``extra``, never a payload and never a secret."""

import logging
from collections.abc import Sequence
from typing import Any, Protocol

__all__ = ("Logger", "LoggerService")

logging.getLogger("backtest_persist").addHandler(logging.NullHandler())

_NAMED = 20
"""How many of the documents that a list leaves out are named."""


class Logger(Protocol):
    """A logger, as `LoggerService.set_logger` takes it; `logging.Logger` and its adapters have it."""

    def log(self, level: int, msg: str, /, *args: Any, extra: dict[str, Any]) -> None:
        """Write one line at a level of the standard library."""
        ...


class LoggerService:
    """Where a container writes its events: the standard logger ``backtest_persist``, silent unless configured."""

    def __init__(self) -> None:
        self._logger: Logger = logging.getLogger("backtest_persist")

    def set_logger(self, logger: Logger) -> None:
        """Send the events of this container to another logger."""
        self._logger = logger

    def debug(self, event: str, **fields: Any) -> None:
        """Log a detail."""
        self._write(logging.DEBUG, event, fields)

    def info(self, event: str, **fields: Any) -> None:
        """Log something that happened."""
        self._write(logging.INFO, event, fields)

    def warning(self, event: str, **fields: Any) -> None:
        """Log something that a person should look at."""
        self._write(logging.WARNING, event, fields)

    def unreadable(self, place: str, refused: Sequence[tuple[str, Exception]]) -> None:
        """Log what a list has left out because it could not be read, by id or name, if there is any."""
        if refused:
            ids = ", ".join([*(id for id, _ in refused[:_NAMED]), *(["…"] if len(refused) > _NAMED else [])])
            self.warning("list.unreadable", place=place, left_out=len(refused), ids=ids, why=refused[0][1])

    def _write(self, level: int, event: str, fields: dict[str, Any]) -> None:
        text = " ".join([event, *(f"{name}={value}" for name, value in fields.items())])
        self._logger.log(level, "%s", text, extra={"event": event, **{f"bp_{k}": v for k, v in fields.items()}})
