"""Merged networks of the most requested adapters, within a memory limit."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from vitune.serving.runner import Runner

Merged = tuple[Runner, int]
"""The merged network of an adapter, and its size in bytes."""

GHOSTS = 64
"""The least number of missed adapters to remember."""


class WeightCache:
    """An LRU cache of merged networks of at most `capacity` bytes.

    While there is room, an adapter is merged at its first batch. When the cache is full, an adapter
    replaces another only at its second miss among the last GHOSTS: adapters that are requested only
    once do not evict those in constant use.

    Args:
        capacity: bytes.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.used = self.hits = self.misses = self.evictions = 0
        self._held: OrderedDict[str, Merged] = OrderedDict()
        self._ghosts: OrderedDict[str, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._held)

    def __contains__(self, key: str) -> bool:
        return key in self._held

    def get(self, key: str, size: int, build: Callable[[], Merged | None]) -> Runner | None:
        """The merged network for `key`; None if it should run un-merged this time.

        Args:
            size: bytes that it will take, as far as known.
            build: makes it and returns its size; None if it cannot be made.
        """
        if key in self._held:
            self.hits += 1
            self._held.move_to_end(key)
            return self._held[key][0]
        self.misses += 1
        if not self._admits(key, size):
            return None
        self._make_room(size)
        built = build()
        if built is None:
            return None
        runner, taken = built
        if taken <= self.capacity:
            self._make_room(taken)
            self._held[key] = built
            self.used += taken
        return runner

    def drop(self, key: str) -> None:
        """Remove an adapter that is gone."""
        if key in self._held:
            self.used -= self._held.pop(key)[1]

    def _admits(self, key: str, size: int) -> bool:
        if size > self.capacity:
            return False
        was_missed = self._ghosts.pop(key, "") is None
        if was_missed or self.used + size <= self.capacity:
            return True
        self._ghosts[key] = None
        while len(self._ghosts) > max(GHOSTS, 2 * len(self._held)):
            self._ghosts.popitem(last=False)
        return False

    def _make_room(self, size: int) -> None:
        while self.used + size > self.capacity:
            _, (_, freed) = self._held.popitem(last=False)
            self.used -= freed
            self.evictions += 1
