"""ONNX: one file that ONNX Runtime, browsers, phones and most other runtimes read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

from vitune.errors import AdapterError, one_line
from vitune.export.quantise import KINDS, quantised
from vitune.export.target import Job, Pixels, quiet

OPSET = 20
PROTOBUF_BYTES = 1_900_000_000
"""One protobuf message holds 2 GiB; larger weights lie in a file of their own."""


class OnnxTarget:
    """ONNX by PyTorch's exporter, run by ONNX Runtime."""

    name = "onnx"
    suffix = ".onnx"
    extra = "export"
    libraries = ("onnx", "onnxscript", "onnxruntime")
    kinds = KINDS
    cuts = True

    def write(self, job: Job) -> None:
        """Write NAME.onnx for every graph."""
        for name, program in job.programs.items():
            write_onnx(program, job.folder / f"{name}.onnx", job.facts)

    def write_int8(self, job: Job, kind: str, images: Pixels) -> None:
        """Write model.onnx with 8-bit weights and activations."""
        file = job.folder / "model.onnx"
        write_onnx(job.programs["model"], file, job.facts)
        quantised(file, kind, images)


def write_onnx(program: ExportedProgram, file: Path, facts: Mapping[str, str]) -> None:
    """The graph as an ONNX file with `facts` in its metadata.

    Raises:
        AdapterError: it holds an operation that ONNX lacks.
    """
    import onnx

    first = not file.stem.startswith("segment") or file.stem == "segment-0"
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
    except Exception as error:  # what the exporter raises has no common class
        raise AdapterError(
            f"--to onnx: got a network that PyTorch's exporter refuses ({one_line(error)[:300]}), "
            "expected operations that ONNX has. Try --to pt2."
        ) from error
    assert made is not None
    graph = made.model_proto
    _name_the_batch(graph)
    for key, value in facts.items():
        graph.metadata_props.add(key=f"vitune.{key}", value=value)
    large = graph.ByteSize() > PROTOBUF_BYTES
    onnx.save(graph, file, save_as_external_data=large, location=f"{file.name}.data")


def _name_the_batch(graph: Any) -> None:
    """Call the free dimension "batch"; the exporter numbers it."""
    for value in (*graph.graph.input, *graph.graph.output):
        first = value.type.tensor_type.shape.dim[0]
        assert first.dim_param, f"{value.name}: its batch has become a constant"
        first.dim_param = "batch"
