"""8-bit ONNX networks: weights per output channel, activations calibrated or dynamic."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from vitune.export.target import Pixels, quiet

KINDS = ("static", "dynamic")
"""static: ranges of activations from calibration images. dynamic: from each batch."""

PRODUCTS = ("MatMul", "Gemm")
CALIBRATION_BATCH = 8


def quantised(file: Path, kind: str, images: Pixels) -> None:
    """Replace the float network in `file` with an 8-bit one.

    Only products with a weight are quantised: those between activations (attention) lose more
    than they save. So do the first block's queries, keys and values, whose error all that follows
    inherits, and the classifier, which decides last. Metadata stays.

    Args:
        kind: one of KINDS.
        images: to calibrate on, (b, h, w, 3) uint8.
    """
    import onnx
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_dynamic, quantize_static

    graph = onnx.load(file)
    kept = {entry.key: entry.value for entry in graph.metadata_props}
    # Shapes recorded by the exporter contradict those of the quantised operations.
    del graph.graph.value_info[:]
    with TemporaryDirectory(dir=file.parent) as aside, quiet():
        plain, result = Path(aside) / "plain.onnx", Path(aside) / "int8.onnx"
        onnx.save(graph, plain)
        common: dict[str, Any] = {
            "op_types_to_quantize": list(PRODUCTS),
            "nodes_to_exclude": _float_products(graph),
            "per_channel": True,
            # Unsigned like the activations: processors without VNNI add two products of unsigned
            # and signed 8 bits into 16, which overflow, and the file shall answer alike anywhere.
            "weight_type": QuantType.QUInt8,
        }
        if kind == "static":
            reader = _Reader(images, graph.graph.input[0].name)
            quantize_static(
                plain, result, reader, quant_format=QuantFormat.QDQ,
                activation_type=QuantType.QUInt8, **common,
            )  # fmt: skip
        else:
            quantize_dynamic(plain, result, **common)
        made = onnx.load(result)
        del made.metadata_props[:]
        for key, value in kept.items():
            made.metadata_props.add(key=key, value=value)
        onnx.save(made, file)


def _float_products(graph: Any) -> list[str]:
    """Names of the matrix products that stay float: without a weight, and the first and last."""
    weights = {tensor.name for tensor in graph.graph.initializer}
    weighted, found = [], []
    for node in graph.graph.node:
        if node.op_type in PRODUCTS:
            if weights.intersection(node.input):
                weighted.append(node)
            else:
                found.append(node.name)
    # Where queries, keys and values are three products, all three read the first one's input.
    found += [node.name for node in weighted if node.input[0] == weighted[0].input[0]]
    found += _last_products(graph)
    # ONNX Runtime splits a Gemm into a MatMul of this name and an Add before it looks for names.
    return found + [f"{name}_MatMul" for name in found]


def _last_products(graph: Any) -> list[str]:
    """Names of the matrix products with no other between them and an output."""
    makers = {output: node for node in graph.graph.node for output in node.output}
    waiting, seen, found = [output.name for output in graph.graph.output], set(), []
    while waiting:
        node = makers.get(waiting.pop())
        if node is None or node.name in seen:
            continue
        seen.add(node.name)
        if node.op_type in PRODUCTS:
            found.append(node.name)
        else:
            waiting += node.input
    return found


class _Reader:
    """Calibration images a batch at a time, as ONNX Runtime asks for them."""

    def __init__(self, images: Pixels, name: str) -> None:
        starts = range(0, len(images), CALIBRATION_BATCH)
        self.batches = iter([{name: images[at : at + CALIBRATION_BATCH]} for at in starts])

    def get_next(self) -> dict[str, np.ndarray[Any, Any]] | None:
        return next(self.batches, None)
