"""Classify images with an exported vitune network: python run.py IMAGE ...

Needs numpy, Pillow and the runtime of the file: onnxruntime, openvino or torch. Not vitune.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from unicodedata import category

import numpy as np
from PIL import Image, ImageOps, features

Array = np.ndarray[Any, Any]
Graph = Callable[[Array], list[Array]]

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""What vitune reads, besides AVIF; Pillow has further readers, and one starts Ghostscript."""

BREAKS = ("Cc", "Zl", "Zp")
"""Categories of the characters that would end a column or a line."""

MAX_MEGAPIXELS = 100.0
"""Of an image, and of its resized copy before the crop: the limit of `vitune predict`."""


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
        self.temperature = self.card.get("temperature", 1.0)  # older folders have none
        self.left = np.zeros(0, int)

    def prepare(self, image: Image.Image) -> Array:
        """An image in the network's input format: (h, w, 3) uint8.

        Raises:
            ValueError: more than MAX_MEGAPIXELS, told before any pixel is read.
        """
        rule = self.card["preprocessing"]
        require_few(*image.size)
        image = upright_rgb(image)
        high, wide = rule["image_size"]
        height, width = int(high / rule["crop_pct"]), int(wide / rule["crop_pct"])
        if rule["crop_mode"] == "center":  # the shorter side sets the scale, the longer is cropped
            if image.height * width <= image.width * height:
                width = max(width, int(height * image.width / image.height))
            else:
                height = max(height, int(width * image.height / image.width))
            require_few(width, height)
        method = Image.Resampling[rule["interpolation"].upper()]
        resized = np.asarray(image.resize((width, height), method))
        top, left = round((height - high) / 2), round((width - wide) / 2)
        return resized[top : top + high, left : left + wide]

    def logits(self, images: Array) -> Array:
        """Logits (b, c) of images (b, h, w, 3); confident images leave, the others continue.

        Thresholds apply to probabilities without the temperature: that is how they were chosen.
        """
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

    def probabilities(self, logits: Array, left: Array | None = None) -> Array:
        """Calibrated probabilities (b, c), those of `vitune predict`.

        softmax(logits / T) at the last exit; early ones have their own T in their weights. `left`
        (b,) is where each image left; None means what `logits` found last.
        """
        is_last = (self.left if left is None else left) == len(self.parts) - 1
        return softmax(logits / np.where(is_last, self.temperature, 1.0)[:, None])


def require_few(width: int, height: int) -> None:
    """Refuse more than MAX_MEGAPIXELS."""
    megapixels = width * height / 1e6
    if megapixels > MAX_MEGAPIXELS:
        raise ValueError(f"got {megapixels:.1f} megapixels, expected at most {MAX_MEGAPIXELS:g}")


def upright_rgb(image: Image.Image) -> Image.Image:
    """Rotated by its EXIF orientation, in RGB, laid on white where it is transparent."""
    image.load()
    if image.mode == "F":
        raise ValueError("floating-point pixels have no fixed range")
    deep = image.mode.startswith("I")
    bits = grey_bits(image) if deep else 8
    with suppress(Exception):  # a broken EXIF block does not mean broken pixels
        image = ImageOps.exif_transpose(image)
    if deep:
        greys = np.asarray(image).astype(np.int64) * 256 >> bits
        image = Image.fromarray(np.clip(greys, 0, 255).astype(np.uint8))
    if image.has_transparency_data:
        seen, image = image.convert("RGBA"), Image.new("RGB", image.size, "white")
        image.paste(seen, mask=seen)
    return image.convert("RGB")


def grey_bits(image: Image.Image) -> int:
    """The bit depth of white: as declared by a TIFF; Pillow scales other formats to 16."""
    tags = getattr(image, "tag_v2", None)
    if tags is None:
        return 16
    # MaxSampleValue, SMaxSampleValue, BitsPerSample
    most, signed, bits = (int(np.ravel(tags.get(tag, 0))[0]) for tag in (281, 341, 258))
    if max(most, signed) > 0:
        return max(most, signed).bit_length()
    if image.mode == "I":
        raise ValueError("32-bit pixels without a declared range; save the image with 8 bits")
    return bits or 16


def softmax(logits: Array) -> Array:
    """Probabilities (b, c)."""
    powers = np.exp(logits.astype(np.float64) - logits.max(-1, keepdims=True))
    shares: Array = powers / powers.sum(-1, keepdims=True)
    return shares


def main(paths: Sequence[str]) -> int:
    """Print the class and its probability of every image.

    Returns:
        0; 2 if no image is named, the network cannot be opened or an image cannot be read.
    """
    if not paths:
        return told("images", ValueError("got none, expected python run.py IMAGE ..."))
    try:
        model, status = Model(Path(__file__).parent), 0
    except Exception as error:  # the runtimes raise almost anything on a damaged file
        return told("network", error)
    formats = (*FORMATS, "AVIF") if features.check("avif") else FORMATS
    warnings.simplefilter("ignore")  # Pillow's, about odd but readable images
    for path in paths:
        try:
            with Image.open(path, formats=formats) as image:
                pixels = model.prepare(image)
        except Exception as error:  # Pillow's readers raise almost anything on broken bytes
            status = told(f"image {path!r}", error)
            continue
        (chances,) = model.probabilities(model.logits(pixels[None]))
        name = os.fsencode(path).decode(errors="backslashreplace")
        label = model.classes[chances.argmax()]
        print(f"{shown(name)}\t{shown(label)}\t{chances.max():.4f}")
    return status


def shown(text: str) -> str:
    """One column of one line, in characters that the output has; others as \\n, \\u624b."""
    escaped = (c.encode("unicode_escape").decode() if category(c) in BREAKS else c for c in text)
    encoding = sys.stdout.encoding or "utf-8"
    return "".join(escaped).encode(encoding, errors="backslashreplace").decode(encoding)


def told(what: str, error: Exception) -> int:
    """The exit status after an error, which is one line on stderr."""
    reason = " ".join(str(error).split()) or type(error).__name__
    print(f"run.py: error: {what}: {reason}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
