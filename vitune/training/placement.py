"""Where a run computes: CPU or GPU, how many threads, and accelerate's processes and precision."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DataLoaderConfiguration

from vitune.errors import VituneError
from vitune.training.train_config import TrainConfig


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
