"""The same federation in one process and without Flower.

python examples/federated/simulate.py --rounds 5
"""

from __future__ import annotations

import argparse
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from client import Client, shares
from torch import Tensor

from vitune.counts import count_parameters


def app_config() -> dict[str, Any]:
    """What the Flower app runs with unless told otherwise."""
    project = tomllib.loads((Path(__file__).parent / "pyproject.toml").read_text())
    config: dict[str, Any] = project["tool"]["flwr"]["app"]["config"]
    return config


def averaged(results: Sequence[tuple[Mapping[str, Tensor], int]]) -> dict[str, Tensor]:
    """FedAvg: the mean of all clients' numbers, weighted by their images."""
    total = sum(count for _, count in results)
    return {
        name: torch.stack([sent[name] * (count / total) for sent, count in results]).sum(0)
        for name in results[0][0]
    }


def simulate(
    data: str, rounds: int, method: str = "rlrr", num_clients: int = 3
) -> tuple[list[float], int, int]:
    """Accuracy after each round; bytes that a client sends per round; bytes of the network."""
    clients = [Client(*share, method=method) for share in shares(data, num_clients)]
    numbers = clients[0].numbers()
    accuracies = []
    for turn in range(1, rounds + 1):
        numbers = averaged([(c.fit(numbers, turn), len(c.labels)) for c in clients])
        right = sum(c.accuracy(numbers) * len(c.unseen_labels) for c in clients)
        accuracies.append(right / sum(len(c.unseen_labels) for c in clients))
    sent = sum(value.nbytes for value in numbers.values())
    return accuracies, sent, 4 * count_parameters(clients[0].model).total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    usual = app_config()
    parser.add_argument("--data", default=usual["data"])
    parser.add_argument("--rounds", type=int, default=usual["num-server-rounds"])
    parser.add_argument("--method", default=usual["method"])
    given = parser.parse_args()
    accuracies, sent, whole = simulate(given.data, given.rounds, given.method)
    for turn, accuracy in enumerate(accuracies, 1):
        print(f"round {turn}: accuracy {accuracy:.1%} on held-out images")
    print(f"a client sends {sent:,} bytes per round; the whole network is {whole:,}")


if __name__ == "__main__":
    main()
