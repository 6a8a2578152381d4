"""Dynamic batching: images of one adapter wait for each other, up to a deadline."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from vitune.errors import VituneError

Item = TypeVar("Item")
Result = TypeVar("Result")


class BusyError(VituneError):
    """The queue is full; nothing was accepted."""


class StoppedError(VituneError):
    """The server is shutting down; nothing was accepted."""


@dataclass(eq=False)
class Waiting(Generic[Item]):
    """One item in the queue."""

    item: Item
    future: Future[Any] = field(default_factory=Future)
    since: float = field(default_factory=time.perf_counter)


class Batcher(Generic[Item, Result]):
    """A queue per key, and one thread that runs the items of one key together.

    A group runs when it is full or its oldest item has waited `max_wait_s`; of several, the one
    with the oldest item runs first. While a group runs, the others fill up. Accepted items are
    always answered, even if the batcher is closed meanwhile.

    Args:
        run: items of one key -> their results, in order; if it raises, all its items get the error.
        max_batch: items that run together, at least 1.
        max_wait_s: how long an item waits for others.
        max_queue: items that may wait; more are refused.
    """

    def __init__(
        self,
        run: Callable[[str, Sequence[Waiting[Item]]], Sequence[Result]],
        *,
        max_batch: int,
        max_wait_s: float,
        max_queue: int,
    ) -> None:
        self.run, self.max_batch, self.max_wait_s = run, max_batch, max_wait_s
        self.max_queue, self.num_waiting = max_queue, 0
        self._groups: OrderedDict[str, deque[Waiting[Item]]] = OrderedDict()
        self._changed = threading.Condition()
        self._is_closed = False
        self._thread = threading.Thread(target=self._work, name="vitune-batches", daemon=True)
        self._thread.start()

    def submit(self, key: str, items: Sequence[Item]) -> list[Future[Result]]:
        """Accept all items, or none.

        Raises:
            BusyError: the queue would become too long.
            StoppedError: the batcher is closed.
        """
        waiting = [Waiting(item) for item in items]
        with self._changed:
            if self._is_closed:
                raise StoppedError("server: got a request while shutting down. Try again later.")
            if self.num_waiting + len(items) > self.max_queue:
                raise BusyError(
                    f"queue: got {len(items)} images with {self.num_waiting} waiting, expected "
                    f"at most {self.max_queue} in total. Try again later."
                )
            self._groups.setdefault(key, deque()).extend(waiting)
            self.num_waiting += len(items)
            self._changed.notify()
        return [one.future for one in waiting]

    def close(self) -> None:
        """Accept nothing more, answer what was accepted, and stop."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        while (taken := self._next()) is not None:
            key, batch = taken
            batch = [one for one in batch if one.future.set_running_or_notify_cancel()]
            if not batch:
                continue
            try:
                results = self.run(key, batch)
            except BaseException as error:
                for waiting in batch:
                    waiting.future.set_exception(error)
                continue
            for waiting, result in zip(batch, results, strict=True):
                waiting.future.set_result(result)

    def _next(self) -> tuple[str, list[Waiting[Item]]] | None:
        """Wait for a group that is ready and return it; None at the end."""
        with self._changed:
            while True:
                key, wait_s = self._choose()
                if key is not None and wait_s <= 0:
                    return key, self._take(key)
                if key is None and self._is_closed:
                    return None
                self._changed.wait(None if key is None else wait_s)

    def _choose(self) -> tuple[str | None, float]:
        """The group to run next, and how much longer to wait for it."""
        if not self._groups:
            return None, 0.0
        now = time.perf_counter()
        oldest = min(self._groups, key=lambda key: self._groups[key][0].since)
        wait_s = self._groups[oldest][0].since + self.max_wait_s - now
        if wait_s <= 0 or self._is_closed:
            return oldest, 0.0
        full = next((k for k, group in self._groups.items() if len(group) >= self.max_batch), None)
        return (oldest, wait_s) if full is None else (full, 0.0)

    def _take(self, key: str) -> list[Waiting[Item]]:
        group = self._groups[key]
        taken = [group.popleft() for _ in range(min(self.max_batch, len(group)))]
        if not group:
            del self._groups[key]
        self.num_waiting -= len(taken)
        return taken
