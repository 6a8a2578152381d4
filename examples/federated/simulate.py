"""Three clients in one process: RLRR on images that no client shows the others.

python examples/federated/simulate.py --rounds 5
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import numpy as np
import torch
from client import Client, Numbers

from vitune.backbones import load_backbone
from vitune.counts import count_parameters
from vitune.data import Split, load_splits

BACKBONE = "vitune/vit_micro_patch4_32"


def shares(data: str, num_clients: int) -> list[Split]:
    """The training images of `data`, dealt out to clients."""
    preprocessing = load_backbone(BACKBONE).preprocessing
    train = load_splits(data, preprocessing, seed=0, val_fraction=0, include=("train",)).train
    assert train is not None
    order = np.random.default_rng(0).permutation(len(train))
    return [train.subset(part) for part in np.array_split(order, num_clients)]


def averaged(results: Sequence[tuple[Numbers, int, dict]]) -> Numbers:
    """FedAvg: the mean of all clients' numbers, weighted by their images."""
    total = sum(count for _, count, _ in results)
    parts = [[number * (count / total) for number in sent] for sent, count, _ in results]
    return [np.sum(column, axis=0, dtype=np.float32) for column in zip(*parts, strict=True)]


def simulate(data: str, rounds: int, method: str = "rlrr") -> tuple[list[float], int, int]:
    """Accuracy after every round, and bytes per client and round: adapter, whole network."""
    clients = [Client(share, backbone=BACKBONE, method=method) for share in shares(data, 3)]
    numbers = clients[0].get_parameters({})
    accuracies = []
    for turn in range(rounds):
        numbers = averaged([client.fit(numbers, {"round": turn}) for client in clients])
        seen = [client.evaluate(numbers, {}) for client in clients]
        right = sum(told["accuracy"] * count for _, count, told in seen)
        accuracies.append(right / sum(count for _, count, _ in seen))
    sent = sum(number.nbytes for number in numbers)
    return accuracies, sent, 4 * count_parameters(clients[0].model).total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="demo:digits")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--method", default="rlrr")
    given = parser.parse_args()
    torch.manual_seed(0)
    accuracies, sent, whole = simulate(given.data, given.rounds, given.method)
    for turn, accuracy in enumerate(accuracies, 1):
        print(f"round {turn}: {accuracy:.1%} on the clients' own images")
    print(f"a client sends {sent / 1e6:.2f} MB per round, the whole network is {whole / 1e6:.2f}")


if __name__ == "__main__":
    main()
