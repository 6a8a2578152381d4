"""Whether another engine makes a merged network's evaluation faster, and after how many images.

Forward passes of one backbone, interleaved so that whatever else the machine does falls on all
alike; the ratio to plain evaluation is taken within each round, then the median.

Run: python studies/merged_evaluation.py [--backbone NAME] [--batch 128] [--rounds 7]
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.mkldnn import to_mkldnn

from vitune.backbones import load_backbone, logits_of


def ways(model: nn.Module, images: Tensor) -> dict[str, tuple[Callable[[], Tensor], float]]:
    """By name, a forward pass and the seconds that its first call took."""
    last = images.contiguous(memory_format=torch.channels_last)
    compiled, packed = torch.compile(model), to_mkldnn(copy.deepcopy(model))

    def in_bf16() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return logits_of(model(images))

    found: dict[str, Callable[[], Tensor]] = {
        "plain": lambda: logits_of(model(images)),
        "channels-last": lambda: logits_of(model(last)),
        "oneDNN": lambda: logits_of(packed(images)),
        "torch.compile": lambda: logits_of(compiled(images)),
        "bf16": in_bf16,
    }
    return {name: (call, _seconds(call)) for name, call in found.items()}


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backbone", default="vitune/vit_micro_patch4_32")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=7)
    asked = parser.parse_args()
    is_bundled = asked.backbone.startswith("vitune/")
    loaded = load_backbone(asked.backbone, num_classes=10, pretrained=is_bundled)
    for parameter in loaded.model.parameters():
        if not parameter.any():  # a new head starts at zero and would tell nothing
            nn.init.normal_(parameter, std=0.02)
    images = torch.randn(asked.batch, 3, *loaded.preprocessing.image_size)
    with torch.inference_mode():
        calls = ways(loaded.model.eval(), images)
        plain = calls["plain"][0]()
        ratios: dict[str, list[float]] = {name: [] for name in calls}
        for _ in range(asked.rounds):
            taken = {name: _seconds(call) for name, (call, _) in calls.items()}
            for name, seconds in taken.items():
                ratios[name].append(seconds / taken["plain"])
        for name, (call, first) in calls.items():
            off = (call().float() - plain).abs().max().item() / plain.abs().max().item()
            ratio = statistics.median(ratios[name])
            print(f"{name:14} {ratio:.2f} of plain, first call {first:.1f} s, off by {off:.1e}")


if __name__ == "__main__":
    main()
