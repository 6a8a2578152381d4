"""The settings of a server, validated."""

from __future__ import annotations

import math
from dataclasses import dataclass

from vitune.errors import VituneError
from vitune.machine import available_memory_mib

DEVICES = ("auto", "cpu", "cuda")
LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True)
class EngineSettings:
    """How adapters are run.

    Args:
        backbone: a name for `load_backbone`; None takes the one of most adapters.
        cache_mib: memory for merged networks, MiB; 0 merges none.
        max_batch: images of one adapter that run together.
        max_wait_ms: how long an image waits for others of its adapter, milliseconds.
        max_queue: images that may wait; more are refused with 503.
        max_megapixels: larger images are refused by their header, in (0, 178].
        watch_s: seconds between two checks of the folder; 0 never checks again.
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
                "are free on this machine. Lower it; 0 keeps no merged weights."
            )


@dataclass(frozen=True)
class GuardSettings:
    """Limits on requests.

    Args:
        max_upload_mib: body of a request, MiB.
        max_held_mib: bodies of all concurrent requests, MiB.
        max_images: files per request.
        rate: requests per second and client address; 0 sets no limit.
        body_timeout_s: from the head of a request to the end of its body.
        answer_timeout_s: from the queue to the answer.
        token: the required value of `Authorization: Bearer`; None requires none.

    Raises:
        VituneError: a value outside its range.
    """

    max_upload_mib: float = 20.0
    max_held_mib: float = 256.0
    max_images: int = 64
    rate: float = 200.0
    body_timeout_s: float = 20.0
    answer_timeout_s: float = 120.0
    token: str | None = None

    def __post_init__(self) -> None:
        require("--max-upload-mib", self.max_upload_mib, 1e-3, 4096)
        require("--max-held-mib", self.max_held_mib, self.max_upload_mib)
        require("--max-images", self.max_images, 1)
        require("--rate-limit", self.rate, 0)
        require("--body-timeout", self.body_timeout_s, 0.01)
        require("--answer-timeout", self.answer_timeout_s, 0.01)


@dataclass(frozen=True)
class ServerSettings:
    """Where the server listens.

    Args:
        host: address; 127.0.0.1 can be reached only from this machine.
        port: 0 takes any free port.
        max_connections: more are answered with 503.
        head_timeout_s: from a connection, or the first byte of a further request on it, to the end
            of the request's head.

    Raises:
        VituneError: a value outside its range.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    max_connections: int = 512
    head_timeout_s: float = 10.0

    def __post_init__(self) -> None:
        require("--port", self.port, 0, 65_535)
        require("--max-connections", self.max_connections, 1)
        require("--head-timeout", self.head_timeout_s, 0.01)

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach the server."""
        return self.host in LOOPBACK


def require(option: str, value: float, least: float, most: float = math.inf) -> None:
    """Refuse a number outside [least, most].

    Raises:
        VituneError: it is outside, or not a number.
    """
    if not least <= value <= most or math.isinf(value):
        upper = "" if math.isinf(most) else f" to {most:g}"
        at_least = f"{least:g}{upper}" if upper else f"at least {least:g}"
        raise VituneError(f"{option}: got {value!r}, expected {at_least}.")
