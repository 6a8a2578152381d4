"""What a server may be told, checked."""

from __future__ import annotations

import math
from dataclasses import dataclass

from vitune.errors import VituneError
from vitune.machine import available_memory_mib

DEVICES = ("auto", "cpu", "cuda")


@dataclass(frozen=True)
class EngineSettings:
    """How adapters are run.

    Args:
        backbone: a name for `load_backbone`; None takes that of most adapters.
        cache_mib: memory for merged networks, MiB; 0 merges none.
        max_batch: images of one adapter that run together.
        max_wait_ms: how long an image waits for others of its adapter, milliseconds.
        max_queue: images that may wait; more are refused with 503.
        max_megapixels: larger images are refused by their header, in (0, 178].
        watch_s: seconds between two looks at the folder; 0 never looks again.
        device: "auto", "cpu" or "cuda".

    Raises:
        VituneError: a value outside its range.
    """

    backbone: str | None = None
    cache_mib: float = 1024.0
    max_batch: int = 8
    max_wait_ms: float = 5.0
    max_queue: int = 256
    max_megapixels: float = 25.0
    watch_s: float = 2.0
    device: str = "auto"

    def __post_init__(self) -> None:
        require("--max-batch", self.max_batch, 1)
        require("--max-wait-ms", self.max_wait_ms, 0, 60_000)
        require("--max-queue", self.max_queue, 1)
        require("--watch-seconds", self.watch_s, 0)
        require("--max-megapixels", self.max_megapixels, 1e-4, 178)
        require("--cache-mib", self.cache_mib, 0)
        if self.device not in DEVICES:
            raise VituneError(f"--device: got {self.device!r}, expected one of {DEVICES}.")
        free = available_memory_mib()
        if self.device != "cuda" and self.cache_mib > free:
            raise VituneError(
                f"--cache-mib: got {self.cache_mib:g}, expected at most the {free:,.0f} MiB that "
                "this machine has free. Lower it; 0 keeps no merged weights."
            )


def require(option: str, value: float, least: float, most: float = math.inf) -> None:
    """Refuse a number outside [least, most].

    Raises:
        VituneError: it is, or it is no number.
    """
    if not least <= value <= most or math.isinf(value):
        upper = "" if math.isinf(most) else f" to {most:g}"
        at_least = f"{least:g}{upper}" if upper else f"at least {least:g}"
        raise VituneError(f"{option}: got {value!r}, expected {at_least}.")
