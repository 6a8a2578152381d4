"""One client of a federation: it trains an adapter and sends only the adapter's numbers.

Flower is not used here: `client_app.py` calls this from Flower, `simulate.py` from a plain loop.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitune.adapters import attach
from vitune.backbones import load_backbone
from vitune.data import Split, load_splits, normalise
from vitune.preprocessing import Preprocessing
from vitune.training import new_optimiser

BACKBONE = "vitune/vit_micro_patch4_32"


def numbers_of(model: nn.Module) -> dict[str, Tensor]:
    """What is trained, by name: the adapter and the head. Nothing else is ever sent."""
    return {n: value.detach() for n, value in model.named_parameters() if value.requires_grad}


def start(method: str, num_classes: int) -> tuple[nn.Module, Preprocessing]:
    """The network that the server and all clients start from, the same everywhere."""
    torch.manual_seed(0)
    backbone = load_backbone(BACKBONE, num_classes=num_classes)
    return attach(backbone, method), backbone.preprocessing


def shares(data: str, num_clients: int) -> list[tuple[Split, Split]]:
    """The images of `data` dealt out: for each client, its own to train on and its own to score."""
    preprocessing = load_backbone(BACKBONE).preprocessing
    splits = load_splits(data, preprocessing, seed=0, include=("train", "val"))
    assert splits.train is not None and splits.val is not None
    return list(zip(*(_dealt(s, num_clients) for s in (splits.train, splits.val)), strict=True))


def _dealt(split: Split, num_parts: int) -> list[Split]:
    order = np.random.default_rng(0).permutation(len(split))
    return [split.subset(part) for part in np.array_split(order, num_parts)]


class Client:
    """Trains `method` on `images`, which never leave it, and scores it on `held_out`.

    Every client must hold the same backbone from the same source: check it with
    `vitune audit backbone` before joining.
    """

    def __init__(self, images: Split, held_out: Split, *, method: str = "rlrr") -> None:
        self.model, preprocessing = start(method, len(images.classes))
        self.images, self.labels = _tensors(images, preprocessing)
        self.unseen, self.unseen_labels = _tensors(held_out, preprocessing)

    def numbers(self) -> dict[str, Tensor]:
        """A copy of what is trained."""
        return {name: value.clone() for name, value in numbers_of(self.model).items()}

    def set_numbers(self, received: Mapping[str, Tensor]) -> None:
        """Take over the server's numbers.

        Raises:
            ValueError: they are not those of this client's method and classes.
        """
        own = numbers_of(self.model)
        if {n: v.shape for n, v in received.items()} != {n: v.shape for n, v in own.items()}:
            raise ValueError(
                f"numbers from the server: got {len(received)} tensors of other names or shapes, "
                f"expected the {len(own)} that this client trains. Use the same backbone, method "
                "and classes everywhere."
            )
        for name, value in received.items():
            own[name].copy_(value)

    def fit(
        self,
        received: Mapping[str, Tensor],
        turn: int,
        *,
        epochs: int = 1,
        lr: float = 5e-3,
        batch_size: int = 16,
    ) -> dict[str, Tensor]:
        """Train from the server's numbers; `turn`, the round from 1 on, decides the order."""
        self.set_numbers(received)
        optimiser = new_optimiser(self.model, lr, 0.0)
        generator = torch.Generator().manual_seed(turn)
        self.model.train()
        for _ in range(epochs):
            order = torch.randperm(len(self.labels), generator=generator)
            for chosen in order.split(batch_size):
                F.cross_entropy(self.model(self.images[chosen]), self.labels[chosen]).backward()
                optimiser.step()
                optimiser.zero_grad()
        return self.numbers()

    @torch.no_grad()
    def accuracy(self, received: Mapping[str, Tensor]) -> float:
        """Accuracy of the server's numbers on the client's held-out images."""
        self.set_numbers(received)
        guessed = self.model.eval()(self.unseen).argmax(1)
        return (guessed == self.unseen_labels).double().mean().item()


def _tensors(split: Split, preprocessing: Preprocessing) -> tuple[Tensor, Tensor]:
    pixels = torch.from_numpy(np.asarray(split.images)).permute(0, 3, 1, 2)
    return normalise(pixels, preprocessing), torch.from_numpy(split.labels)
