"""Where cells run: in this process, or in several on this machine."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import resource_tracker
from multiprocessing.process import BaseProcess
from multiprocessing.sharedctypes import Synchronized
from typing import Protocol

from vitune.bench.study.cells import Cell, CellResult
from vitune.bench.study.plan import Task
from vitune.bench.study.running import complete
from vitune.bench.study.store import Store
from vitune.bench.study.workbench import Workbench
from vitune.errors import VituneError
from vitune.machine import available_cores

Finished = tuple[CellResult, bool]

MAX_RESTARTS = 3


class Executor(Protocol):
    """Runs cells in any order; each result comes with a flag: whether the store had it."""

    bench: Workbench

    def waves(self, tasks: Sequence[Task]) -> Sequence[Sequence[Task]]:
        """Groups of tasks that go through the stages together."""

    def run(self, cells: Sequence[Cell], store: Store) -> Iterator[Finished]:
        """One result per cell, as they come."""


class InProcess:
    """One cell after the other, one task at a time, so that each task is decoded once."""

    def __init__(self, bench: Workbench | None = None) -> None:
        self.bench = bench or Workbench()

    def waves(self, tasks: Sequence[Task]) -> Sequence[Sequence[Task]]:
        """Each task separately."""
        return [[task] for task in tasks]

    def run(self, cells: Sequence[Cell], store: Store) -> Iterator[Finished]:
        """In the given order."""
        for cell in cells:
            yield complete(cell, store, self.bench)


def check_jobs(num_jobs: int) -> None:
    """Refuse a number of processes that is none.

    Raises:
        VituneError: below 1.
    """
    if num_jobs < 1:
        raise VituneError(f"--jobs: got {num_jobs!r}, expected 1 or more.")


class Processes:
    """`num_jobs` worker processes on this machine; cells of one task go to few of them.

    If a worker dies (killed, out of memory), no other cell is lost: unfinished cells are handed
    out again, at most MAX_RESTARTS times. If the study is interrupted, cells that wait are not run.

    Args:
        num_jobs: processes, 1 or more; each gets its share of the cores, and GPUs go round.
        bench: of this process, for planning.
    """

    def __init__(self, num_jobs: int, bench: Workbench | None = None) -> None:
        check_jobs(num_jobs)
        self.num_jobs, self.bench = num_jobs, bench or Workbench()

    def waves(self, tasks: Sequence[Task]) -> Sequence[Sequence[Task]]:
        """All at once, to keep every worker busy."""
        return [tasks]

    def run(self, cells: Sequence[Cell], store: Store) -> Iterator[Finished]:
        """As they finish."""
        left = {cell.address: cell for cell in cells}
        for _ in range(1 + MAX_RESTARTS):
            try:
                for result, reused in self._round(list(left.values()), store):
                    del left[result.address]
                    yield result, reused
            except BrokenProcessPool:
                continue
            return
        raise VituneError(
            f"--jobs: got {MAX_RESTARTS + 1} rounds in which a worker died, expected workers "
            "that survive. Use fewer jobs or a smaller batch; finished cells are kept."
        )

    def _round(self, cells: Sequence[Cell], store: Store) -> Iterator[Finished]:
        threads = max(1, available_cores() // self.num_jobs)
        # Not fork: a child would inherit OpenMP's and CUDA's state without their threads, and hang
        # or fail at the first matrix product.
        context = multiprocessing.get_context("spawn")
        workers = max(1, min(self.num_jobs, len(cells)))
        pool = ProcessPoolExecutor(
            workers,
            mp_context=context,
            initializer=_begin_in_pool,
            initargs=(threads, context.Value("i", 0)),
        )
        with pool:
            try:
                with _interrupts_held():
                    waiting = [pool.submit(complete_in_worker, cell, store) for cell in cells]
                for future in as_completed(waiting):
                    yield future.result()
            except BaseException:  # else leaving the pool would first run every cell that waits
                pool.shutdown(wait=False, cancel_futures=True)
                raise


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Within the context Ctrl-C waits, here and in processes that are started.

    A worker that it reached while Python is still loading modules would print a traceback.
    """
    resource_tracker.ensure_running()  # its start would let Ctrl-C through
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


_BENCH: Workbench | None = None


def begin_worker(num_threads: int) -> None:
    """Give a worker process its share of the cores, and end it when the study ends."""
    import torch

    torch.set_num_threads(num_threads)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _begin_in_pool(num_threads: int, num_begun: Synchronized[int]) -> None:
    """`begin_worker`; Ctrl-C, which reaches workers too, ends this one without a traceback.

    Args:
        num_begun: workers that have begun before this one, counted here.
    """
    signal.signal(signal.SIGINT, lambda *_: os._exit(1))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    begin_worker(num_threads)
    with num_begun.get_lock():
        place, num_begun.value = num_begun.value, num_begun.value + 1
    take_gpu(place)


def take_gpu(place: int) -> None:
    """Let `cuda` mean another GPU in each worker, in turns, if the machine has several."""
    import torch

    if (num_gpus := torch.cuda.device_count()) > 1:
        torch.cuda.set_device(place % num_gpus)


def _end_with(parent: BaseProcess) -> None:
    """Stop this worker once the study has been killed: nobody waits for its run."""
    parent.join()
    os._exit(1)


def complete_in_worker(cell: Cell, store: Store) -> Finished:
    """`complete` with the workbench of this worker process."""
    global _BENCH
    if _BENCH is None:
        _BENCH = Workbench()
    return complete(cell, store, _BENCH)
