"""Result files as training and evaluation write them, and an HTML page taken apart."""

from __future__ import annotations

import base64
import json
import struct
import zlib
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import yaml

VOID = {"meta", "link", "img", "br", "input", "hr"}
FETCHING = {"src", "href", "srcset", "poster", "data", "action", "formaction", "xlink:href"}


class Page(HTMLParser):
    """An HTML page: its elements with attributes, its text, and whether every tag is closed."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.html = html
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.open: list[str] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        self.texts.append((self.open[-1] if self.open else "", data))

    @property
    def text(self) -> str:
        """What a reader sees, with single spaces."""
        seen = "".join(data for tag, data in self.texts if tag not in ("style", "script"))
        return " ".join(seen.split())

    def attributes(self, tag: str, name: str) -> list[str]:
        return [attrs[name] for found, attrs in self.elements if found == tag and name in attrs]

    def count(self, tag: str, css_class: str | None = None) -> int:
        return sum(
            found == tag and (css_class is None or css_class in attrs.get("class", "").split())
            for found, attrs in self.elements
        )

    def fetched(self) -> list[str]:
        """Every address that the page names outside itself."""
        named = [
            value for _, attrs in self.elements for name, value in attrs.items() if name in FETCHING
        ]
        return [value for value in named if not value.startswith(("#", "data:"))]


def png(width: int = 2, height: int = 2) -> bytes:
    """A small red picture."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    lines = (b"\0" + b"\xc8\x20\x20" * width) * height
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


THUMBNAIL = "data:image/png;base64," + base64.b64encode(png()).decode()

SUMMARY: dict[str, Any] = {
    "method": "rlrr",
    "method_title": "RLRR",
    "source": "CVPR 2024",
    "backbone": "vit_base_patch16_224",
    "num_trainable": 296458,
    "num_trainable_without_head": 288768,
    "num_head": 7690,
    "num_total": 86095114,
    "adapter_bytes": 1191000,
    "mergeable": True,
    "reported": {"which": "last", "epoch": 3, "val_accuracy": 0.75},
    "seconds": 734.2,
    "peak_mib": 3412.5,
    "device": "cpu",
    "precision": "fp32",
    "versions": {"vitune": "0.1.0", "torch": "2.13.0"},
    "finished": "2026-07-01T12:34:56+00:00",
    "status": "finished",
    "num_train": 800,
    "num_val": 200,
    "num_classes": 3,
    "held_out": "20 % of training, stratified",
    "skipped_images": 0,
    "trained_parts": [
        {"role": "q", "count": 12, "parameters": 27648},
        {"role": "fc1", "count": 12, "parameters": 82944},
    ],
}

CONFIG = {
    "method": "rlrr",
    "method_args": {"rank": 1},
    "backbone": "vit_base_patch16_224",
    "data": "photos/",
    "lr": 0.001,
    "epochs": 3,
    "seed": 0,
}


def epoch_line(epoch: int, **changed: Any) -> dict[str, Any]:
    return {
        "epoch": epoch,
        "step": 25 * epoch,
        "train_loss": 2.0 / epoch,
        "lr": 0.001 / epoch,
        "val_loss": 2.5 / epoch,
        "val_accuracy": 1 - 0.75 / epoch,
        "images_per_s": 412.5,
        "seconds": 12.25,
        **changed,
    }


def evaluation(classes: list[str], name: str = "test", per_class: int = 20) -> dict[str, Any]:
    """Every class right but for 4 images: 3 go to the next class and 1 to the one after it."""
    num_classes = len(classes)
    confusion = [[0] * num_classes for _ in classes]
    for true in range(num_classes):
        confusion[true][true] += per_class - 4
        confusion[true][(true + 1) % num_classes] += 3
        confusion[true][(true + 2) % num_classes] += 1
    recall = (per_class - 4) / per_class
    return {
        "name": name,
        "data": f"photos_{name}/",
        "num_images": per_class * num_classes,
        "top1": recall,
        "top5": 0.975,
        "nll": 0.4321,
        "ece": 0.0625,
        "classes": classes,
        "confusion": confusion,
        "per_class": [
            {
                "name": true,
                "num_images": per_class,
                "precision": 0.8125,
                "recall": recall,
                "f1": 0.81,
            }
            for true in classes
        ],
        "calibration": [
            {"confidence": 0.55, "accuracy": 0.7, "share": 0.25},
            {"confidence": 0.65, "accuracy": 0.0, "share": 0.0},
            {"confidence": 0.95, "accuracy": 0.9, "share": 0.75},
        ],
        "mistakes": [
            {
                "path": f"{name}/{classes[0]}/{index}.jpg",
                "label": classes[0],
                "predicted": classes[1],
                "confidence": 0.9 + index / 1000,
                "thumbnail": THUMBNAIL if index % 2 else None,
            }
            for index in range(4)
        ],
    }


def write_run(
    folder: Path,
    *,
    epochs: list[dict[str, Any]] | None = None,
    summary: dict[str, Any] | None = SUMMARY,
    config: dict[str, Any] | None = CONFIG,
    evaluations: list[dict[str, Any]] | None = None,
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    lines = [epoch_line(number) for number in (1, 2, 3)] if epochs is None else epochs
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if summary is not None:
        (folder / "summary.json").write_text(json.dumps(summary))
    if config is not None:
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
    for found in evaluations or []:
        (folder / "evaluation").mkdir(exist_ok=True)
        (folder / "evaluation" / f"{found['name']}.json").write_text(json.dumps(found))
    return folder
