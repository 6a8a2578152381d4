"""A run that does not fit into memory: smaller batches, the same steps, and when to give up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from vitune.bench.study import running
from vitune.bench.study.plan import Study
from vitune.bench.study.running import (
    is_out_of_memory,
    train_within_memory,
    with_smaller_batch,
)
from vitune.bench.study.workbench import Workbench
from vitune.training import TrainConfig
from vitune.training.fitting import fit

Make = Callable[..., Study]


@pytest.mark.parametrize(
    "error", [MemoryError(), torch.OutOfMemoryError("x"), RuntimeError("can't allocate memory")]
)
def test_out_of_memory_halves_the_batch_and_says_so(
    tiny_study: Make, bench: Workbench, error: Exception
) -> None:
    study = tiny_study()
    config = study.config(study.variants[0], study.tasks[0], {}, seed=0, refit=False)
    seen: list[tuple[int, int]] = []

    def short_of_memory(config: TrainConfig, **_: Any) -> Any:
        seen.append((config.batch_size, config.accumulation_steps))
        if config.batch_size > 2:
            raise error
        return "trained"

    splits = bench.task(config, 0).selection
    trained, notes = train_within_memory(config, splits, running.Observer(), train=short_of_memory)
    assert trained == "trained" and seen == [(8, 1), (4, 2), (2, 4)]
    assert "batch size 8: run with 2 and 4 accumulation steps" in notes[0]


def test_memory_that_is_never_enough_is_an_error(tiny_study: Make, bench: Workbench) -> None:
    study = tiny_study()
    config = study.config(study.variants[0], study.tasks[0], {}, seed=0, refit=False)

    def never(*_: Any, **__: Any) -> Any:
        raise MemoryError

    splits = bench.task(config, 0).selection
    with pytest.raises(MemoryError):
        train_within_memory(config, splits, running.Observer(), train=never)
    assert not is_out_of_memory(RuntimeError("shape mismatch"))
    odd = with_smaller_batch(config.model_copy(update={"batch_size": 15}))
    assert (odd.batch_size, odd.accumulation_steps) == (5, 3)


def test_a_smaller_batch_takes_the_same_steps(tiny_study: Make, bench: Workbench) -> None:
    study = tiny_study(settings={"batch_size": 8, "precision": "fp32"})  # bf16 rounds each batch
    config = study.config(study.variants[0], study.tasks[0], {}, seed=0, refit=False)
    splits = bench.task(config, 0).selection
    whole = fit(config, splits=splits)
    divided = fit(with_smaller_batch(config), splits=splits)
    for name, parameter in whole.model.named_parameters():
        if parameter.requires_grad:
            other = divided.model.get_parameter(name)
            torch.testing.assert_close(parameter, other, rtol=1e-4, atol=1e-6)
