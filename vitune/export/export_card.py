"""The card of an exported file: export.json for programs, README.md for readers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vitune.files import write_atomic
from vitune.report import counted

CARD = "export.json"
PAGE = "README.md"
RUNNER = "run.py"
GRAPH_FACTS = (
    "format", "input", "classes", "temperature", "preprocessing", "exits", "method", "merged",
    "backbone", "fingerprint", "weights_sha256",
)  # fmt: skip
"""What the file's own metadata also holds, as JSON by name, prefixed with "vitune."."""

LIBRARIES = {"onnx": "onnxruntime", "openvino": "openvino", "pt2": "torch"}


def write_card(folder: Path, card: Mapping[str, Any]) -> None:
    """Write export.json."""
    write_atomic(folder / CARD, json.dumps(card, indent=2) + "\n")


def write_page(folder: Path, card: Mapping[str, Any]) -> None:
    """Write README.md."""
    write_atomic(folder / PAGE, "\n\n".join(_page(card)) + "\n")


def _page(card: Mapping[str, Any]) -> list[str]:
    files = ", ".join(f"`{name}`" for name in card["graphs"])
    height, width = card["input"]["shape"][1:3]
    form = "merged into the backbone" if card["merged"] else "not merged: its method cannot be"
    parts = [
        f"# {card['method']} on {card['backbone']}, {len(card['classes'])} classes",
        f"{files} ({card['bytes'] / 1e6:.1f} MB, {card['precision']}), written by `vitune export`. "
        f"The adapter is {form}. Backbone fingerprint: `{card['fingerprint']}`.",
        "## Use it",
        f"    pip install numpy pillow {LIBRARIES[card['target']]}\n    python {RUNNER} photo.jpg",
        f"Input `images`: uint8, (batch, {height}, {width}, 3), RGB, any batch. Normalisation is "
        f"inside the graph. Resizing is outside: `prepare` in `{RUNNER}` does it exactly as vitune "
        "does. Output `logits`: float32, (batch, classes), class names in `export.json` and in the "
        "file's metadata.",
        f"Divide the logits by the temperature {card['temperature']:.6g} before the softmax: that "
        f"gives calibrated probabilities, those of `vitune predict`. `{RUNNER}` does so.",
        *_of_exits(card["exits"]),
        "## Checked",
        *_checked(card),
        "## Speed",
        _speed(card),
    ]
    return [*parts, *_of_int8(card)]


def _of_exits(exits: Mapping[str, Any] | None) -> list[str]:
    if exits is None:
        return []
    rules = ", ".join(
        f"after {after} blocks at a confidence of {value:.4f}"
        for after, value in zip(exits["after"], exits["thresholds"], strict=True)
    )
    proof = exits["certificate"]
    proven = (
        "The risk is not certified."
        if proof is None
        else f"Certificate: {proof['definition']} of at most {proof['risk']:g} of images, with "
        f"probability {1 - proof['delta']:g}."
    )
    return [
        f"Images leave early {rules}. This confidence is the largest probability without the "
        f"temperature, which is for the last graph's logits: early exits have their own in their "
        f"weights. Each graph is one segment; {RUNNER} chains them. {proven}"
    ]


def _checked(card: Mapping[str, Any]) -> list[str]:
    found = card["verification"]
    lines = [
        "| batch | images | same class | largest difference of a logit | of the largest logit | "
        "largest difference of a probability |",
        "|---:|---:|---:|---:|---:|---:|",
    ]
    for size, row in found["by_batch"].items():
        lines.append(
            f"| {size} | {row['num_images']} | {100 * row['top1']:.2f} % | "
            f"{row['difference']:.1e} | {row['relative']:.1e} | {row['probability']:.1e} |"
        )
    images, kind, caution = card["images"], "validation", ""
    if images["were_trained_on"]:
        kind, caution = "training", " The network has seen these images: new ones are harder."
    return [
        f"The file ran in its own runtime on {images['num_checked']} {kind} images of "
        f"`{images['data']}`, and the run in PyTorch on the same images.",
        "\n".join(lines),
        f"Accuracy: {100 * found['pytorch_accuracy']:.2f} % in PyTorch, "
        f"{100 * found['accuracy']:.2f} % here.{caution}",
    ]


def _speed(card: Mapping[str, Any]) -> str:
    lines = ["| batch | PyTorch, ms | here, ms |", "|---:|---:|---:|"]
    for row in card["latency"]:
        lines.append(f"| {row['batch']} | {row['pytorch_ms']:.2f} | {row['exported_ms']:.2f} |")
    others = card["machine"]["cores_of_others"]
    busy = "" if others is None else f" Other programs kept {others:.1f} cores busy meanwhile."
    return "\n".join(lines) + (
        f"\n\nMedian per batch, {counted(card['machine']['threads'], 'thread')} each, taking "
        f"turns.{busy}"
    )


def _of_int8(card: Mapping[str, Any]) -> list[str]:
    if len(card["tries"]) < 2:
        return []
    lines = [
        "| | accuracy | same class | MB | "
        + " | ".join(f"ms at batch {row['batch']}" for row in card["latency"])
        + " |",
        "|---|---:|---:|---:|" + "---:|" * len(card["latency"]),
    ]
    for name, row in card["tries"].items():
        times = " | ".join(f"{entry['exported_ms']:.2f}" for entry in row["latency"])
        lines.append(
            f"| {name} | {100 * row['accuracy']:.2f} % | {100 * row['top1_agreement']:.2f} % | "
            f"{row['bytes'] / 1e6:.1f} | {times} |"
        )
    return ["## What 8 bits cost", "\n".join(lines)]
