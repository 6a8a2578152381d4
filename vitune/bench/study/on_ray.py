"""The same cells on a Ray cluster; Ray itself is the extra `vitune[ray]`."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any

from vitune.bench.study.cells import Cell, blank_result
from vitune.bench.study.execution import MAX_RESTARTS, Finished, begin_worker, complete_in_worker
from vitune.bench.study.plan import Task
from vitune.bench.study.store import Store
from vitune.bench.study.workbench import Workbench
from vitune.errors import VituneError
from vitune.extras import import_extra

OBJECT_STORE_BYTES = 80 * 2**20


class OnRay:
    """Cells as Ray tasks; a cell whose worker dies is handed out again, MAX_RESTARTS times.

    Workers write into the store's folder, which they must share with this machine; a result that
    did not arrive there is written by this process.

    Args:
        address: of a running cluster, or "local" for one on this machine while the study runs.
        num_workers: CPU slots of a local cluster; None is the number of cores.
        cpus_per_cell, gpus_per_cell: resources per cell; 0.5 GPUs put two cells on one.
        bench: of this process, for planning.
    """

    def __init__(
        self,
        address: str = "local",
        *,
        num_workers: int | None = None,
        cpus_per_cell: float = 1,
        gpus_per_cell: float = 0,
        bench: Workbench | None = None,
    ) -> None:
        if cpus_per_cell <= 0 or gpus_per_cell < 0:
            raise VituneError(
                f"--ray: got {cpus_per_cell!r} CPUs and {gpus_per_cell!r} GPUs per cell, expected "
                "more than 0 CPUs and at least 0 GPUs."
            )
        self.address, self.num_workers = address, num_workers
        self.cpus_per_cell, self.gpus_per_cell = cpus_per_cell, gpus_per_cell
        self.bench = bench or Workbench()

    def waves(self, tasks: Sequence[Task]) -> Sequence[Sequence[Task]]:
        """All at once, to keep every worker busy."""
        return [tasks]

    def run(self, cells: Sequence[Cell], store: Store) -> Iterator[Finished]:
        """As they finish."""
        ray = import_extra("--ray", "ray", "ray")
        started = self._connect(ray)
        try:
            yield from self._run(ray, cells, Store(store.path.absolute()))
        finally:
            if started:
                ray.shutdown()

    def _connect(self, ray: Any) -> bool:
        """Whether a connection was opened here and so must be closed here."""
        if ray.is_initialized():
            return False
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
        if self.address == "local":
            options |= {
                "num_cpus": self.num_workers or os.cpu_count() or 1,
                "include_dashboard": False,
                "object_store_memory": OBJECT_STORE_BYTES,
            }
        try:
            ray.init(address=self.address, **options)
        except (ConnectionError, ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())
            raise VituneError(
                f"--ray: got {self.address!r}, expected 'local' or a cluster's address: {reason}"
            ) from None
        return True

    def _run(self, ray: Any, cells: Sequence[Cell], store: Store) -> Iterator[Finished]:
        task = ray.remote(_complete).options(
            num_cpus=self.cpus_per_cell,
            num_gpus=self.gpus_per_cell,
            max_retries=MAX_RESTARTS,
        )
        threads = max(1, int(self.cpus_per_cell))
        waiting = {task.remote(cell, store, threads): cell for cell in cells}
        while waiting:
            ready, _ = ray.wait(list(waiting), num_returns=1)
            cell = waiting.pop(ready[0])
            try:
                result, reused = ray.get(ready[0])
            except ray.exceptions.RayError as error:
                reason = str(error).strip().splitlines()[0]
                yield blank_result(cell, "failed", error=f"Ray: {reason}"), False
                continue
            if result.is_settled and store.read(cell.address) is None:
                store.write(result)
            yield result, reused


def _complete(cell: Cell, store: Store, num_threads: int) -> Finished:
    begin_worker(num_threads)
    return complete_in_worker(cell, store)
