"""Classify images with an exported vitune network: python run.py IMAGE ...

Needs numpy, Pillow and the runtime of the file: onnxruntime, openvino or torch. Not vitune.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

Array = np.ndarray[Any, Any]
Graph = Callable[[Array], list[Array]]


def opened(file: Path, threads: int | None = None) -> Graph:
    """The network in a file, as a function from an array to a list of arrays."""
    if file.suffix == ".onnx":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or 0
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(file, options, ["CPUExecutionProvider"])
        name = session.get_inputs()[0].name
        return lambda given: session.run(None, {name: given})
    if file.suffix == ".xml":
        import openvino

        settings: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32"}
        settings |= {"INFERENCE_NUM_THREADS": threads} if threads else {}
        network = openvino.compile_model(file, "CPU", settings)
        return lambda given: [np.array(value) for value in network(given).values()]
    import torch

    graph = torch.export.load(file).module()
    return lambda given: [graph(torch.from_numpy(given.copy())).detach().numpy()]


class Model:
    """An exported folder. `left` holds the exit at which each image of the last call left."""

    def __init__(self, folder: str | Path, threads: int | None = None) -> None:
        self.card = json.loads((Path(folder) / "export.json").read_text())
        self.classes = self.card["classes"]
        self.parts = [opened(Path(folder) / name, threads) for name in self.card["graphs"]]
        exits = self.card["exits"] or {"thresholds": []}
        self.thresholds = [*exits["thresholds"], -1.0]  # the last exit takes all images
        self.left = np.zeros(0, int)

    def prepare(self, image: Image.Image) -> Array:
        """An image of any size in the network's input format: (h, w, 3) uint8."""
        rule = self.card["preprocessing"]
        image = ImageOps.exif_transpose(image)
        if image.mode[0] in "IF":
            raise SystemExit(f"run.py: got pixels of mode {image.mode}, expected 8-bit channels")
        high, wide = rule["image_size"]
        height, width = int(high / rule["crop_pct"]), int(wide / rule["crop_pct"])
        if rule["crop_mode"] == "center":  # the shorter side sets the scale, the longer is cropped
            if image.height * width <= image.width * height:
                width = max(width, int(height * image.width / image.height))
            else:
                height = max(height, int(width * image.height / image.width))
        method = Image.Resampling[rule["interpolation"].upper()]
        if image.has_transparency_data:
            seen, image = image.convert("RGBA"), Image.new("RGB", image.size, "white")
            image.paste(seen, mask=seen)
        resized = np.asarray(image.convert("RGB").resize((width, height), method))
        top, left = round((height - high) / 2), round((width - wide) / 2)
        return resized[top : top + high, left : left + wide]

    def logits(self, images: Array) -> Array:
        """Logits (b, c) of images (b, h, w, 3); confident images leave, the others continue."""
        given, going_on = images, np.arange(len(images))
        self.left = np.zeros(len(images), int)
        found = np.zeros((len(images), len(self.classes)), np.float32)
        for index, (part, threshold) in enumerate(zip(self.parts, self.thresholds, strict=True)):
            logits, *tokens = part(given)
            leaving = softmax(logits).max(-1) >= threshold
            found[going_on[leaving]], self.left[going_on[leaving]] = logits[leaving], index
            going_on = going_on[~leaving]
            if not len(going_on):
                break
            given = tokens[0][~leaving]
        return found


def softmax(logits: Array) -> Array:
    """Probabilities (b, c)."""
    powers = np.exp(logits.astype(np.float64) - logits.max(-1, keepdims=True))
    shares: Array = powers / powers.sum(-1, keepdims=True)
    return shares


def main(paths: Sequence[str]) -> None:
    """Print the class and its probability of every image."""
    model = Model(Path(__file__).parent)
    for path in paths:
        with Image.open(path) as image:
            chances = softmax(model.logits(model.prepare(image)[None]))[0]
        print(f"{path}\t{model.classes[chances.argmax()]}\t{chances.max():.4f}")


if __name__ == "__main__":
    main(sys.argv[1:])
