"""What a private step costs: RLRR on ViT-B/16, batch 8, against the ordinary step.

    OMP_NUM_THREADS=2 python studies/private_step.py --rounds 9

Steps of both kinds take turns, so that other work on the machine meets both; the median ratio of
neighbouring pairs is printed.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from torch.nn import functional as F

from vitune.adapters import attach
from vitune.backbones import load_backbone, start_heads
from vitune.privacy.dp import Budget, PrivateStep
from vitune.training import class_tail, lean_training, new_optimiser


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--method", default="rlrr")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--backbone", default="vit_base_patch16_224")
    given = parser.parse_args()
    torch.manual_seed(0)
    backbone = load_backbone(given.backbone, num_classes=100, pretrained=False)
    start_heads(backbone.model, "linear")
    model = attach(backbone, given.method).train()
    optimiser = new_optimiser(model, 1e-3, 0.0)
    private = PrivateStep(model, optimiser, Budget(3.0, 1e-5, 1.0, 0.01, 100), given.batch)
    images = torch.randn(given.batch, 3, *backbone.preprocessing.image_size)
    targets = torch.randint(100, (given.batch,))
    tail = class_tail(model)

    def ordinary() -> None:
        with lean_training(tail):
            F.cross_entropy(model(images), targets).backward()
        optimiser.step()
        optimiser.zero_grad()

    def noisy() -> None:
        with lean_training(tail):
            private(images, targets)

    pairs = []
    for turn in range(given.rounds + 1):
        seconds = []
        for step in (ordinary, noisy):
            started = time.perf_counter()
            step()
            seconds.append(time.perf_counter() - started)
        if turn:  # the first round warms up
            pairs.append(seconds)
            print(f"ordinary {seconds[0]:.2f} s, private {seconds[1]:.2f} s", flush=True)
    ratio = statistics.median(second / first for first, second in pairs)
    print(f"{given.method}, closed form {private.gradients.is_closed}: ratio {ratio:.2f}")


if __name__ == "__main__":
    main()
