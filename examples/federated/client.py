"""One client of a federation that trains an adapter and sends only its numbers.

The methods are those of Flower's NumPyClient, so that `flower_client` needs no further code;
`simulate.py` runs them in a plain loop without Flower.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional as F

from vitune.adapters import attach
from vitune.backbones import load_backbone
from vitune.data import Split, normalise
from vitune.training import new_optimiser

Numbers = list[npt.NDArray[np.float32]]


class Client:
    """Trains `method` on its own images; the frozen backbone is never sent.

    Every client must hold the same backbone from the same source: check it with
    `vitune audit backbone` before joining.
    """

    def __init__(
        self, images: Split, *, backbone: str, method: str = "rlrr", seed: int = 0
    ) -> None:
        torch.manual_seed(seed)  # the same start for all clients
        loaded = load_backbone(backbone, num_classes=len(images.classes))
        self.model = attach(loaded, method)
        pixels = torch.from_numpy(np.asarray(images.images)).permute(0, 3, 1, 2)
        self.images = normalise(pixels, loaded.preprocessing)
        self.labels = torch.from_numpy(images.labels)

    def trained(self) -> list[nn.Parameter]:
        """The names of the tensors that are sent, in the order of the model."""
        return [value for value in self.model.parameters() if value.requires_grad]

    def get_parameters(self, config: dict[str, Any]) -> Numbers:
        """The trained numbers alone."""
        return [value.detach().numpy().copy() for value in self.trained()]

    def set_parameters(self, numbers: Numbers) -> None:
        """Set the server's numbers."""
        with torch.no_grad():
            for value, received in zip(self.trained(), numbers, strict=True):
                value.copy_(torch.from_numpy(received))

    def fit(self, parameters: Numbers, config: dict[str, Any]) -> tuple[Numbers, int, dict]:
        """Train on the client's own images; return numbers, image count, and no metrics."""
        self.set_parameters(parameters)
        optimiser = new_optimiser(self.model, config.get("lr", 5e-3), 0.0)
        generator = torch.Generator().manual_seed(config.get("round", 0))
        self.model.train()
        for _ in range(config.get("epochs", 1)):
            order = torch.randperm(len(self.labels), generator=generator)
            for chosen in order.split(config.get("batch_size", 16)):
                F.cross_entropy(self.model(self.images[chosen]), self.labels[chosen]).backward()
                optimiser.step()
                optimiser.zero_grad()
        return self.get_parameters({}), len(self.labels), {}

    @torch.no_grad()
    def evaluate(self, parameters: Numbers, config: dict[str, Any]) -> tuple[float, int, dict]:
        """Loss and accuracy on the client's own images."""
        self.set_parameters(parameters)
        logits = self.model.eval()(self.images)
        loss = F.cross_entropy(logits, self.labels).item()
        accuracy = (logits.argmax(1) == self.labels).double().mean().item()
        return loss, len(self.labels), {"accuracy": accuracy}


def flower_client(client: Client) -> Any:
    """`client` for Flower, where it is installed (see README.md)."""
    from flwr.client import NumPyClient

    class FlowerClient(NumPyClient):
        get_parameters = staticmethod(client.get_parameters)
        fit = staticmethod(client.fit)
        evaluate = staticmethod(client.evaluate)

    return FlowerClient().to_client()
