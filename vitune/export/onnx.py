"""ONNX: one file that ONNX Runtime, browsers, phones and most other runtimes read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

from vitune.errors import AdapterError, one_line
from vitune.export.quantise import KINDS, quantised
from vitune.export.target import Job, Pixels, quiet

OPSET = 20
PROTOBUF_BYTES = 1_900_000_000
"""One protobuf message holds 2 GiB; larger weights are stored in a separate file."""


class OnnxTarget:
    """ONNX from PyTorch's exporter, run by ONNX Runtime."""

    name = "onnx"
    suffix = ".onnx"
    extra = "export"
    libraries = ("onnx", "onnxscript", "onnxruntime")
    kinds = KINDS
    cuts = True

    def write(self, job: Job) -> None:
        """Write NAME.onnx for every graph."""
        for name in job.programs:
            write_onnx(job, name)

    def write_int8(self, job: Job, kind: str, images: Pixels) -> None:
        """Write model.onnx with 8-bit weights and activations."""
        quantised(write_onnx(job, "model"), kind, images)


def write_onnx(job: Job, name: str) -> Path:
    """Write NAME.onnx with the job's facts in its metadata; a graph is converted once.

    Raises:
        AdapterError: the graph has an operation that ONNX lacks.
    """
    import onnx

    if name not in job.converted:
        job.converted[name] = _converted(job.programs[name], name)
    graph = onnx.ModelProto()
    graph.CopyFrom(job.converted[name])
    for key, value in job.facts.items():
        graph.metadata_props.add(key=f"vitune.{key}", value=value)
    file = job.folder / f"{name}.onnx"
    large = graph.ByteSize() > PROTOBUF_BYTES
    onnx.save(graph, file, save_as_external_data=large, location=f"{file.name}.data")
    return file


def _converted(program: ExportedProgram, name: str) -> Any:
    first = name in ("model", "segment-0")
    last = len(program.graph_signature.user_outputs) == 1
    try:
        with quiet():
            made = torch.onnx.export(
                program,
                dynamo=True,
                opset_version=OPSET,
                input_names=["images" if first else "tokens"],
                output_names=["logits"] if last else ["logits", "left_tokens"],
            )
    except Exception as error:  # the exporter's errors have no common class
        raise AdapterError(
            f"--to onnx: got a network that PyTorch's exporter refuses ({one_line(error)[:300]}), "
            "expected operations that ONNX has. Try --to pt2."
        ) from error
    assert made is not None
    graph = made.model_proto  # created anew on every access
    _name_the_batch(graph)
    return graph


def _name_the_batch(graph: Any) -> None:
    """Name the free dimension "batch"; the exporter only numbers it."""
    for value in (*graph.graph.input, *graph.graph.output):
        first = value.type.tensor_type.shape.dim[0]
        assert first.dim_param, f"{value.name}: its batch has become a constant"
        first.dim_param = "batch"
