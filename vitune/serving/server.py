"""uvicorn around the application: the port, slow clients, and terminal output."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from vitune.errors import VituneError
from vitune.serving.settings import ServerSettings


def listen(settings: ServerSettings) -> socket.socket:
    """The socket on which a server will listen.

    Raises:
        VituneError: the port is in use, or the address does not belong to this machine.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        found = socket.socket(family, kind, protocol)
        try:
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            found.bind(address)
            found.listen(1024)  # from now on a second server on this port fails
        except OSError:
            found.close()
            raise
    except OSError as error:
        raise VituneError(
            f"--port: got {settings.port} on {settings.host!r}, expected one that is free to "
            f"listen on ({error.strerror or error}). Choose another with --port, or --port 0."
        ) from None
    return found


def address_of(listening: socket.socket) -> str:
    """The URL of a listening socket."""
    host, port = listening.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    return f"http://{shown}:{port}"


def make_server(app: Any, settings: ServerSettings) -> uvicorn.Server:
    """A server for `app`; `run(sockets=[listen(...)])` serves until it is told to stop."""

    class Protocol(ImpatientProtocol):
        head_timeout_s = settings.head_timeout_s

    return uvicorn.Server(
        uvicorn.Config(
            app,
            http=Protocol,
            ws="none",
            log_level="warning",
            access_log=False,
            server_header=False,
            limit_concurrency=settings.max_connections,
            timeout_keep_alive=15,
            timeout_graceful_shutdown=30,
        )
    )


class ImpatientProtocol(H11Protocol):
    """uvicorn's HTTP protocol with a timeout for the head of a request."""

    head_timeout_s = 10.0
    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._await_head()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._head_came()
        elif self._deadline is None:
            self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_came()
        super().connection_lost(exc)

    def _await_head(self) -> None:
        self._deadline = self.loop.call_later(self.head_timeout_s, self.transport.close)

    def _head_came(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
