"""Backbones of several widths and depths, and tasks of classes that none of them has seen.

    python studies/left_out.py OUT [--shared ../shared]                      # the tasks
    python studies/left_out.py OUT --width 64 --depth 6 --epochs 4           # one backbone

Forty of Tiny-ImageNet's 200 classes, drawn once, are left out. The tasks are made of their images:
`left-10`, ten of them with 100 training images each, and `left-40`, all with 25. A backbone is a
plain ViT for 32 pixels, trained on the labels of the other 160 classes, saved to OUT/vit-W-D in the
form of `transformers`; `default_rates.py OUT --backbone hf:OUT/vit-W-D` adapts it. Short training
on processor cores: these networks stand for width and depth, not for good features.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path

import numpy as np
import torch
from default_proxies import write_table
from tiny_imagenet import Archive
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

from vitune.data import Augment, normalise, seeded_generator
from vitune.ops.lean_step import lean_step
from vitune.preprocessing import Preprocessing

NUM_CLASSES, NUM_LEFT_OUT = 200, 40
TASKS = {"left-10": (10, 100), "left-40": (40, 25)}
"""Classes, and training images of each; as many are test images."""
PIXELS = Preprocessing(image_size=(32, 32), mean=(0.5,) * 3, std=(0.5,) * 3)
SMALL = 24
"""Pixels of the crops seen in all epochs but the last: about half the tokens."""
PEAK_RATE = 1.5e-3
"""At width 128; it falls with the square root of the width."""


def decoded(archive: Archive, indices: np.ndarray) -> Tensor:
    """Images (n, 3, 32, 32) in uint8."""
    files = [torch.frombuffer(bytearray(archive.file(i)), dtype=torch.uint8) for i in indices]
    return torch.stack(decode_jpeg(files, mode=ImageReadMode.RGB))


def left_out() -> np.ndarray:
    """The classes that no backbone of this study sees."""
    return np.random.default_rng(0).permutation(NUM_CLASSES)[:NUM_LEFT_OUT]


def write_tasks(out: Path, archive: Archive) -> None:
    """Images of the classes left out, and OUT/tasks.json."""
    tasks = {}
    for task, (num_classes, per_class) in TASKS.items():
        rows, rng = [], np.random.default_rng(1)
        for label, one in enumerate(left_out()[:num_classes]):
            found = rng.permutation(np.flatnonzero(archive.labels == one))
            for place, index in enumerate(found[: 2 * per_class]):
                file = out / task / f"{label}-{index}.jpg"
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(archive.file(index))
                rows.append((file, label, "train" if place < per_class else "test"))
        tasks[task] = {"data": write_table(out / f"{task}.csv", rows), "kind": "photographs"}
    (out / "tasks.json").write_text(json.dumps(tasks, indent=1) + "\n")


def new_network(width: int, depth: int, num_classes: int) -> ViTForImageClassification:
    """A plain ViT with random weights: patches of 4 pixels, heads of 32 features."""
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=width, num_hidden_layers=depth, num_attention_heads=width // 32,
        intermediate_size=4 * width, image_size=32, patch_size=4, num_labels=num_classes,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, attn_implementation="sdpa",
    )  # fmt: skip
    return ViTForImageClassification(config)


def train(network: ViTForImageClassification, images: Tensor, labels: Tensor, epochs: int) -> None:
    """AdamW, warm-up and cosine; crops and flips, most epochs at 24 pixels; bfloat16."""
    width, batch = network.config.hidden_size, 128
    per_epoch = len(labels) // batch
    total, warm_up = epochs * per_epoch, 0.05 * epochs * per_epoch
    peak = PEAK_RATE * math.sqrt(128 / width)
    matrices = [p for p in network.parameters() if p.dim() > 1]
    vectors = [p for p in network.parameters() if p.dim() <= 1]
    groups = [{"params": matrices, "weight_decay": 0.05}, {"params": vectors, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, betas=(0.9, 0.98))
    augment = Augment(flip_rate=0.5, scale_range=(0.35, 1.0))
    network.train()
    for epoch in range(epochs):
        started, generator, losses = time.process_time(), seeded_generator(0, epoch), []
        size = 32 if epoch == epochs - 1 else SMALL
        order = torch.randperm(len(labels), generator=generator)[: per_epoch * batch]
        for number, some in enumerate(order.split(batch), start=epoch * per_epoch):
            rate = min((number + 1) / warm_up, 0.5 + 0.5 * math.cos(math.pi * number / total))
            for group in optimiser.param_groups:
                group["lr"] = peak * rate
            inputs = normalise(augment(images[some], generator), PIXELS)
            if size != 32:
                inputs = torch.nn.functional.interpolate(
                    inputs, size=(size, size), mode="bilinear", antialias=True
                )
            with torch.autocast("cpu", torch.bfloat16), lean_step():
                logits = network(inputs, interpolate_pos_encoding=size != 32).logits
            loss = torch.nn.functional.cross_entropy(logits.float(), labels[some])
            loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimiser.step()
            optimiser.zero_grad()
            losses.append(loss.detach())
        mean = torch.stack(losses).mean().item()
        seconds = time.process_time() - started
        print(f"epoch {epoch}: loss {mean:.3f}, {seconds:.0f} processor seconds", flush=True)


@torch.no_grad()
def accuracy(network: ViTForImageClassification, images: Tensor, labels: Tensor) -> float:
    """Top-1 on whole images."""
    network.eval()
    parts = [network(normalise(part, PIXELS)).logits.argmax(1) for part in images.split(250)]
    return (torch.cat(parts) == labels).float().mean().item()


def main() -> None:
    """The tasks, or one backbone."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    parser.add_argument("--width", type=int)
    parser.add_argument("--depth", type=int, default=6)
    parser.add_argument("--epochs", type=int, default=4)
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    archive = Archive(asked.shared, "train")
    if asked.width is None:
        write_tasks(asked.out, archive)
        return
    seen = np.setdiff1d(np.arange(NUM_CLASSES), left_out())
    parts = []
    for split in (archive, Archive(asked.shared, "val")):
        indices = np.flatnonzero(np.isin(split.labels, seen))
        labels = torch.from_numpy(np.searchsorted(seen, split.labels[indices]))
        parts.append((decoded(split, indices), labels))
    network = new_network(asked.width, asked.depth, len(seen))
    train(network, *parts[0], asked.epochs)
    folder = asked.out / f"vit-{asked.width}-{asked.depth}"
    network.save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    print(f"{folder}: {100 * accuracy(network, *parts[1]):.1f} % of the 160 classes' validation")


if __name__ == "__main__":
    main()
