"""The peak memory of a training step in a fresh process.

Run as `python -m vitune.bench.speed.step_memory JSON`; its last line is the answer as JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from vitune.bench.speed.subject import Contestant, Subject
from vitune.errors import VituneError

STATUS = Path("/proc/self/status")
CLEAR_REFS = Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Question:
    """One training step to be examined."""

    backbone: str
    label: str
    batch: int
    precision: str
    device: str
    image_size: int | None = None
    num_threads: int = 1


@dataclass(frozen=True)
class Footprint:
    """The memory of the step.

    Args:
        peak_mib: largest sum of live tensor bytes during two steps from a fresh optimiser, above
            model and inputs; the CUDA allocator's on a GPU.
        resident_mib: peak resident size of the process (CPU only), including the model.
        above_model_mib: the same, above what was resident with model and inputs loaded.
    """

    peak_mib: float
    resident_mib: float | None
    above_model_mib: float | None


def ask(question: Question) -> Footprint:
    """The answer of a fresh process.

    Raises:
        VituneError: the process failed; its last output is in the message.
    """
    done = subprocess.run(
        [sys.executable, "-m", "vitune.bench.speed.step_memory", json.dumps(asdict(question))],
        capture_output=True,
        text=True,
        env={
            **os.environ,
            "KINETO_LOG_LEVEL": "99",
            "OMP_NUM_THREADS": str(question.num_threads),
        },
    )
    if done.returncode:
        words = " ".join(done.stderr.strip().splitlines()[-1:]) or f"exit code {done.returncode}"
        raise VituneError(
            f"memory of {question.label!r} at batch {question.batch}: got a failed process "
            f"({words}), expected figures. Try a smaller --batch."
        )
    return Footprint(**json.loads(done.stdout.strip().splitlines()[-1]))


def examine(question: Question) -> Footprint:
    """Build the subject, then measure it; meant for a separate process."""
    device = torch.device(question.device)
    subject = Subject(
        Contestant.parse(question.label), question.backbone, device, question.image_size
    )
    images, labels = subject.images(question.batch)

    def two_steps() -> None:
        for _ in range(2):
            subject.step(images, labels, question.precision)

    if device.type == "cuda":
        return Footprint(_cuda_peak_mib(two_steps, device), None, None)
    before = _resident_mib("VmRSS")
    if CLEAR_REFS.exists():
        CLEAR_REFS.write_text("5")
    two_steps()
    resident = _resident_mib("VmHWM")
    above = None if resident is None or before is None else resident - before
    subject.optimiser.state.clear()
    return Footprint(live_peak_bytes(two_steps) / 2**20, resident, above)


def live_peak_bytes(work: Callable[[], Any]) -> int:
    """The largest sum of bytes that `work` held at one time, as seen by PyTorch's CPU allocator.

    Earlier allocations do not count, nor does freeing them.
    """
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    results = profiler.profiler
    assert results is not None and results.kineto_results is not None
    events = [event for event in results.kineto_results.events() if event.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak


def _cuda_peak_mib(work: Callable[[], Any], device: torch.device) -> float:
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    work()
    torch.cuda.synchronize(device)
    return (torch.cuda.max_memory_allocated(device) - before) / 2**20


def _resident_mib(key: str) -> float | None:
    """VmRSS or VmHWM of this process; None if the system does not report it."""
    if not STATUS.exists():
        return None
    return int(STATUS.read_text().split(f"{key}:")[1].split()[0]) / 2**10


if __name__ == "__main__":
    print(json.dumps(asdict(examine(Question(**json.loads(sys.argv[1]))))))
