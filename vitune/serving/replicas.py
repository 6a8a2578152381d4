"""The same engine on Ray Serve: several replicas; requests go where their adapter is merged.

Ray Serve routes by "model id": a replica reports the ids that it has served recently, and a request
that names one goes there while there is room. An id here is an adapter's name.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

from vitune.errors import VituneError
from vitune.extras import import_extra
from vitune.serving.collection import UnknownAdapterError
from vitune.serving.engine import Answer, Engine, Upload
from vitune.serving.service import Figure, LocalService
from vitune.serving.settings import EngineSettings, require

APPLICATION = "vitune"
HERE = "local"
ATTEMPTS = 60
PAUSE_S = 0.5
"""Pauses before a request is sent again: together as long as a new replica may need."""

MOST_REPORTED = 1000
"""Adapters that a replica reports as its own: more than any cache holds, so they stay there."""

Result = TypeVar("Result")


class Replica:
    """One engine in a Ray process; it watches the folder itself."""

    def __init__(self, folder: str, settings: EngineSettings) -> None:
        self.engine = Engine(folder, settings)
        self.service = LocalService(self.engine)

    async def predict(self, name: str, uploads: Sequence[Upload]) -> list[Answer]:
        """Like `LocalService.predict`; checks the folder for an adapter that was just added."""
        try:
            answers = await self.service.predict(name, uploads)
        except UnknownAdapterError:
            await asyncio.to_thread(self.engine.refresh)
            answers = await self.service.predict(name, uploads)
        await self._report(name)
        return answers

    async def _report(self, name: str) -> object:
        """Report that requests for an adapter are best sent here."""

    async def listing(self) -> dict[str, Any]:
        """Like `Engine.listing`."""
        return self.engine.listing()


class ReplicatedService:
    """Calls replicas; sends a request again if its replica died.

    Args:
        predict: (adapter's name, images) -> answers, from any replica.
        listing: the adapters that any replica serves.
        lost: errors that mean that a replica is gone, not that the request was wrong.
        stop: stops the replicas.
    """

    def __init__(
        self,
        predict: Callable[[str, Sequence[Upload]], Awaitable[list[Answer]]],
        listing: Callable[[], Awaitable[dict[str, Any]]],
        *,
        lost: tuple[type[BaseException], ...],
        stop: Callable[[], object],
    ) -> None:
        self._predict, self._listing, self._lost, self._stop = predict, listing, lost, stop
        self.num_resent = 0

    async def predict(self, name: str, uploads: Sequence[Upload]) -> list[Answer]:
        """Answers from a replica.

        Raises:
            VituneError: as `Engine.predict`; or no replica recovered in time.
        """
        return await self._insisted(lambda: self._predict(name, uploads))

    async def listing(self) -> dict[str, Any]:
        """The adapters that a replica serves; all watch the same folder."""
        return await self._insisted(self._listing)

    async def figures(self) -> list[Figure]:
        """How often a replica died during a request; Ray's dashboard has the other metrics."""
        text = "Requests sent again because their replica was lost."
        return [Figure("requests_resent", "counter", text, self.num_resent)]

    def close(self) -> None:
        """Stop the replicas; each first answers what it has accepted."""
        self._stop()

    async def _insisted(self, ask: Callable[[], Awaitable[Result]]) -> Result:
        for attempt in range(ATTEMPTS):
            try:
                return await ask()
            except self._lost:
                self.num_resent += 1
                await asyncio.sleep(min(PAUSE_S, 0.02 * 2**attempt))
            except Exception as error:
                cause = getattr(error, "cause", None)  # if the error crossed processes
                if isinstance(cause, VituneError):
                    raise cause from None
                raise
        raise VituneError(f"--ray: got no living replica in {ATTEMPTS} attempts.")


def start_replicas(
    folder: str, settings: EngineSettings, *, address: str, num_replicas: int
) -> ReplicatedService:
    """Replicas on the Ray cluster at `address`, or on one started here if it is HERE.

    Every node must see `folder` under that path and have vitune installed.

    Raises:
        VituneError: fewer than one replica, Ray is not installed, no cluster answers, or a replica
            cannot start.
    """
    require("--replicas", num_replicas, 1)
    ray, serve = _ray()
    options: dict[str, Any] = {"include_dashboard": False} if address == HERE else {}
    try:
        ray.init(
            address=HERE if address == HERE else address,
            namespace=APPLICATION,
            log_to_driver=False,
            logging_level="ERROR",
            **options,
        )
    except Exception as error:  # Ray raises a bare one if a node does not start in time
        reason = " ".join(str(error).split())[:200]
        raise VituneError(
            f"--ray: got {address!r} ({reason}), expected a cluster that answers: auto, "
            f"HOST:PORT, ray://HOST:PORT, or {HERE} to start one here."
        ) from None
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    serve.start(proxy_location="Disabled", logging_config={"log_level": "ERROR"})
    deployment = serve.deployment(
        num_replicas=num_replicas,
        max_ongoing_requests=settings.max_queue,
        health_check_period_s=2,
        ray_actor_options={"num_cpus": 1, "num_gpus": _share_of_gpu(ray, num_replicas)},
    )(_deployed(serve))
    try:
        handle = serve.run(deployment.bind(folder, settings), name=APPLICATION, route_prefix=None)
    except RuntimeError as error:
        serve.shutdown()
        reason = " ".join(str(error).split())[:300]
        raise VituneError(f"--ray: got no replica to start ({reason}).") from None

    async def predict(name: str, uploads: Sequence[Upload]) -> list[Answer]:
        found: list[Answer] = await handle.options(
            multiplexed_model_id=name, method_name="predict"
        ).remote(name, uploads)
        return found

    async def listing() -> dict[str, Any]:
        found: dict[str, Any] = await handle.listing.remote()
        return found

    def stop() -> None:
        serve.delete(APPLICATION)
        ray.shutdown()

    return ReplicatedService(predict, listing, lost=_lost(ray), stop=stop)


def _deployed(serve: Any) -> type:
    """The class of a replica, with Ray Serve's report of the adapters it has loaded."""

    class AdapterReplica(Replica):
        @serve.multiplexed(max_num_models_per_replica=MOST_REPORTED)
        async def _report(self, name: str) -> str:
            return name

    return AdapterReplica


def _share_of_gpu(ray: Any, num_replicas: int) -> float:
    gpus = float(ray.cluster_resources().get("GPU", 0))
    return 0.0 if not gpus else min(1.0, gpus / num_replicas)


def _lost(ray: Any) -> tuple[type[BaseException], ...]:
    """Errors that mean that a replica is gone."""
    from ray.serve.exceptions import DeploymentUnavailableError, ReplicaUnavailableError

    errors = ray.exceptions
    return (
        errors.RayActorError, errors.WorkerCrashedError, DeploymentUnavailableError,
        ReplicaUnavailableError,
    )  # fmt: skip


def _ray() -> tuple[Any, Any]:
    serve = import_extra("--ray", "serve,ray", "ray.serve")
    return import_extra("--ray", "serve,ray", "ray"), serve
