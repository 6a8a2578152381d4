"""The interface of the web layer: an engine in this process, or replicas of one."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

from vitune.machine import available_cores
from vitune.serving.engine import Answer, Engine, Upload


@dataclass(frozen=True)
class Figure:
    """One number for monitoring.

    Args:
        name: in Prometheus' style, without the prefix.
        kind: "counter" or "gauge".
        labels: names and values.
    """

    name: str
    kind: str
    text: str
    value: float
    labels: tuple[tuple[str, str], ...] = ()


class Service(Protocol):
    """Answers requests for adapters by name."""

    async def predict(self, name: str, uploads: Sequence[Upload]) -> list[Answer]:
        """One answer per image, in order."""
        ...

    async def listing(self) -> dict[str, Any]:
        """The adapters that are served, and those that were refused."""
        ...

    async def figures(self) -> list[Figure]:
        """Numbers for monitoring."""
        ...

    def close(self) -> None:
        """Answer what was accepted, then stop."""
        ...


class LocalService:
    """An engine in this process; images are decoded on separate threads."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._decoders = ThreadPoolExecutor(max(2, available_cores()), "vitune-decode")

    async def predict(self, name: str, uploads: Sequence[Upload]) -> list[Answer]:
        """Like `Engine.predict`, without blocking.

        Raises:
            VituneError: as `Engine.predict`.
        """
        served, loop = self.engine.get(name), asyncio.get_running_loop()
        pixels = await loop.run_in_executor(self._decoders, self.engine.decode, served, uploads)
        futures = self.engine.submit(served, pixels)
        return list(await asyncio.gather(*map(asyncio.wrap_future, futures)))

    async def listing(self) -> dict[str, Any]:
        """Like `Engine.listing`."""
        return self.engine.listing()

    async def figures(self) -> list[Figure]:
        """Queue, cache, batches, and images by adapter."""
        return list(_figures(self.engine))

    def close(self) -> None:
        """Answer what was accepted, then stop."""
        self.engine.close()
        self._decoders.shutdown()


def _figures(engine: Engine) -> Iterable[Figure]:
    cache, collection = engine.cache, engine.collection
    for name, text, value in (
        ("queue_images", "Images in the queue.", engine.num_waiting),
        ("adapters_served", "Adapters being served.", len(collection.served)),
        ("adapters_refused", "Subfolders that cannot be served.", len(collection.refused)),
        ("cache_bytes", "Memory of merged networks.", cache.used),
        ("cache_adapters", "Merged networks in the cache.", len(cache)),
    ):
        yield Figure(name, "gauge", text, value)
    for name, text, value in (
        ("batches", "Batches that ran.", engine.num_batches),
        ("cache_hits", "Batches whose network was already merged.", cache.hits),
        ("cache_misses", "Batches whose network was not merged yet.", cache.misses),
        ("cache_evictions", "Merged networks evicted for others.", cache.evictions),
    ):
        yield Figure(name, "counter", text, value)
    for adapter, number in engine.num_images.copy().items():
        yield Figure("images", "counter", "Images answered.", number, (("adapter", adapter),))
