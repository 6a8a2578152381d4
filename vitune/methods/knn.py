"""Nearest neighbours: the training images serve as the classifier."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitune.methods.authoring import BackboneError, MethodLayer, Site, VituneError
from vitune.methods.probe_authoring import HeadProblem, Labelled, SolvedConfig, SolvedHead, folds
from vitune.ops import calibrated_losses, row_chunks

NEIGHBOURS = (1, 3, 5, 10, 20, 50)
SHARPNESS = 1 / 0.07
FLOOR = 1e-4
CHUNK = 1024


def vote(features: Tensor, keys: Tensor, votes: Tensor, num_neighbours: int) -> Tensor:
    """logit_c = log Σ over the k nearest of softmax(cos(x, x_i) / 0.07)_i · votes_ic.

    Shapes: features (b, d); keys (n, d); votes (n, c); returns (b, c).
    """
    likeness = F.normalize(features, dim=1) @ F.normalize(keys, dim=1).T  # (b, n)
    near, index = likeness.topk(min(num_neighbours, len(keys)), dim=1)  # (b, k)
    share = (SHARPNESS * near).softmax(1)
    return (share[:, :, None] * votes[index]).sum(1).clamp(min=FLOOR).log()


@dataclass(frozen=True)
class Neighbours(SolvedHead):
    """A memory of features that replaces a linear head.

    Shapes: keys (n, d); votes (n, c), a row of zeros with a one.
    """

    keys: Tensor = field(default_factory=lambda: torch.zeros(0, 0))
    votes: Tensor = field(default_factory=lambda: torch.zeros(0, 0))

    def logits(self, features: Any) -> Tensor:
        """Shapes: features (n, d); returns (n, c) float32 on the CPU."""
        count = int(self.chosen["num_neighbours"])
        parts = [vote(part.float().cpu(), self.keys, self.votes, count)
                 for part in row_chunks(features, self.keys.shape[1], CHUNK)]  # fmt: skip
        return torch.cat(parts)

    def arguments(self) -> dict[str, Any]:
        """The arguments the method needs for this memory."""
        return {"num_images": len(self.keys), "num_neighbours": int(self.chosen["num_neighbours"])}

    def place(self, model: nn.Module) -> None:
        """Write the memory into the layer at the classifier."""
        layer = next(m for m in model.modules() if isinstance(m, NeighbourLayer))
        with torch.no_grad():
            layer.keys["default"].copy_(self.keys)
            layer.votes["default"].copy_(self.votes)


class NeighbourLayer(MethodLayer):
    """The classifier, replaced by a vote of stored features; see `vote`.

    Shapes: keys (n, d); votes (n, c).
    """

    adapter_layer_names = ("keys", "votes")
    no_decay: ClassVar[frozenset[str]] = frozenset({"keys", "votes"})
    mergeable = False
    exposes_delta = False

    def new_parameters(self, config: Any, shared: nn.Module | None) -> Mapping[str, Tensor]:
        base = self.get_base_layer()
        rows = config.num_images
        votes = torch.arange(rows)[:, None] % base.out_features == torch.arange(base.out_features)
        return {"keys": torch.randn(rows, base.in_features), "votes": votes.float()}

    def adapted_forward(self, x: Tensor, adapter: str) -> Tensor:
        """The vote with exactly one adapter active."""
        keys, votes = self.keys[adapter], self.votes[adapter]
        count = self.configs[adapter].num_neighbours or NEIGHBOURS[-1]
        return vote(x.to(keys.dtype), keys, votes, count).to(x.dtype)

    def functional(self, x: Tensor, tensors: Any) -> Tensor:
        """Several memories act as one: the nearest among all their images vote."""
        here = self.adapters_here()
        keys = torch.cat([self.keys[adapter] for adapter in here])
        votes = torch.cat([self.votes[adapter] for adapter in here])
        count = self.configs[here[-1]].num_neighbours or NEIGHBOURS[-1]
        return vote(x.to(keys.dtype), keys, votes, count).to(x.dtype)

    def effective_tensors(self) -> Any:
        """The classifier's own tensors: a memory is not a weight."""
        return self.base_tensors()


@dataclass
class NearestNeighboursConfig(SolvedConfig):
    """The k most similar training images vote, each by softmax(cosine / 0.07).

    The run stores the features of all training images; nothing is trained and nothing merges.

    Args:
        num_neighbours: k; None takes the best of 1 to 50 on validation, or in 5 folds.
        num_images: rows of the memory; filled in.

    Raises:
        VituneError: a number below 1.
        BackboneError: at injection, if there is no known linear classifier.
    Source: Wu et al., Unsupervised feature learning via non-parametric instance discrimination
        (CVPR 2018), section 3.4.
    """

    num_neighbours: int | None = field(default=None)
    num_images: int = field(default=8)

    method = "knn"
    title = "Nearest neighbours"
    source = "Wu et al. 2018"
    formula = "images · (features + classes)"
    mergeable: ClassVar[bool] = False
    replaces_head: ClassVar[bool] = True
    trains_in_place: ClassVar[bool] = False
    every_site_has_tensors: ClassVar[bool] = True
    narrowed_by: ClassVar[frozenset[str]] = frozenset({"target_modules"})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.modules_to_save:
            raise VituneError(
                f"modules_to_save: got {self.modules_to_save!r}, expected none: "
                f"{self.refusals()['modules_to_save']}. Leave it out."
            )
        self.modules_to_save = []
        for name in ("num_neighbours", "num_images"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise VituneError(f"{name}: got {value!r}, expected at least 1.")

    @property
    def identity_at_init(self) -> bool:
        return False

    def choose(self, sites: Sequence[Site]) -> Sequence[Site]:
        found = [site for site in sites if site.role == "head"][:1]
        if not found:
            raise BackboneError(
                f"{self.title}: got a backbone without a known linear classifier, expected one "
                "that the memory can replace. Choose another method ('vitune methods')."
            )
        return found

    def layer_class(self, site: Site, module: nn.Module) -> type[MethodLayer]:
        return NeighbourLayer

    def num_parameters(self, model: nn.Module, sites: Sequence[Site]) -> int:
        head = model.get_submodule(sites[0].name)
        assert isinstance(head, nn.Linear)
        return self.num_images * (head.in_features + head.out_features)

    def check(self, model: nn.Module, sites: Sequence[Site]) -> None:
        """Accepts any linear classifier."""

    def prepare(self, model: nn.Module, adapter: str, sites: Sequence[Site]) -> None:
        """Nothing is changed in place."""

    def solve(self, problem: HeadProblem) -> SolvedHead:
        """The memory of all training features, with the best number of neighbours."""
        pairs = [(problem.train, problem.val)] if problem.val is not None else [
            (problem.train.at(fit), problem.train.at(judge)) for fit, judge in folds(problem)
        ]  # fmt: skip
        how = "validation" if problem.val is not None else f"{len(pairs)}-fold cross-validation"
        if self.num_neighbours is not None or not pairs:
            how = "given" if self.num_neighbours else "prior"
            return _memory(problem.train, problem.num_classes, self.num_neighbours or 10, how, ())
        tried = tuple(_tried(pairs, problem.num_classes, count) for count in NEIGHBOURS)
        best = min(tried, key=lambda entry: entry["loss"])["num_neighbours"]
        return _memory(problem.train, problem.num_classes, int(best), how, tried)


def _tried(
    pairs: Sequence[tuple[Labelled, Labelled]], num_classes: int, count: int
) -> dict[str, float]:
    logits = torch.cat(
        [_memory(fit, num_classes, count, "", ()).logits(judge.features) for fit, judge in pairs]
    )
    labels = torch.cat([torch.from_numpy(np.asarray(judge.labels)) for _, judge in pairs])
    return {
        "num_neighbours": count,
        "loss": calibrated_losses(logits, labels).mean().item(),
        "accuracy": (logits.argmax(1) == labels).float().mean().item(),
    }


def _memory(
    data: Labelled, num_classes: int, count: int, how: str, tried: tuple[dict[str, float], ...]
) -> Neighbours:
    keys = torch.from_numpy(np.array(data.features[:])).float()
    votes = F.one_hot(torch.from_numpy(np.asarray(data.labels)), num_classes).float()
    return Neighbours(
        torch.zeros(0), torch.zeros(0), {"num_neighbours": count}, how, tried, keys, votes
    )
