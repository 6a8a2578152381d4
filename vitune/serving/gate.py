"""Guards in front of the application: who may ask, how often, how much and how slowly."""

from __future__ import annotations

import asyncio
import hmac
import json
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from vitune.serving.settings import GuardSettings

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

OPEN_PATHS = ("/", "/healthz", "/docs", "/openapi.json")
"""Paths that need no token; neither do those below OPEN_FOLDER."""

OPEN_FOLDER = "/docs-files/"
MOST_CLIENTS = 10_000
CLOSE = {"connection": "close"}


class Buckets:
    """A token bucket per client: `rate` requests per second, with a burst of twice as many."""

    def __init__(self, rate: float) -> None:
        self.rate, self.size = rate, max(1.0, 2 * rate)
        self._filled: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def wait_s(self, client: str, now: float) -> float:
        """0 if the client may send a request now, else the seconds to wait."""
        level, since = self._filled.pop(client, (self.size, now))
        level = min(self.size, level + (now - since) * self.rate)
        allowed = level >= 1
        self._filled[client] = (level - 1 if allowed else level, now)
        if len(self._filled) > MOST_CLIENTS:
            self._filled.popitem(last=False)
        return 0.0 if allowed else (1 - level) / self.rate


class Guard:
    """ASGI middleware: checks token, rate, and that the body is complete, small and in time.

    The body is read here, to its end or its limit, before the application sees the request, so a
    half-sent upload occupies only its own bytes.
    """

    def __init__(self, app: App, settings: GuardSettings) -> None:
        self.app, self.settings = app, settings
        self.buckets = Buckets(settings.rate) if settings.rate else None
        self.held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        body = _Body()
        try:
            self._check(scope)
            await self._read(body, dict(scope["headers"]), receive)
            await self.app(scope, body.replayed(receive), send)
        except RefusedError as refusal:
            await refusal.send(send)
        finally:
            self.held -= body.size

    def _check(self, scope: Scope) -> None:
        """Refuse a request before reading its body."""
        path, token = scope["path"], self.settings.token
        if token is not None and path not in OPEN_PATHS and not path.startswith(OPEN_FOLDER):
            given = dict(scope["headers"]).get(b"authorization", b"")
            kind, _, value = given.partition(b" ")
            fits = hmac.compare_digest(value.strip(), token.encode())
            if kind.lower() != b"bearer" or not fits:
                text = "token: got none or a wrong one, expected Authorization: Bearer TOKEN."
                raise RefusedError(401, text, {"www-authenticate": "Bearer"})
        if self.buckets is not None and path != "/healthz":
            client = (scope.get("client") or ("",))[0]
            wait_s = self.buckets.wait_s(client, time.monotonic())
            if wait_s > 0:
                text = f"rate: got more than {self.settings.rate:g} requests per second. Slow down."
                raise RefusedError(429, text, {"retry-after": str(int(wait_s) + 1)})

    async def _read(self, body: _Body, headers: dict[bytes, bytes], receive: Receive) -> None:
        announced = headers.get(b"content-length", b"0")
        self._check_size(int(announced[:20]) if announced.isdigit() else 0)
        try:
            async with asyncio.timeout(self.settings.body_timeout_s):
                while not body.is_whole:
                    before = body.size
                    body.take(await receive())
                    self.held += body.size - before
                    self._check_size(body.size)
        except TimeoutError:
            text = f"body: got no end within {self.settings.body_timeout_s:g} s. Try again."
            raise RefusedError(408, text, CLOSE) from None

    def _check_size(self, size: int) -> None:
        limits = self.settings
        if size > limits.max_upload_mib * 2**20:
            text = f"body: got more than {limits.max_upload_mib:g} MiB. Send fewer images at once."
            raise RefusedError(413, text, CLOSE)
        if self.held > limits.max_held_mib * 2**20:
            text = "server: got more concurrent uploads than it can hold. Try again later."
            raise RefusedError(503, text, {**CLOSE, "retry-after": "1"})


class RefusedError(Exception):
    """A refused request: status, sentence and further headers."""

    def __init__(self, status: int, text: str, headers: dict[str, str]) -> None:
        super().__init__(text)
        self.status, self.headers = status, headers

    async def send(self, send: Send) -> None:
        """Send it as JSON, like the application's own errors."""
        body = json.dumps({"detail": str(self)}).encode()
        length = str(len(body))
        fields = {"content-type": "application/json", "content-length": length, **self.headers}
        pairs = [(name.encode(), value.encode()) for name, value in fields.items()]
        await send({"type": "http.response.start", "status": self.status, "headers": pairs})
        await send({"type": "http.response.body", "body": body})


class _Body:
    """The body of a request as it arrives."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []
        self.size, self.is_whole = 0, False

    def take(self, message: Message) -> None:
        """Add a part."""
        if message["type"] == "http.disconnect":
            raise RefusedError(400, "body: got its end before its last byte. Send it again.", CLOSE)
        part = message.get("body", b"")
        self.parts.append(part)
        self.size += len(part)
        self.is_whole = not message.get("more_body", False)

    def replayed(self, receive: Receive) -> Receive:
        """`receive` for the application: the whole body, then the server's further messages."""
        is_told = False

        async def replay() -> Message:
            nonlocal is_told
            if is_told:
                return await receive()
            is_told = True
            return {"type": "http.request", "body": b"".join(self.parts), "more_body": False}

        return replay
