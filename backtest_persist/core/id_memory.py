"""The id memory: the ids that this process has seen lately, in front of Redis; hints that every reader verifies."""

from collections import OrderedDict
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import NamedTuple

from bson import ObjectId

__all__ = ("IdMemory",)


class _Entry(NamedTuple):
    id: ObjectId
    epoch: int | None


class IdMemory:
    """Keeps the ids used last, by cache key, each with the epoch of Redis in which Redis was seen to hold it.

    One serves all event loops and threads of a process: each step on the dict is atomic.
    """

    def __init__(self, size: Callable[[], int]) -> None:
        self._size = size
        self._entries: OrderedDict[str, _Entry] = OrderedDict()

    def recall(self, keys: Iterable[str]) -> dict[str, ObjectId]:
        """Return the ids of those keys that are known, which are now the ones used last."""
        ids: dict[str, ObjectId] = {}
        for key in keys if self._size() else ():
            entry = self._entries.pop(key, None)
            if entry is not None:
                self._entries[key] = entry
                ids[key] = entry.id
        return ids

    def put(self, ids: Iterable[tuple[str, ObjectId]], epoch: int | None) -> None:
        """Keep ids that Redis held in that epoch, or may not hold at all, and drop those used least lately."""
        for key, id in ids:
            self._entries.pop(key, None)
            self._entries[key] = _Entry(id, epoch)
        size = self._size()
        while len(self._entries) > size:
            with suppress(KeyError):  # another thread may have dropped the last one
                self._entries.popitem(last=False)

    def is_in_redis(self, key: str, id: ObjectId, epoch: int) -> bool:
        """Whether Redis was seen to hold this id in that epoch."""
        return self._entries.get(key) == (id, epoch) and self._size() > 0

    def drop(self, key: str, id: ObjectId) -> None:
        """Drop an id, unless another one has been kept for its key since."""
        entry = self._entries.get(key)
        if entry is not None and entry.id == id:
            self._entries.pop(key, None)

    def forget(self, key: str | None) -> None:
        """Drop whatever is kept for a key, or for all keys if it is None."""
        if key is None:
            self._entries.clear()
        else:
            self._entries.pop(key, None)
