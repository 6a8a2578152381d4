"""`vitune bench speed`: methods timed round by round in one process, in alternation.

Figures are meant as ratios. The methods take turns step by step, so other load on the machine
affects all alike; ratios are taken within a round, then their median.
"""

from __future__ import annotations

import json
import os
import platform
import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, cast

import torch

from vitune.bench.speed.products import count_products, formats_text
from vitune.bench.speed.references import TEXTBOOKS
from vitune.bench.speed.step_memory import Question, ask
from vitune.bench.speed.subject import Contestant, Subject
from vitune.environment import installed_versions
from vitune.errors import VituneError
from vitune.files import write_output
from vitune.training.precision import NUMBER_FORMATS, emulation_notice

FORMAT = 1
ALL_METHODS = (
    "rlrr", "rlrr+exact=true", "lora", "lora+plain", "hira", "ssf", "bitfit", "full", *TEXTBOOKS
)  # fmt: skip
USUAL_PRECISIONS = ("fp32", "bf16")
RATE_SIZES = (2048, 768, 3072)


@dataclass(frozen=True)
class SpeedPlan:
    """What is timed.

    Args:
        backbone: a name of `load_backbone`; its weights are random.
        methods: labels of `Contestant.parse`.
        batches: images per step.
        precisions: fp32, bf16 or fp16, the latter two under autocast; none named: fp32, and bf16
            unless the device emulates it.
        device: auto, cpu or cuda.
        rounds: timed rounds, after one warm-up round.
        image_size: pixels; None means the backbone's own.
        memory: whether to measure peak memory too, one fresh process per figure.
        inference: whether to time merged and un-merged inference too.

    Raises:
        VituneError: a value outside its range, or a device that is not there.
    """

    backbone: str = "vit_base_patch16_224"
    methods: Sequence[str] = ALL_METHODS
    batches: Sequence[int] = (8, 32)
    precisions: Sequence[str] = ()
    device: str = "auto"
    rounds: int = 5
    image_size: int | None = None
    memory: bool = True
    inference: bool = True

    def __post_init__(self) -> None:
        for precision in self.precisions:
            if precision not in NUMBER_FORMATS:
                raise VituneError(
                    f"--precision: got {precision!r}, expected some of {', '.join(NUMBER_FORMATS)}."
                )
        if self.rounds < 1 or not self.batches or min(self.batches) < 1 or not self.methods:
            raise VituneError(
                f"bench speed: got rounds={self.rounds!r}, batches={list(self.batches)!r}, "
                f"methods={list(self.methods)!r}, expected at least one of each."
            )
        if self.device not in ("auto", "cpu", "cuda"):
            raise VituneError(f"--device: got {self.device!r}, expected auto, cpu or cuda.")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise VituneError("--device: got 'cuda', expected a GPU that PyTorch can see. Use cpu.")

    @property
    def torch_device(self) -> torch.device:
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
        return torch.device(wanted if self.device == "auto" else self.device)


@dataclass
class Measured:
    """The figures of one method at one batch size and precision; times are listed by round.

    `gets` names the optimisations of the step that others may lack: lean step, attention, number
    formats.
    """

    method: str
    batch: int
    precision: str
    forward_ms: list[float] = field(default_factory=list)
    backward_ms: list[float] = field(default_factory=list)
    optimiser_ms: list[float] = field(default_factory=list)
    step_ms: list[float] = field(default_factory=list)
    plain_inference_ms: list[float] = field(default_factory=list)
    merged_ms: list[float] = field(default_factory=list)
    unmerged_ms: list[float] = field(default_factory=list)
    num_trainable: int = 0
    adapter_bytes: int = 0
    peak_mib: float | None = None
    resident_mib: float | None = None
    above_model_mib: float | None = None
    products: dict[str, float] = field(default_factory=dict)
    gets: list[str] = field(default_factory=list)
    floor_ms: float | None = None


Say = Callable[[str], None]


def bench_speed(
    plan: SpeedPlan, *, out: str | Path | None = None, say: Say = lambda text: None
) -> dict[str, Any]:
    """Time every method of `plan` and, with `out`, write the figures as JSON.

    Args:
        out: file for the result; its previous content is returned under "previous".
        say: called with a progress message.

    Raises:
        VituneError: an unknown method, or one that does not fit the backbone.
    """
    contestants = [Contestant.parse(label) for label in plan.methods]
    previous = read_result(out) if out is not None and Path(out).is_file() else None
    plan = _with_precisions(plan, say)
    load_before = _load()
    measured: list[Measured] = []
    rates: dict[str, list[float]] = {precision: [] for precision in plan.precisions}
    subjects = {}
    for contestant in contestants:
        say(f"building {contestant.label}")
        subjects[contestant.label] = _build(contestant, plan)
    for batch in plan.batches:
        measured += _timed_steps(plan, subjects, batch, rates, say)
    subjects.clear()
    if plan.inference:
        _time_inference(plan, contestants, measured, say)
    if plan.memory:
        _take_memory(plan, measured, say)
    gflops = {name: statistics.median(values) for name, values in rates.items()}
    _set_floors(measured, gflops)
    result = {
        "format": FORMAT,
        "plan": asdict(plan),
        "machine": _machine(plan.torch_device),
        "load": [load_before, _load()],
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "matmul_gflops": gflops,
        "rows": [asdict(row) for row in measured],
    }
    if out is not None:
        write_output(out, json.dumps(result, indent=1) + "\n", force=True)
    return {**result, "previous": previous}


def read_result(path: str | Path) -> dict[str, Any]:
    """Read a result that `bench_speed` wrote.

    Raises:
        VituneError: the file is missing or has other content.
    """
    try:
        values = json.loads(Path(path).read_text())
        if values["format"] == FORMAT:
            return dict(values)
    except (OSError, json.JSONDecodeError, KeyError, TypeError, UnicodeDecodeError):
        pass
    raise VituneError(
        f"--out: got {str(path)!r}, expected a result of 'vitune bench speed' or no file yet."
    )


def _with_precisions(plan: SpeedPlan, say: Say) -> SpeedPlan:
    """The plan with its number formats named; what the device emulates is said."""
    kept = []
    for precision in plan.precisions or USUAL_PRECISIONS:
        notice = emulation_notice(precision, plan.torch_device.type)
        if notice and not plan.precisions:
            say(f"{precision} is left out: this processor emulates it")
            continue
        if notice:
            say(notice)
        kept.append(precision)
    return replace(plan, precisions=kept)


def _build(contestant: Contestant, plan: SpeedPlan) -> Subject:
    torch.manual_seed(0)
    return Subject(contestant, plan.backbone, plan.torch_device, plan.image_size)


def _timed_steps(
    plan: SpeedPlan,
    subjects: dict[str, Subject],
    batch: int,
    rates: dict[str, list[float]],
    say: Say,
) -> list[Measured]:
    """Rounds of one step per method and precision; the first round warms up."""
    rows = {
        (label, precision): Measured(
            label,
            batch,
            precision,
            num_trainable=subject.num_trainable(),
            adapter_bytes=subject.adapter_bytes(),
        )
        for precision, (label, subject) in product(plan.precisions, subjects.items())
    }
    images, labels = next(iter(subjects.values())).images(batch)
    for number in range(plan.rounds + 1):
        say(f"batch {batch}, round {number} of {plan.rounds}")
        for precision in plan.precisions:
            rate = _matmul_gflops(plan.torch_device, precision)
            if number:
                rates[precision].append(rate)
        # A new order each round, because a step depends on the caches and heap left by the last
        # one.
        for (label, precision), row in random.Random(number).sample([*rows.items()], len(rows)):
            taken = subjects[label].step(images, labels, precision)
            if number:
                row.forward_ms.append(taken.forward_ms)
                row.backward_ms.append(taken.backward_ms)
                row.optimiser_ms.append(taken.optimiser_ms)
                row.step_ms.append(taken.step_ms)
    for (label, precision), row in rows.items():
        subject = subjects[label]
        row.products = count_products(partial(subject.step, images, labels, precision))
        row.gets = [*subject.contestant.gets, formats_text(row.products)]
    return list(rows.values())


def _time_inference(
    plan: SpeedPlan, contestants: Sequence[Contestant], measured: Sequence[Measured], say: Say
) -> None:
    """Plain, merged and un-merged forward passes, in turns; only methods that merge."""
    plain = _build(Contestant.parse("linear"), plan)
    _merge(plain)
    for contestant in contestants:
        pair = [_build(contestant, plan) for _ in range(2)]
        if not hasattr(pair[1].model, "merge_and_unload") or not _merge(pair[1]):
            continue
        say(f"inference of {contestant.label}")
        for row in measured:
            if row.method != contestant.label:
                continue
            images, _ = plain.images(row.batch)
            for number in range(plan.rounds + 1):
                times = [s.inference_ms(images, row.precision) for s in (plain, *pair)]
                if number:
                    row.plain_inference_ms.append(times[0])
                    row.unmerged_ms.append(times[1])
                    row.merged_ms.append(times[2])


def _merge(subject: Subject) -> bool:
    """Fold the adapter in; False if the method cannot."""
    try:
        subject.model = subject.network = cast(Any, subject.model).merge_and_unload()
    except (ValueError, NotImplementedError, AttributeError):
        return False
    return True


def _take_memory(plan: SpeedPlan, measured: Sequence[Measured], say: Say) -> None:
    for row in measured:
        say(f"memory of {row.method}, batch {row.batch}, {row.precision}")
        found = ask(
            Question(
                backbone=plan.backbone,
                label=row.method,
                batch=row.batch,
                precision=row.precision,
                device=plan.torch_device.type,
                image_size=plan.image_size,
                num_threads=torch.get_num_threads(),
            )
        )
        row.peak_mib, row.resident_mib = found.peak_mib, found.resident_mib
        row.above_model_mib = found.above_model_mib


def _set_floors(measured: Sequence[Measured], gflops: dict[str, float]) -> None:
    """Time of only a step's matrix products, each at the rate measured for its number format."""
    formats = {name: str(NUMBER_FORMATS[name]).removeprefix("torch.") for name in gflops}
    rates = {formats[name]: rate for name, rate in gflops.items()}
    for row in measured:
        if row.products:
            own = gflops[row.precision]
            seconds = sum(n / (rates.get(d, own) * 1e9) for d, n in row.products.items())
            row.floor_ms = seconds * 1e3


def _matmul_gflops(device: torch.device, precision: str) -> float:
    """Floating-point operations a second of a large matrix product, in units of 1e9."""
    n, i, o = RATE_SIZES
    dtype = NUMBER_FORMATS[precision]
    x = torch.randn(n, i, device=device).to(dtype)  # zeros and ones can be faster
    weight = torch.randn(i, o, device=device).to(dtype)
    repeats = 3 if device.type == "cpu" else 50
    durations = []
    for _ in _synchronised(device, range(repeats)):
        start = time.perf_counter()
        x @ weight
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        durations.append(time.perf_counter() - start)
    return 2 * n * i * o / min(durations) / 1e9


def _synchronised(device: torch.device, numbers: range) -> Iterator[int]:
    for number in numbers:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        yield number


def _machine(device: torch.device) -> dict[str, Any]:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name()
    return {
        "device": name,
        "num_cores": os.cpu_count(),
        "num_threads": torch.get_num_threads(),
        "system": platform.system(),
        "versions": installed_versions(),
    }


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _load() -> float | None:
    """Average number of processes that wanted a core over the last minute."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None
