"""Where a run computes: CPU or GPU, how many threads, and accelerate's processes and precision."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import DataLoaderConfiguration, broadcast_object_list

from vitune.errors import VituneError
from vitune.training.train_config import TrainConfig

T = TypeVar("T")


def runs_on_cpu(config: TrainConfig) -> bool:
    """Whether the run uses the CPU: asked for, or the only device there is.

    Raises:
        VituneError: a GPU was asked for and PyTorch sees none.
    """
    if config.device == "cuda" and not torch.cuda.is_available():
        raise VituneError("--device: got 'cuda', expected a GPU that PyTorch can see. Use cpu.")
    return config.device == "cpu" or not torch.cuda.is_available()


def new_accelerator(settings: TrainConfig) -> Accelerator:
    """accelerate's processes, device and precision; one process may train several times."""
    # accelerate keeps the first run's precision for the whole process and refuses another.
    AcceleratorState._reset_state()
    precision = settings.precision
    return Accelerator(
        cpu=runs_on_cpu(settings),
        mixed_precision="no" if precision == "fp32" else precision,
        gradient_accumulation_steps=settings.accumulation_steps,
        # Pinned batches are copied while the GPU computes; it is told of the next one meanwhile.
        dataloader_config=DataLoaderConfiguration(non_blocking=True),
    )


def main_first(process: PartialState, action: Callable[[], T]) -> T:
    """The action's result; the main process acts before the others.

    Raises:
        VituneError, OSError: what the main process refuses, every process refuses. One that went
            on would wait for the main process, and end with a traceback when that is gone.
    """
    refusal: list[Exception | None] = [None]
    if process.is_main_process:
        try:
            result = action()
        except (VituneError, OSError) as error:
            refusal = [error]
    if process.num_processes > 1:
        broadcast_object_list(refusal)
    if refusal[0] is not None:
        raise refusal[0]
    return result if process.is_main_process else action()


@contextmanager
def cpu_threads(number: int | None) -> Iterator[None]:
    """Within: PyTorch uses `number` CPU threads; None changes nothing."""
    before = torch.get_num_threads()
    if number is not None:
        torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
