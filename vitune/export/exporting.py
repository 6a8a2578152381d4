"""Write a trained run for another runtime: trace it, verify it there, describe it."""

from __future__ import annotations

import json
import platform
import shutil
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch.export import ExportedProgram

from vitune.environment import installed_versions
from vitune.errors import AdapterError, VituneError, nearest
from vitune.exits import EarlyExit, ExitsFolder, Thresholds
from vitune.export import standalone
from vitune.export.deployed import Deployed, segments, traced
from vitune.export.export_card import GRAPH_FACTS, RUNNER, write_card, write_page
from vitune.export.export_images import ExportImages, export_images
from vitune.export.onnx import OnnxTarget
from vitune.export.openvino import OpenVinoTarget
from vitune.export.pt2 import Pt2Target
from vitune.export.target import Job, Target, require, versions_of
from vitune.export.verify import Expected, Verdict, latencies, pytorch_answers, verified
from vitune.files import atomic_folder, check_new_folder
from vitune.inference import LoadedRun, load_run
from vitune.machine import ProcessorUse
from vitune.ops import usual_modes

TARGETS: Mapping[str, Target] = {
    target.name: target for target in (OnnxTarget(), Pt2Target(), OpenVinoTarget())
}
FLOAT = "float32"

Progress = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class _Trial:
    """One way to write the network: its folder, its verdict, its timing."""

    precision: str
    folder: Path
    verdict: Verdict
    latency: list[dict[str, Any]]
    num_bytes: int

    @property
    def facts(self) -> dict[str, Any]:
        return {
            "accuracy": self.verdict.accuracy,
            "top1_agreement": self.verdict.whole.top1,
            "bytes": self.num_bytes,
            "latency": self.latency,
            "failure": self.verdict.failure,
        }


@usual_modes()
def export_run(
    run: str | Path,
    out: str | Path,
    *,
    to: str = "onnx",
    int8: bool = False,
    data: str | Path | None = None,
    force: bool = False,
    exits: str = "auto",
    on_read: Progress | None = None,
    on_step: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Write the network of `run` for the runtime `to` into the new folder `out`.

    The graph takes uint8 images (b, h, w, 3), already resized and cropped, for any b; normalisation
    is part of it. The file is run by its own runtime on the run's validation images, and kept only
    if it agrees with PyTorch. The folder also gets export.json, README.md and run.py, which needs
    no vitune.

    Args:
        to: one of TARGETS.
        int8: 8-bit weights and activations; of the kinds the target supports, the one with the
            higher validation accuracy.
        data: images to check on; None means those of the run.
        force: load even if the backbone's weights are not those it was trained on.
        exits: "auto" writes one graph per segment if images leave early; "full" writes the whole
            network as one.
        on_read: called with (images done, total images).
        on_step: called with a description of the next step.

    Returns:
        The content of export.json.

    Raises:
        VituneError: an unknown target, a runtime that is not installed, 8 bits if the target does
            not support them or if exits are certified.
        OutputError: `out` exists.
        AdapterError: the network cannot be traced, or the file failed the check; nothing is left.
    """
    target = find_target(to)
    require(target)
    if int8 and not target.kinds:
        names = ", ".join(name for name, other in TARGETS.items() if other.kinds)
        raise VituneError(f"--int8: got --to {to}, expected one of {names}.")
    check_new_folder(out)
    tell = on_step or (lambda _: None)
    loaded = _leaving_only(load_run(run, force=force, device="cpu", exits=exits), target)
    if int8 and loaded.exits is not None:
        raise VituneError(
            "--int8: got a run with exits, whose thresholds were chosen for float32, expected one "
            "without. Export the whole network with --exits full."
        )
    images = export_images(loaded, data, on_read=on_read)
    tell("tracing the network")
    programs = _programs(loaded)
    about = described(loaded, target, tuple(programs))
    with atomic_folder(out) as folder:
        load = ProcessorUse()
        tries = _Tries(loaded, target, programs, about, images, folder, tell)
        chosen = tries.best() if int8 else tries.checked(FLOAT)
        card = {**about, **tries.card(chosen, load.others)}
        for file in chosen.folder.iterdir():
            file.replace(folder / file.name)
        for trial in folder.glob("try-*"):
            shutil.rmtree(trial)
        shutil.copyfile(str(standalone.__file__), folder / RUNNER)
        write_card(folder, card)
        write_page(folder, card)
    return card


def find_target(name: str) -> Target:
    """The target called `name`.

    Raises:
        VituneError: there is none; the text lists the names.
    """
    if name not in TARGETS:
        raise VituneError(
            f"--to: got {name!r}, expected one of {', '.join(TARGETS)}. "
            f"{nearest(str(name), TARGETS)}"
        )
    return TARGETS[name]


def _leaving_only(run: LoadedRun, target: Target) -> LoadedRun:
    """The run with only those exits at which images leave; without any if the target has none."""
    if run.exits is None:
        return run
    pairs = [
        (place, value)
        for place, value in zip(run.exits.exits, run.exits.values, strict=True)
        if value <= 1
    ]
    if not pairs or not target.cuts:
        if pairs:
            warnings.warn(
                f"--to {target.name} has no exits: every image runs to the end, so probabilities "
                "are those of 'vitune predict --exits full'.",
                stacklevel=3,
            )
        return replace(run, exits=None)
    places, values = zip(*pairs, strict=True)
    return replace(run, exits=EarlyExit(run.model, places, values))


def _programs(run: LoadedRun) -> dict[str, ExportedProgram]:
    whole = Deployed(run.model, run.card.preprocessing).eval()
    if run.exits is None:
        return {"model": traced(whole, whole.example())}
    parts = segments(whole, run.exits.exits)
    return {f"segment-{n}": traced(part, example) for n, (part, example) in enumerate(parts)}


def described(run: LoadedRun, target: Target, names: tuple[str, ...]) -> dict[str, Any]:
    """What the card says before anything is written."""
    height, width = run.card.preprocessing.image_size
    return {
        "format": 1,
        "target": target.name,
        "graphs": [f"{name}{target.suffix}" for name in names],
        "input": {
            "name": "images",
            "type": "uint8",
            "layout": "NHWC",
            "shape": ["batch", height, width, 3],
            "inside": "normalisation",
            "outside": "decoding, EXIF rotation, resizing, cropping: see prepare() in run.py",
        },
        "classes": list(run.classes),
        "temperature": run.card.temperature,
        "preprocessing": run.card.preprocessing.to_dict(),
        "exits": _exits(run),
        "method": run.card.method,
        "merged": not isinstance(run.model, PeftModel),
        "backbone": run.card.backbone,
        "fingerprint": run.card.fingerprint,
        "weights_sha256": {
            name: digest
            for name, digest in run.card.checksums.items()
            if name.endswith(".safetensors")
        },
    }


def _exits(run: LoadedRun) -> dict[str, Any] | None:
    """Where images leave and what is certified; None if no image leaves."""
    if run.exits is None:
        return None
    chosen = Thresholds.read(ExitsFolder(run.path).thresholds)
    proof = chosen.certificate
    return {
        "after": [place.after for place in run.exits.exits],
        "thresholds": list(run.exits.values),
        "certificate": None if proof is None else asdict(proof),
        "budget": chosen.budget,
        "fingerprint": chosen.fingerprint,
    }


def _rightness(trial: _Trial) -> tuple[float, float, float]:
    """Accuracy first; with few images it is often equal, and then the logits decide."""
    whole = trial.verdict.whole
    return trial.verdict.accuracy, whole.top1, -whole.relative


@dataclass(frozen=True, eq=False)
class _Tries:
    """Ways to write one network, each in a folder of its own inside `folder`."""

    run: LoadedRun
    target: Target
    programs: Mapping[str, ExportedProgram]
    about: Mapping[str, Any]
    images: ExportImages
    folder: Path
    tell: Callable[[str], None]
    done: list[_Trial] = field(default_factory=list)
    converted: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def expected(self) -> Expected:
        """PyTorch's answers."""
        return pytorch_answers(self.run, self.images.checked.images)

    def checked(self, precision: str) -> _Trial:
        """The file in this precision, if it agrees with PyTorch.

        Raises:
            AdapterError: it does not.
        """
        trial = self.tried(precision)
        if trial.verdict.failure:
            raise AdapterError(
                f"export: got {trial.verdict.failure}. Nothing was written to --out."
            )
        return trial

    def best(self) -> _Trial:
        """The 8-bit file with the highest validation accuracy; float32 is checked first.

        Raises:
            AdapterError: none keeps enough accuracy.
        """
        self.checked(FLOAT)
        trials = [self.tried(kind) for kind in self.target.kinds]
        fine = [trial for trial in trials if not trial.verdict.failure]
        if not fine:
            reasons = "; ".join(f"{trial.precision}: {trial.verdict.failure}" for trial in trials)
            raise AdapterError(f"--int8: got {reasons}. Nothing was written. Export float32.")
        return max(fine, key=_rightness)

    def tried(self, precision: str) -> _Trial:
        """Write the network, run it in its own runtime, time it."""
        folder = self.folder / f"try-{precision}"
        folder.mkdir()
        facts = {name: json.dumps(self.about[name]) for name in GRAPH_FACTS}
        job = Job(
            folder, self.programs, {**facts, "precision": json.dumps(precision)}, self.converted
        )
        self.tell(f"writing {precision}")
        if precision == FLOAT:
            self.target.write(job)
        else:
            self.target.write_int8(job, precision, self.images.calibration.images)
        num_bytes = sum(file.stat().st_size for file in folder.iterdir())
        write_card(folder, self.about)
        self.tell(f"checking {precision} on {len(self.images.checked):,} images")
        images = self.images.checked
        verdict = verified(folder, self.expected, images, int8=precision != FLOAT)
        latency = latencies(self.run, folder, images.images)
        trial = _Trial(precision, folder, verdict, [asdict(row) for row in latency], num_bytes)
        self.done.append(trial)
        return trial

    def card(self, chosen: _Trial, others: float | None) -> dict[str, Any]:
        """The verdict, for the card."""
        return {
            "precision": FLOAT if chosen.precision == FLOAT else f"int8 {chosen.precision}",
            "bytes": chosen.num_bytes,
            "images": {
                "data": self.images.data,
                "num_checked": len(self.images.checked),
                "were_trained_on": self.images.were_trained_on,
                "num_calibration": 0
                if chosen.precision != "static"
                else len(self.images.calibration),
            },
            "verification": chosen.verdict.as_dict(),
            "latency": chosen.latency,
            "tries": {trial.precision: trial.facts for trial in self.done},
            "machine": {
                "threads": torch.get_num_threads(),
                "cores_of_others": others,
                "processor": platform.processor() or platform.machine(),
                "versions": {**installed_versions(), **versions_of(self.target)},
            },
        }
