"""What `vitune serve` does once its options are known."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitune.errors import VituneError

if TYPE_CHECKING:
    from vitune.serving import Changes, EngineSettings, GuardSettings, ServerSettings, Service

NEEDED = ("fastapi", "fastapi_offline", "uvicorn", "prometheus_client", "python_multipart")
TOKEN = "VITUNE_SERVE_TOKEN"
SHORTEST_TOKEN = 8


def token_of(file: str | None) -> str | None:
    """The bearer token from `file` or the environment; None if neither is given.

    Raises:
        VituneError: no such file, or no token in it.
    """
    given = os.environ.get(TOKEN)
    where = TOKEN
    if file is not None:
        where = "--token-file"
        try:
            given = Path(file).read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or "no text"
            raise VituneError(
                f"--token-file: got {file!r} ({reason}), expected a file with the token."
            ) from None
    if given is None:
        return None
    token = given.strip()
    if len(token) < SHORTEST_TOKEN or not (token.isascii() and token.isprintable()):
        raise VituneError(
            f"{where}: got a token of {len(token)} characters, expected at least "
            f"{SHORTEST_TOKEN} printable ASCII characters on one line."
        )
    return token


@dataclass(frozen=True)
class Serving:
    """A server as the command line describes it."""

    folder: str
    engine: EngineSettings
    guards: GuardSettings
    server: ServerSettings
    ray: str | None
    replicas: int

    def run(self) -> None:
        """Serve until interrupted.

        Raises:
            VituneError: the port is taken, or nothing can be served.
        """
        from vitune.cli._progress import console
        from vitune.serving.app import create_app
        from vitune.serving.server import address_of, listen, make_server

        listening = listen(self.server)
        try:
            service, listing = self._local() if self.ray is None else self._replicated()
            self._tell(listing, address_of(listening))
            make_server(create_app(service, self.guards), self.server).run(sockets=[listening])
        finally:
            listening.close()
        console.print("stopped; all accepted requests were answered")

    def _local(self) -> tuple[Service, dict[str, Any]]:
        from vitune.cli._progress import Counting
        from vitune.serving import Engine
        from vitune.serving.service import LocalService

        bar = Counting("reading adapters")
        try:
            engine = Engine(self.folder, self.engine, on_read=bar, on_change=_tell_changes)
        finally:
            bar.close()
        return LocalService(engine), engine.listing()

    def _replicated(self) -> tuple[Service, dict[str, Any]]:
        import asyncio

        from vitune.serving.replicas import start_replicas

        service = start_replicas(
            os.path.abspath(self.folder),
            self.engine,
            address=str(self.ray),
            num_replicas=self.replicas,
        )
        return service, asyncio.run(service.listing())

    def _tell(self, listing: dict[str, Any], url: str) -> None:
        from vitune.cli._progress import console

        served = [one for one in listing["adapters"] if one["state"] == "served"]
        for one in listing["adapters"]:
            if one["problem"]:
                console.print(f"refused {one['name']!r}: {one['problem']}", soft_wrap=True)
        name = listing["backbone"]["name"]
        console.print(f"{len(served):,} adapters over {name}")
        console.print(f"{url}  (API: {url}/docs)", soft_wrap=True)
        if not self.server.is_local and self.guards.token is None:
            console.print(
                f"anyone who can reach {self.server.host} may use it: set --token-file",
                style="yellow",
            )


def _tell_changes(changes: Changes) -> None:
    from vitune.cli._progress import console

    for what in ("added", "replaced", "removed", "refused"):
        names = getattr(changes, what)
        if names:
            console.print(f"{what}: {', '.join(names)}")
