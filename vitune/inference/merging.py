"""Fold a run's adapter into the backbone's weights; check it before anything is written."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from vitune.adapters import added_biases, merged_model, missing_biases, save_merged
from vitune.backbones import logits_of
from vitune.errors import AdapterError
from vitune.files import check_new_folder
from vitune.inference.load import load_peft
from vitune.methods import MethodLayer
from vitune.ops import usual_modes
from vitune.preprocessing import Preprocessing

NUM_PROBES = 4
FOREIGN_TOLERANCE = 1e-4


@dataclass(frozen=True)
class Merged:
    """What merging did.

    Args:
        difference: the largest between merged and un-merged logits on random images, relative to
            the largest logit.
        added_biases: names of biases that the pre-trained network does not have.
    """

    difference: float
    added_biases: tuple[str, ...]


def merge_run(run: str | Path, out: str | Path, *, force: bool = False) -> float:
    """Write the merged network of `run` to the new folder `out`.

    Returns:
        `difference` of `merge_and_tell`, which this is otherwise.
    """
    return merge_and_tell(run, out, force=force).difference


@usual_modes()
def merge_and_tell(run: str | Path, out: str | Path, *, force: bool = False) -> Merged:
    """Write the merged network of `run` to the new folder `out`, and say what that changed.

    Raises:
        AdapterError: `out` exists, the method does not merge, or the difference is above the
            method's own tolerance; nothing is then written.
    """
    check_new_folder(out)
    model, card = load_peft(run, force=force)
    layers = [module for module in model.modules() if isinstance(module, MethodLayer)]
    tolerance = max((layer.merge_tolerance for layer in layers), default=FOREIGN_TOLERANCE)
    images = probe_images(card.preprocessing)
    before, missing = _logits(model, images), missing_biases(model)
    network = merged_model(model)
    difference = relative_difference(before, _logits(network, images))
    if not difference <= tolerance:
        raise AdapterError(
            f"merge: got logits that differ by {difference:.1e} of the largest, expected at most "
            f"{tolerance:.0e}. Nothing was written."
        )
    save_merged(network, out, card)
    return Merged(difference, tuple(added_biases(network, missing)))


def probe_images(preprocessing: Preprocessing, seed: int = 0) -> Tensor:
    """Random inputs for the backbone.

    Shapes: (NUM_PROBES, 3, h, w), standard normal.
    """
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(NUM_PROBES, 3, *preprocessing.image_size, generator=generator)


def relative_difference(expected: Tensor, found: Tensor) -> float:
    """max |expected - found| / max |expected|."""
    return ((expected - found).abs().max() / expected.abs().max().clamp(min=1e-12)).item()


@torch.inference_mode()
def _logits(model: nn.Module, images: Tensor) -> Tensor:
    return logits_of(model.eval()(images)).float()
