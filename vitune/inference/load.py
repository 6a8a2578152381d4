"""Open a run, an adapter or a merged model, ready to predict."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from weakref import WeakKeyDictionary

import torch
from peft import PeftModel
from torch import Tensor, nn

from vitune.adapters import (
    AdapterCard,
    adapter_folder,
    load_adapter,
    load_merged,
    merged_model,
)
from vitune.backbones import load_backbone, logits_of
from vitune.counts import ParameterCounts, count_parameters
from vitune.data import Split, batches, normalise
from vitune.errors import AdapterError, VituneError
from vitune.exits import EarlyExit, ExitsFolder, Outcome, early_exit
from vitune.fewer_tokens import TokenPlan, reduce_tokens
from vitune.hub import local_copy
from vitune.methods import get_method
from vitune.ops import usual_modes

BATCH = 128
EXITS = ("auto", "full")

_AT_WORK: WeakKeyDictionary[nn.Module, threading.Lock] = WeakKeyDictionary()
"""Locks of networks whose passes would meddle with each other. Not in a run: locks are not copied.
"""


@dataclass(frozen=True)
class LoadedRun:
    """A trained network with its card; threads may share it.

    Args:
        path: the folder it came from.
        card: backbone, preprocessing, class names.
        model: the network, merged if requested and supported by its method.
        counts: trained parameters; None for a merged folder, where they are unknown.
        exits: the network with its early exits; None if it has none, or is to run in full.
    """

    path: Path
    card: AdapterCard
    model: nn.Module
    counts: ParameterCounts | None
    exits: EarlyExit | None = None

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in the order of the logits."""
        return self.card.classes

    @property
    def device(self) -> torch.device:
        """The device of the network."""
        return next(self.model.parameters()).device

    def logits(self, split: Split, batch_size: int = BATCH) -> Iterator[Tensor]:
        """Logits of all images in order, a batch at a time, divided by the card's temperature.

        With exits each image's logits are those of the exit it takes. An early one has a
        temperature of its own in its weights, so the card's is for images that go to the end;
        thresholds apply to logits before the card's.

        Shapes: yields (b, c) float32 on the CPU.
        """
        self.model.eval()
        for batch in batches(split, batch_size):
            yield self._logits_of(batch["images"])

    @torch.inference_mode()  # not around a `yield`: it would hold for the caller's code as well
    def _logits_of(self, images: Tensor) -> Tensor:
        dtype = next(self.model.parameters()).dtype
        inputs = normalise(images, self.card.preprocessing, device=self.device, dtype=dtype)
        return self.outcome(inputs).tempered(self.card.temperature).cpu()

    def outcome(self, inputs: Tensor) -> Outcome:
        """Logits before the temperature, and where each image left: all at the last, or only, exit.

        Shapes: inputs (b, 3, h, w), normalised.
        """
        with self._alone():
            if self.exits is not None:
                return self.exits(inputs)
            logits = logits_of(self.model(inputs)).float()
        return Outcome(logits, torch.zeros(len(logits), dtype=torch.int64), 0)

    def _alone(self) -> AbstractContextManager[object]:
        """One pass at a time where hooks on the blocks remember the images that go through."""
        if self.exits is None and not TokenPlan.parse(self.card.tokens).in_inference:
            return nullcontext()
        return _AT_WORK.setdefault(self.model, threading.Lock())


@usual_modes()
def load_run(
    path: str | Path,
    *,
    merge: bool = True,
    force: bool = False,
    device: str = "auto",
    exits: str = "auto",
) -> LoadedRun:
    """The run, adapter or merged model in `path`, ready to predict.

    Args:
        path: a run folder, its `adapter/`, what `vitune merge` wrote, or `hf:user/name` on the hub.
        merge: fold the adapter into the weights where its method can; faster, same function.
        force: load even if the backbone's weights are not those it was trained on.
        device: "auto", "cpu" or "cuda".
        exits: "auto" lets images leave early where the run has exits with thresholds; "full" runs
            the whole network for every image.

    Raises:
        VituneError: an unknown value of `exits`, or exits that do not fit the run.
        AdapterError: no such folder, a damaged one, or one for another backbone.
        BackboneError: its backbone cannot be loaded.
    """
    if exits not in EXITS:
        raise VituneError(f"--exits: got {exits!r}, expected one of {EXITS}.")
    place = _device(device)
    path = local_copy(path)
    folder = adapter_folder(path)
    card = AdapterCard.read(folder, force=force)
    arguments = dict(card.backbone_args)
    backbone = load_backbone(
        card.backbone, num_classes=len(card.classes), pretrained=not card.merged, **arguments
    )
    counts = None
    if card.merged:
        network = load_merged(backbone.model, folder, force=force)
    else:
        adapted = load_adapter(backbone.model, folder, force=force, trainable=True)
        counts = count_parameters(adapted)
        network = _folded(adapted) if merge and _merges(card) else adapted
    plan = TokenPlan.parse(card.tokens)
    if plan.in_inference:
        reduce_tokens(network, plan)
    network.requires_grad_(False)
    network = network.to(place).eval()
    leaving = None
    if exits == "auto":
        leaving = early_exit(network, ExitsFolder(Path(path)), len(card.classes))
    return LoadedRun(Path(path), card, network, counts, leaving)


def load_peft(path: str | Path, *, force: bool = False) -> tuple[PeftModel, AdapterCard]:
    """The PEFT model of a run or adapter folder, un-merged, with its card.

    Raises:
        AdapterError: as `load_run`; also for a folder that holds a merged model.
    """
    loaded = load_run(path, merge=False, force=force, device="cpu", exits="full")
    if not isinstance(loaded.model, PeftModel):
        raise AdapterError(
            f"{str(path)!r}: got a merged model, expected a run or an adapter. "
            "Pass the run it was merged from."
        )
    return loaded.model, loaded.card


def _folded(adapted: PeftModel) -> nn.Module:
    """The merged model, or the un-merged one if PEFT turns out not to merge the method."""
    try:
        return merged_model(adapted)
    except AdapterError as error:
        if isinstance(error.__cause__, NotImplementedError):
            return adapted
        raise


def _merges(card: AdapterCard) -> bool:
    return get_method(card.method).mergeable


def _device(asked: str) -> str:
    if asked not in ("auto", "cpu", "cuda"):
        raise AdapterError(f"--device: got {asked!r}, expected auto, cpu or cuda.")
    if asked == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if asked == "cuda" and not torch.cuda.is_available():
        raise AdapterError("--device: got 'cuda', expected a GPU that PyTorch can see. Use cpu.")
    return asked
