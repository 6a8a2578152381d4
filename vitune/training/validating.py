"""Scores on validation images: loss, accuracy and logits, from every process's share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.nn import functional as F

from vitune.backbones import logits_of
from vitune.data import CachedImages, Split, normalise
from vitune.methods import MethodLayer
from vitune.ops import first_token_only
from vitune.preprocessing import Preprocessing

EVAL_BATCH = 128
"""Images validated at a time: enough for a GPU, and activations that a CPU's caches still hold."""

Seen = tuple[Tensor, Tensor]
"""Logits (n, c) and labels (n,) of a split, in its order."""


@dataclass(frozen=True)
class SplitScores:
    """Mean cross-entropy and accuracy of a model on a split, and what they come from."""

    loss: float
    accuracy: float
    seen: Seen


def scores_on(
    split: Split,
    model: PeftModel,
    preprocessing: Preprocessing,
    accelerator: Accelerator,
    tail: Sequence[nn.Module],
) -> SplitScores:
    """Run `model` on `split`, every process taking its share.

    Args:
        tail: the modules that need the class token alone, see `class_tail`.
    """
    rank, world = accelerator.process_index, accelerator.num_processes
    indices = np.arange(rank, len(split), world)
    images = CachedImages(split)
    totals = torch.zeros(3, dtype=torch.float64)
    seen = []
    with inference_weights(model), first_token_only(*tail):
        for start in range(0, len(indices), EVAL_BATCH):
            batch = images.__getitems__(indices[start : start + EVAL_BATCH].tolist())
            pixels = normalise(batch["images"], preprocessing, device=accelerator.device)
            with accelerator.autocast():
                logits = logits_of(model(pixels))
            logits = logits.float()  # (b, c)
            labels = batch["labels"].to(logits.device)
            seen.append((logits.cpu(), batch["labels"]))
            loss = F.cross_entropy(logits, labels, reduction="sum")
            correct = (logits.argmax(-1) == labels).sum()
            totals += torch.tensor([loss.item(), correct.item(), len(labels)])
    whole = _gathered(seen, indices, world)
    if world > 1:
        totals = accelerator.reduce(totals.to(accelerator.device)).cpu()
    return SplitScores((totals[0] / totals[2]).item(), (totals[1] / totals[2]).item(), whole)


@contextmanager
def inference_weights(model: PeftModel) -> Iterator[None]:
    """Within: eval mode, no gradients, and adapters merged where that is exactly reversible.

    vitune's layers put the very tensors back. PEFT's own subtract what they added, which drifts,
    so a model that has any of those is evaluated un-merged.
    """
    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    exact = bool(layers) and all(isinstance(m, MethodLayer) and m.mergeable for m in layers)
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            if exact:
                model.merge_adapter()
            yield
    finally:
        if exact:
            model.unmerge_adapter()
        model.train(was_training)


def _gathered(seen: Sequence[Seen], indices: np.ndarray, num_processes: int) -> Seen:
    """Logits and labels of a split in its order, from every process."""
    classes = next((logits.shape[1] for logits, _ in seen), 0)
    logits = torch.cat([torch.zeros(0, classes), *(part for part, _ in seen)])
    labels = torch.cat([torch.zeros(0, dtype=torch.int64), *(part for _, part in seen)])
    if num_processes == 1:
        return logits, labels
    parts = gather_object([(indices, logits.numpy(), labels.numpy())])
    order = np.argsort(np.concatenate([part[0] for part in parts]))
    whole = np.concatenate([part[1] for part in parts if len(part[1])])
    return (
        torch.from_numpy(whole[order]),
        torch.from_numpy(np.concatenate([part[2] for part in parts])[order]),
    )
