"""The hidden tree ``.backtest-persist`` beside the values of a dump, for what their files and names cannot express.

It mirrors the directories of the values:

``records/``
    The `when` of a value, and when it was first written if the time of its file no longer says so. A record names its
    value by a digest, and a file of records is written before its value and keeps the record of the value that is
    being replaced, so at every instant the value in the file has its record. A value that another program wrote has
    none.
``labels/``
    The parts of a name from which they cannot be read: one joined from parts that contain ``_``, or a shortened one.
    The context that writes to such a directory first owns its name; another one whose parts give the same name uses
    a stricter name.
"""

from functools import lru_cache
from hashlib import blake2b
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import Field, TypeAdapter

from backtest_persist.backends.json import codec
from backtest_persist.backends.json.atomic import (
    create_file,
    make_directory,
    read_file,
    replace_file,
    sync_directory,
)
from backtest_persist.errors import InvalidPayloadError

__all__ = (
    "HIDDEN",
    "Records",
    "claim_name",
    "digest",
    "label_directory",
    "load_records",
    "parts_of",
    "record_directory",
    "record_file",
    "store_records",
)

HIDDEN = ".backtest-persist"

Records = dict[str, dict[str, int]]
"""Digest of a value -> its record: ``when`` in ms UTC and ``created`` in ns since the epoch, each only if needed."""

T = TypeVar("T")

_PARTS = TypeAdapter(Annotated[list[str], Field(min_length=1)])
_RECORDS = TypeAdapter(Records)


@lru_cache(1000)
def record_directory(root: Path, directory: Path) -> Path:
    """Where the records of the values of a directory are."""
    return root / HIDDEN / "records" / directory.relative_to(root)


def label_directory(root: Path, directory: Path) -> Path:
    """Where the labels of the names in a directory are."""
    return root / HIDDEN / "labels" / directory.relative_to(root)


def record_file(root: Path, directory: Path, stem: str) -> str:
    """The path of the records of a value."""
    return f"{record_directory(root, directory)}/{stem}.json"


def digest(text: bytes) -> str:
    """Return the key under which the record of a text is stored."""
    return blake2b(text, digest_size=16).hexdigest()


def load_records(file: str | Path, advice: str) -> Records:
    """Read a file of records, {} when it does not exist; `InvalidPayloadError`, with the advice, when it is damaged."""
    return _load(file, _RECORDS, advice) or {}


def store_records(file: Path, records: Records, *, flush: bool) -> None:
    """Replace a file of records; with `flush` it survives a crash of the machine."""
    make_directory(file.parent, flush=flush)
    replace_file(file, codec.dumps(records), flush=flush)
    if flush:
        sync_directory(file.parent)


def parts_of(root: Path, directory: Path, name: str) -> list[str] | None:
    """Read the label of a name: its parts, or None without a label; `InvalidPayloadError` when it is damaged."""
    advice = f"Remove it; {name} then belongs to the next one to write there"
    return _load(_label_file(root, directory, name), _PARTS, advice)


def claim_name(root: Path, directory: Path, name: str, parts: list[str]) -> list[str] | None:
    """Label a name with its parts unless it has a label, and return what its label says."""
    label = _label_file(root, directory, name)
    make_directory(label.parent)
    create_file(label, codec.dumps(parts))
    sync_directory(label.parent)
    return parts_of(root, directory, name)


def _label_file(root: Path, directory: Path, name: str) -> Path:
    return label_directory(root, directory) / f"{name}%~.json"  # no directory of labels has a name that ends like this


def _load(file: str | Path, kind: TypeAdapter[T], advice: str) -> T | None:
    text = read_file(file)
    try:
        return None if text is None else kind.validate_json(text, strict=True)
    except ValueError:
        raise InvalidPayloadError(f"The file {file} is damaged. {advice}.") from None
