"""A run's answers for classes that are otherwise common than its training images were."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vitune.adapters import save_adapter
from vitune.errors import AdapterError, DataError, VituneError, nearest, one_line
from vitune.files import check_new_folder
from vitune.inference.load import load_peft, load_run
from vitune.inference.own_images import home_of, own_splits
from vitune.inference.seen import held_out, used_images
from vitune.methods import trained_classifier
from vitune.ops import usual_modes
from vitune.runs import RunFolder

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Accuracy:
    """On the same images: the share of right answers, as they are and as the classes will be.

    Args:
        plain: every image counts the same.
        at_shares: the mean of the classes' accuracies, weighted by the shares asked for; classes
            without an image are left out.
    """

    plain: float
    at_shares: float


@dataclass(frozen=True)
class Rebalanced:
    """What `rebalance_run` did.

    Args:
        num_trained: training images of each class, in the order of the logits.
        shares: of the classes from now on; they sum to 1.
        before, after: on the run's validation images; None if there are none to be had.
        num_val: how many they are.
        note: why there are none, or what is odd about them; or ''.
    """

    classes: tuple[str, ...]
    num_trained: tuple[int, ...]
    shares: tuple[float, ...]
    before: Accuracy | None = None
    after: Accuracy | None = None
    num_val: int = 0
    note: str = ""


@usual_modes()
def rebalance_run(
    run: str | Path,
    out: str | Path,
    shares: Mapping[str, float] | None = None,
    *,
    force: bool = False,
    device: str = "auto",
    on_read: Progress | None = None,
) -> Rebalanced:
    """Write the adapter of `run` for classes of other shares to the new folder `out`.

    A classifier answers rare classes seldom because they are rare. With π the shares of the
    classes among the training images and q those from now on, the probabilities p of the run
    become p_c q_c / π_c, normalised. That adds T · log(q_c / π_c) to the classifier's bias, T
    being the run's temperature; no other weight changes, and nothing is trained.

    Args:
        run: a run folder, or an adapter in one: the run knows how many images of a class it was
            trained on.
        shares: by class name, any positive numbers in proportion; None: all equally common, which
            aims at the mean of the classes' accuracies.
        force: as in `load_run`.

    Raises:
        AdapterError: `out` exists, the run cannot be loaded, is merged, has no list of training
            images, or its classifier has no bias.
        VituneError: shares that are not positive, or not of the run's classes.
    Source: Saerens, Latinne and Decaestecker, Adjusting the outputs of a classifier to new a
        priori probabilities (2002), equation 2.4; Menon et al., Long-tail learning via logit
        adjustment (ICLR 2021), section 4.
    """
    check_new_folder(out)
    model, card = load_peft(run, force=force)
    trained = _trained_images(run, card.classes)
    asked = _shares(shares, card.classes)
    shift = torch.tensor(asked).log() - torch.tensor(trained / trained.sum()).log()  # (c,) float64
    linear, num_heads = trained_classifier(model)
    if not isinstance(linear, nn.Linear) or linear.bias is None:
        raise AdapterError(
            f"rebalance: got {str(run)!r}, whose classifier ({card.method}) has no bias to change, "
            "expected a linear classifier with one."
        )
    done = Rebalanced(card.classes, tuple(trained.tolist()), tuple(asked))
    done = _with_accuracies(done, run, shift, device, force, on_read)
    with torch.no_grad():
        linear.bias.add_((num_heads * card.temperature * shift).to(linear.bias))
    save_adapter(model, out, card)
    return done


def _trained_images(run: str | Path, classes: tuple[str, ...]) -> np.ndarray:
    """Training images of each class. Shapes: (c,) int64."""
    used = used_images(run)
    if used is None:
        raise AdapterError(
            f"rebalance: got {str(run)!r} without its list of training images (images.npz), "
            "expected a run folder or an adapter in one."
        )
    if len(used.classes) != len(classes):  # a renamed class keeps its place
        raise AdapterError(
            f"rebalance: got {str(run)!r} with {len(classes)} classes, expected the "
            f"{len(used.classes)} of its training images."
        )
    counts = np.bincount(used.tables["train"].labels, minlength=len(classes))
    if not counts.all():
        rare = classes[int(counts.argmin())]
        raise AdapterError(
            f"rebalance: got no training image of class {rare!r}, expected at least one of each."
        )
    return counts


def _shares(given: Mapping[str, float] | None, classes: tuple[str, ...]) -> list[float]:
    """One share per class; they sum to 1."""
    if given is None:
        return [1 / len(classes)] * len(classes)
    if not isinstance(given, Mapping):
        raise VituneError(f"--shares: got {given!r}, expected a share for each class, by name.")
    unknown = sorted(set(given) - set(classes))
    if unknown:
        raise VituneError(
            f"--shares: got class {unknown[0]!r}, expected the run's. "
            f"{nearest(unknown[0], classes)}"
        )
    missing = [name for name in classes if name not in given]
    if missing:
        raise VituneError(
            f"--shares: got nothing for {len(missing)} of the run's {len(classes)} classes, "
            f"{missing[0]!r} for one, expected a share for each."
        )
    for name in classes:
        share = given[name]
        if not (isinstance(share, Real) and 0 < share < math.inf):
            shown = f"{share:g}" if isinstance(share, Real) else repr(share)
            raise VituneError(f"--shares: got {shown} for {name!r}, expected a number above 0.")
    total = math.fsum(given.values())
    return [float(given[name]) / total for name in classes]


def _with_accuracies(
    done: Rebalanced, run: str | Path, shift: Tensor, device: str, force: bool,
    on_read: Progress | None,
) -> Rebalanced:  # fmt: skip
    """What the change does on the run's validation images, if they are to be had."""
    home = home_of(RunFolder(Path(run)))
    assert home is not None  # it knew the training images
    config: dict[str, Any] = home.read_config()
    loaded = load_run(run, device=device, force=force, exits="full")
    try:
        val = own_splits(loaded, str(config["data"]), config, on_read).val
        if val is None:
            return replace(done, note="no class has an image to spare for validation")
        val, were_trained_on = held_out(run, val, otherwise=bool(config.get("refit")))
    except DataError as error:
        return replace(done, note=f"the run's images cannot be read: {one_line(error)}")
    if were_trained_on:
        return replace(done, note="the run was trained on its validation images too")
    logits, labels = torch.cat(list(loaded.logits(val))), torch.from_numpy(np.array(val.labels))
    before, after = (
        _accuracy(answers, labels, done.shares) for answers in (logits, logits + shift)
    )
    return replace(done, before=before, after=after, num_val=len(val))


def _accuracy(logits: Tensor, labels: Tensor, shares: tuple[float, ...]) -> Accuracy:
    """Shapes: logits (n, c); labels (n,)."""
    right = logits.argmax(1) == labels
    images = labels.bincount(minlength=len(shares))
    present = images > 0
    recalls = labels[right].bincount(minlength=len(shares))[present] / images[present]
    weights = torch.tensor(shares, dtype=torch.float64)[present]
    return Accuracy(
        right.double().mean().item(), ((recalls * weights).sum() / weights.sum()).item()
    )
