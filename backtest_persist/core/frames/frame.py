"""Frames: candles and rows for pandas, polars, and whatever takes an Arrow stream."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal

from backtest_persist.core.candles.ohlcv import NUMBERS
from backtest_persist.core.frames.columns import Column, Kind
from backtest_persist.core.frames.libraries import (
    arrow_stream,
    import_library,
    pandas_frame,
    pandas_instants,
    polars_frame,
)
from backtest_persist.errors import InvalidKeyError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ("CandleFrame", "RowFrame")

_EPOCH = datetime.fromtimestamp(0, UTC)
_SHOWN_NAMES = 6


class CandleFrame:
    """The candles of one series as columns, in the order of their opening times.

    ``polars.DataFrame(frame)``, ``pyarrow.table(frame)`` and all others who take an Arrow stream read it as it is.
    Libraries are imported by the call that needs them; `SettingsError` names the extra of one that is missing.
    """

    def __init__(self, symbol: str, interval: str, exchange_name: str, columns: "dict[str, NDArray[Any]]") -> None:
        self.symbol = symbol
        self.interval = interval
        """The interval of the candles, which may be one to which they were resampled."""
        self.exchange_name = exchange_name
        self.columns = columns
        """numpy arrays by field: `timestamp` int64, the opening time in ms UTC, the others float64.

        They belong to the caller. What is made of a frame shares their memory where the library allows it.
        """

    def __len__(self) -> int:
        return len(self.columns["timestamp"])

    def __repr__(self) -> str:
        name = f"{self.symbol} {self.interval} {self.exchange_name}"
        if not len(self):
            return f"<CandleFrame {name}: no candles>"
        times = self.columns["timestamp"]
        rows = "1 candle" if len(self) == 1 else f"{len(self):,} candles"
        return f"<CandleFrame {name}: {rows}, {_text(int(times[0]))} to {_text(int(times[-1]))} UTC>"

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object:
        """Return an Arrow stream of `timestamp` (timestamp[ms, UTC]) and the numbers (float64), as a capsule.

        It is made by pyarrow, polars or arro3, whichever is installed.
        """
        return arrow_stream(self._typed(), requested_schema)

    def to_pandas(self, names: Literal["lower", "title"] = "lower", index: bool = True) -> Any:
        """Return a `pandas.DataFrame`, with the opening times as a `DatetimeIndex` in UTC called ``date``.

        With ``names="title"`` the columns are Open, High, Low, Close and Volume, and the index is ``Date``; without
        `index` the times are the first column. Needs the extra ``pandas``.
        """
        if names not in ("lower", "title"):
            raise InvalidKeyError(f"names must be 'lower' or 'title', not {names!r:.40}.")
        pandas = import_library("pandas")
        times = pandas_instants(self.columns["timestamp"], pandas).rename("date" if names == "lower" else "Date")
        numbers = {name if names == "lower" else name.title(): self.columns[name] for name in NUMBERS}
        if index:
            return pandas.DataFrame(numbers, index=times, copy=False)
        return pandas.DataFrame({times.name: times, **numbers}, copy=False)

    def to_polars(self) -> Any:
        """Return a `polars.DataFrame`, whose ``timestamp`` is a Datetime in ms and UTC. Needs the extra ``polars``."""
        return polars_frame(self._typed())

    def _typed(self) -> dict[str, Column]:
        return {
            name: Column(Kind.INSTANT if name == "timestamp" else Kind.FLOAT, column)
            for name, column in self.columns.items()
        }


class RowFrame:
    """Rows as flat columns, as `RowList.to_frame` makes it; has the same methods as `CandleFrame`."""

    def __init__(self, columns: Mapping[str, Column], length: int) -> None:
        self._typed = columns
        self._length = length

    @property
    def columns(self) -> dict[str, list[Any]]:
        """The values by the names of the columns; instants are ints in ms UTC."""
        return {name: column.values for name, column in self._typed.items()}

    def __len__(self) -> int:
        return self._length

    def __repr__(self) -> str:
        names = [*self._typed]
        shown = ", ".join(names if len(names) <= _SHOWN_NAMES else [*names[:_SHOWN_NAMES], "…"])
        rows = "1 row" if self._length == 1 else f"{self._length:,} rows"
        return f"<RowFrame: {rows}, {len(names)} columns: {shown}>"

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object:
        """Return an Arrow stream, as a capsule, made by pyarrow, polars or arro3, whichever is installed.

        arro3 alone makes JSON of lists.
        """
        return arrow_stream(self._typed, requested_schema)

    def to_pandas(self) -> Any:
        """Return a `pandas.DataFrame`. Needs the extra ``pandas``."""
        return pandas_frame(self._typed, self._length)

    def to_polars(self) -> Any:
        """Return a `polars.DataFrame`. Needs the extra ``polars``."""
        return polars_frame(self._typed)


def _text(timestamp: int) -> str:
    """Return an instant in ms to the minute; the ms themselves, if it is no year that Python has."""
    try:
        return f"{_EPOCH + timedelta(milliseconds=timestamp):%Y-%m-%d %H:%M}"
    except OverflowError:
        return f"{timestamp} ms"
