"""Files of candles as bytes: what they are packed and encoded in, and how far they have been read."""

import codecs
import csv
import gzip
import io
import lzma
import os
import zipfile
import zlib
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from enum import StrEnum
from pathlib import Path
from typing import IO, BinaryIO, TextIO, cast

from backtest_persist.errors import InvalidPayloadError, SettingsError

__all__ = ("CandleFile", "Kind")

_HEAD = 64 * 1024
"""How many bytes are looked at to tell the kind of a file."""
_BINARY = bytes({*range(32)} - {*b"\t\n\v\f\r\x1a"})
"""Control characters that no text holds; MetaTrader and DOS end a file with \\x1a."""
_MARKUP = (b"<!doctype", b"<html", b"<head>", b"<body", b"<?xml", b"<error", b"<!--")
_ENCODINGS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}


class Kind(StrEnum):
    """The formats of files."""

    CSV = "CSV"
    JSON = "JSON"
    PARQUET = "Parquet"
    FEATHER = "feather"


class CandleFile:
    """A file of candles, which may be packed by gzip or be the one file in a zip archive.

    `SettingsError` for one that cannot be opened, `InvalidPayloadError` for one that holds no candles; so is every
    error of the operating system and of an archive inside a `with` block of `errors`.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._raw: BinaryIO | None = None
        self._read = 0
        self._packed = False
        with self.errors():
            if self.path.is_dir():
                raise SettingsError(f"{self.path} is a directory; name the files in it.")
            status = self.path.stat()
            self.size = status.st_size
            """In bytes, as it is packed."""
            self.modified = status.st_mtime_ns // 1_000_000
            """The time at which it was last written, in ms UTC."""
            with self._open() as stream:
                self._head = stream.read(_HEAD)
        self.kind = self._find_kind()

    @property
    def position(self) -> int:
        """How many of its bytes have been read."""
        if self._raw is not None and not self._raw.closed:
            self._read = self._raw.tell()
        return self._read

    @contextmanager
    def errors(self) -> Generator[None]:
        """Raise the errors of files and archives as errors of this package that name the file."""
        try:
            yield
        except FileNotFoundError:
            raise SettingsError(f"There is no file {self.path}.") from None
        except (EOFError, zipfile.BadZipFile, gzip.BadGzipFile, zlib.error, lzma.LZMAError) as error:
            raise self._damaged(error) from None
        except UnicodeError as error:
            raise self.error(f"it cannot be decoded ({error}); save it as UTF-8") from None
        except csv.Error as error:
            raise self.error(f"it is no CSV file ({error})") from None
        except NotImplementedError as error:
            raise self.error(f"the archive is packed by a method that Python lacks ({error}); unpack it") from None
        except OSError as error:
            if error.errno is None:  # of bz2
                raise self._damaged(error) from None
            raise SettingsError(f"{self.path} cannot be read: {error.strerror or error}.") from None

    def error(self, problem: str) -> InvalidPayloadError:
        """Return the error about what the file holds."""
        return InvalidPayloadError(f"{self.path}: {problem}.")

    def _damaged(self, error: Exception) -> InvalidPayloadError:
        problem = " ".join(str(error).split()).rstrip(".")
        return self.error(f"the archive is damaged or cut off ({problem}); download it again")

    @contextmanager
    def open_text(self) -> Generator[TextIO]:
        """Open it as text, with line ends as they are."""
        with (
            self._open() as stream,
            io.TextIOWrapper(stream, self._encoding(), errors="backslashreplace", newline="") as text,
        ):
            yield text

    @contextmanager
    def _open(self) -> Generator[IO[bytes]]:
        """Open what is in the file, unpacked."""
        with ExitStack() as stack:
            self._raw = raw = stack.enter_context(self.path.open("rb"))
            magic = raw.read(4)
            raw.seek(0)
            self._packed = magic[:2] == b"\x1f\x8b" or magic == b"PK\x03\x04"
            if magic[:2] == b"\x1f\x8b":
                yield cast("IO[bytes]", stack.enter_context(gzip.GzipFile(fileobj=raw)))
            elif magic == b"PK\x03\x04":
                archive = stack.enter_context(zipfile.ZipFile(raw))
                yield stack.enter_context(archive.open(self._only_member(archive)))
            else:
                yield raw

    def _only_member(self, archive: zipfile.ZipFile) -> zipfile.ZipInfo:
        members = [member for member in archive.infolist() if not _is_hidden(member)]
        if any(member.filename == "[Content_Types].xml" for member in members):
            raise self.error("it is a spreadsheet; save it as CSV")
        if len(members) != 1:
            names = ", ".join(member.filename for member in members[:5])
            shown = f": {names:.200}" if names else ""
            raise self.error(f"the archive holds {len(members)} files{shown}; unpack it and name the files")
        if members[0].flag_bits & 1:
            raise self.error("the archive is encrypted; unpack it")
        return members[0]

    def _find_kind(self) -> Kind:
        head, start = self._head, self._head.lstrip()
        if head.startswith(b"FEA1"):
            raise self.error("it is of the first version of feather, which libraries give up; save it as Parquet")
        if head.startswith((b"PAR1", b"ARROW1")):
            if self._packed:
                raise self.error("it is packed; unpack it")
            return Kind.PARQUET if head.startswith(b"PAR1") else Kind.FEATHER
        if not start.rstrip(b"\0\x1a"):
            raise self.error("it is empty")
        if start.removeprefix(codecs.BOM_UTF8).lower().startswith(_MARKUP):
            raise self.error("it is a page of HTML or XML, such as the message of a server; download it again")
        if not self._encoding().startswith("utf-16") and _is_binary(head):
            raise self.error(
                "it is no file of candles in a known format: CSV or JSON (also as .zip or .gz), Parquet, feather"
            )
        return Kind.JSON if start.removeprefix(codecs.BOM_UTF8)[:1] in (b"[", b"{") else Kind.CSV

    def _encoding(self) -> str:
        for mark, encoding in _ENCODINGS.items():
            if self._head.startswith(mark):
                return encoding
        start = self._head[:200]
        for encoding, zeros in (("utf-16-le", start[1::2]), ("utf-16-be", start[::2])):  # of ASCII characters
            if len(zeros) > 1 and zeros.count(0) > 0.9 * len(zeros):
                return encoding
        return "utf-8"


def _is_hidden(member: zipfile.ZipInfo) -> bool:
    """Whether a member of an archive is a directory, or what macOS adds."""
    return member.is_dir() or member.filename.startswith("__MACOSX/") or Path(member.filename).name.startswith(".")


def _is_binary(head: bytes) -> bool:
    return len(head.translate(None, _BINARY)) < len(head)
