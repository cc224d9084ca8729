"""Names on disk: any str becomes one path segment that no file system trips over, and comes back from it."""

import re
from collections.abc import Sequence
from hashlib import blake2b

__all__ = ("escape", "nested", "shorten", "unescape")

MAX_BYTES = 200
"""Longer segments are shortened; file systems take 255 bytes, of which a suffix and a temporary name need some."""

_UNSAFE = re.compile(r"[%/\\\x00-\x1f\x7f]|^\.|[. ]$")
_DEVICE = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\.|$)", re.IGNORECASE)
_ESCAPED = re.compile(r"%([0-9A-F]{2})")


def escape(name: str) -> str:
    """Percent-encode everything that has a meaning in paths, so that no name leaves its directory or is hidden there.

    That is ``%``, slashes, control characters, a leading dot, a dot or space at the end, and the first letter of the
    names that Windows keeps for devices. Everything else is unchanged. Injective; `unescape` is the inverse.
    """
    name = _UNSAFE.sub(lambda match: _percent(match[0]), name)
    return _percent(name[0]) + name[1:] if _DEVICE.match(name) else name


def unescape(segment: str) -> str:
    """Return the name that `escape` was given; a ``%`` that begins no escape is kept."""
    return _ESCAPED.sub(lambda match: chr(int(match[1], 16)), segment)


def shorten(segment: str) -> str:
    """Return an escaped segment, one that is too long as its beginning, ``%~``, which no other contains, and a hash."""
    encoded = segment.encode()
    if len(encoded) <= MAX_BYTES:
        return segment
    head = encoded[: MAX_BYTES - 50].decode(errors="ignore")
    return f"{re.sub('%.?$', '', head)}%~{blake2b(encoded, digest_size=20).hexdigest()}"


def nested(names: Sequence[str]) -> list[str]:
    """Return the path segments that the TypeScript framework makes of names that contain ``/``.

    Empty when no name contains one, when a segment would be empty, hidden or lead upwards, and when this package would
    write a segment differently, so that it could belong to another name.
    """
    segments = "/".join(names).split("/")
    usual = len(segments) == len(names) or any(len(name.encode()) > MAX_BYTES for name in names)
    return [] if usual or any(not segment or escape(segment) != segment for segment in segments) else segments


def _percent(character: str) -> str:
    return f"%{ord(character):02X}"
