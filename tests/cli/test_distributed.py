"""`accelerate launch` with two processes on the CPU (gloo) is one run with twice the batch.

Without a GPU accelerate starts several processes only when told `--multi_gpu`; the processes then
find no GPU and talk through gloo.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import torch
from accelerate import PartialState
from safetensors.torch import load_file

from vitune.cli import run
from vitune.errors import OutputError
from vitune.training.placement import main_first

TRAIN = ["train", "--data", "demo:digits?train=40", "--epochs", "2", "--lr", "1e-2"]
TRAIN += ["--image-size", "16"]
TRAIN += ["--precision", "fp32"]  # in bf16 the two sums over images round differently
TRAIN += ["--augment", "none"]  # every process draws its own shifts


def test_two_processes_equal_one_with_twice_the_batch(tmp_path: Path) -> None:
    launch = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--multi_gpu",
        "--num_processes",
        "2",
    ]
    launch += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    launch += ["--main_process_port", "0"]
    words = [*TRAIN, "--batch-size", "8", "--out", str(tmp_path / "two")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*launch, "-m", "vitune", *words],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("validation accuracy") == done.stdout.count("report: ") == 1
    assert run([*TRAIN, "--batch-size", "16", "--out", str(tmp_path / "one")]) == 0
    two, one = (json.loads((tmp_path / n / "summary.json").read_text()) for n in ("two", "one"))
    assert (two["num_processes"], one["num_processes"]) == (2, 1)
    assert two["steps"] == one["steps"] == 4
    weights = [
        load_file(tmp_path / name / "adapter" / "adapter_model.safetensors")
        for name in ("two", "one")
    ]
    pairs = [(value, weights[1][name]) for name, value in weights[0].items()]
    gaps = torch.cat([(one - other).abs().flatten() for one, other in pairs])
    # A few gradients are rounding noise (k's shift has none at all); Adam makes steps of those.
    assert gaps.median() < 1e-6
    assert (gaps > 1e-4).float().mean() < 0.02
    moved = torch.cat([one.flatten() for one, _ in pairs])
    assert moved.abs().median() > 1e-3


@pytest.mark.parametrize("is_main", [True, False])
def test_what_the_main_process_refuses_every_process_refuses(
    is_main: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that went on would end with a traceback once the main process is gone."""
    refusal = OutputError("--out: got 'runs/a', which exists")
    acted = []

    def broadcast(refusals: list[Exception | None]) -> None:
        assert (refusals == [refusal]) == is_main
        refusals[:] = [refusal]

    def refuse() -> None:
        acted.append(is_main)
        raise refusal

    monkeypatch.setattr("vitune.training.placement.broadcast_object_list", broadcast)
    process = cast(PartialState, SimpleNamespace(is_main_process=is_main, num_processes=2))
    with pytest.raises(OutputError, match="which exists"):
        main_first(process, refuse)
    assert acted == [True] * is_main
