"""Writers of candles: CSV, Parquet and feather, written part by part, so that memory does not grow with the file."""

import glob
import gzip
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from enum import StrEnum
from importlib import import_module
from pathlib import Path
from typing import IO, Any, Protocol, cast

from backtest_persist.contracts import CandleData
from backtest_persist.core.candles.ohlcv import COLUMNS, NUMBERS
from backtest_persist.errors import SettingsError

__all__ = ("CandleFormat", "CandleWriter", "find_format", "open_writer")


class CandleFormat(StrEnum):
    """The formats of files that candles are exported to."""

    CSV = "csv"
    PARQUET = "parquet"
    FEATHER = "feather"


_SUFFIXES = {
    ".csv": CandleFormat.CSV,
    ".parquet": CandleFormat.PARQUET,
    ".pq": CandleFormat.PARQUET,
    ".feather": CandleFormat.FEATHER,
    ".arrow": CandleFormat.FEATHER,
    ".ipc": CandleFormat.FEATHER,
}
_TIME = "date"
"""The name of the column of opening times in Parquet and feather, as freqtrade has it."""


class CandleWriter(Protocol):
    """Writes candles to a file; does I/O."""

    def write(self, candles: Sequence[CandleData]) -> None:
        """Add candles."""
        ...

    def finish(self) -> None:
        """Complete the file."""
        ...

    def close(self) -> None:
        """Leave the file, complete or not; may be called again."""
        ...


def find_format(path: Path) -> CandleFormat:
    """Return the format that the name of a file has; `SettingsError` for one that says none."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes[-2:] == [".csv", ".gz"]:
        return CandleFormat.CSV
    found = _SUFFIXES.get(suffixes[-1]) if suffixes else None
    if found is None:
        raise SettingsError(
            f"The name {path.name!r} names no format; give the format csv, parquet or feather, or a name that ends in "
            "one of them."
        )
    return found


def open_writer(path: Path, file_format: CandleFormat, *, packed: bool = False) -> CandleWriter:
    """Return what writes candles to a new file; `packed` compresses CSV by gzip, as the other formats always are.

    Parquet and feather need pyarrow or polars; `SettingsError` when neither is installed.
    """
    if file_format is CandleFormat.CSV:
        return _CsvWriter(path, packed=packed)
    for module, writer in (("pyarrow", _PyarrowWriter), ("polars", _PolarsWriter)):
        try:
            return writer(path, file_format, import_module(module))
        except ModuleNotFoundError:
            continue
    raise SettingsError(
        f'A {file_format} file needs polars or pyarrow; run: pip install "backtest-persist[polars]". CSV needs neither.'
    )


class _CsvWriter:
    """Writes a header and a line for each candle, with each number as the shortest text that reads back the same."""

    def __init__(self, path: Path, *, packed: bool) -> None:
        self._opened = ExitStack()
        raw = self._opened.enter_context(path.open("wb"))
        self._file: IO[bytes] = raw
        if packed:
            self._file = cast("IO[bytes]", self._opened.enter_context(gzip.GzipFile("", "wb", fileobj=raw, mtime=0)))
        self._file.write(f"{','.join(COLUMNS)}\n".encode())

    def write(self, candles: Sequence[CandleData]) -> None:
        """Add candles."""
        lines = [
            f"{candle['timestamp']},{candle['open']!r},{candle['high']!r},{candle['low']!r},{candle['close']!r},"
            f"{candle['volume']!r}\n"
            for candle in candles
        ]
        self._file.write("".join(lines).encode())

    def finish(self) -> None:
        """Complete the file."""
        self._opened.close()

    def close(self) -> None:
        """Close the file."""
        self._opened.close()


class _PyarrowWriter:
    """Writes row groups or record batches by pyarrow."""

    def __init__(self, path: Path, file_format: CandleFormat, pyarrow: Any) -> None:
        self._pyarrow = pyarrow
        numbers = pyarrow.float64()
        self._schema = pyarrow.schema([(_TIME, pyarrow.timestamp("ms", "UTC")), *((name, numbers) for name in NUMBERS)])
        self._file: Any = pyarrow.OSFile(str(path), "wb")
        if file_format is CandleFormat.PARQUET:
            parquet = import_module("pyarrow.parquet")
            self._writer: Any = parquet.ParquetWriter(self._file, self._schema, compression="zstd")
        else:
            options = pyarrow.ipc.IpcWriteOptions(compression="lz4")
            self._writer = pyarrow.ipc.new_file(self._file, self._schema, options=options)

    def write(self, candles: Sequence[CandleData]) -> None:
        """Add candles."""
        columns = _columns(candles)
        arrays = [self._pyarrow.array(columns[field.name], field.type) for field in self._schema]
        self._writer.write_batch(self._pyarrow.record_batch(arrays, schema=self._schema))

    def finish(self) -> None:
        """Complete the file by its index."""
        self._writer.close()
        self._file.close()

    def close(self) -> None:
        """Close the file."""
        if not self._file.closed:
            self.finish()


class _PolarsWriter:
    """Writes parts to a directory beside the file, and then the file from these, which polars reads one by one."""

    def __init__(self, path: Path, file_format: CandleFormat, polars: Any) -> None:
        self._path = path
        self._format = file_format
        self._polars = polars
        self._directory = tempfile.TemporaryDirectory(prefix=f"{path.name}-", dir=path.parent)
        self._parts: list[Path] = []

    def write(self, candles: Sequence[CandleData]) -> None:
        """Add candles."""
        part = Path(self._directory.name) / f"{len(self._parts):09}.ipc"
        self._frame(candles).write_ipc(part)
        self._parts.append(part)

    def finish(self) -> None:
        """Write the file."""
        names = [glob.escape(str(part)) for part in self._parts]
        parts = self._polars.scan_ipc(names) if names else self._frame([]).lazy()
        if self._format is CandleFormat.PARQUET:
            parts.sink_parquet(self._path, compression="zstd")
        else:
            parts.sink_ipc(self._path, compression="lz4")

    def close(self) -> None:
        """Remove the parts."""
        self._directory.cleanup()

    def _frame(self, candles: Sequence[CandleData]) -> Any:
        columns, polars = _columns(candles), self._polars
        times = polars.Series(_TIME, columns[_TIME], dtype=polars.Int64).cast(polars.Datetime("ms", "UTC"))
        numbers = [polars.Series(name, columns[name], dtype=polars.Float64) for name in NUMBERS]
        return polars.DataFrame([times, *numbers])


def _columns(candles: Sequence[CandleData]) -> dict[str, list[Any]]:
    rows = cast("Sequence[dict[str, Any]]", candles)
    return {_TIME: [row["timestamp"] for row in rows], **{name: [row[name] for row in rows] for name in NUMBERS}}
