"""OpenVINO: Intel's runtime for CPUs and their graphics; the file is made from the ONNX one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from vitune.errors import AdapterError, one_line
from vitune.export.onnx import OnnxTarget
from vitune.export.target import Job, Pixels, quiet, require_space


class OpenVinoTarget:
    """model.xml with its weights in model.bin."""

    name = "openvino"
    suffix = ".xml"
    extra = "openvino"
    libraries = ("onnx", "onnxscript", "onnxruntime", "openvino")
    kinds = ("static",)
    """OpenVINO would store dynamic's weights as 32-bit integers and multiply them slowly."""
    cuts = True

    def write(self, job: Job) -> None:
        """Write NAME.xml and NAME.bin for every graph."""
        _converted(job, OnnxTarget().write)

    def write_int8(self, job: Job, kind: str, images: Pixels) -> None:
        """Convert the 8-bit ONNX network; OpenVINO runs it in 8 bits."""
        _converted(job, lambda inner: OnnxTarget().write_int8(inner, kind, images))


def _converted(job: Job, write: Callable[[Job], None]) -> None:
    """The ONNX files made by `write`, as OpenVINO's files."""
    import openvino

    with TemporaryDirectory(dir=job.folder) as aside:
        write(replace(job, folder=Path(aside)))
        for name in job.programs:
            file = job.folder / f"{name}.xml"
            try:
                with quiet():
                    network = openvino.convert_model(Path(aside) / f"{name}.onnx")
                    for key, value in job.facts.items():
                        network.set_rt_info(value, ["vitune", key])
            except Exception as error:  # its front ends raise their own classes
                raise AdapterError(
                    f"--to openvino: got a network that it refuses ({one_line(error)[:300]}), "
                    "expected operations that OpenVINO has. Try --to onnx."
                ) from error
            try:
                openvino.save_model(network, file, compress_to_fp16=False)
            except RuntimeError as error:  # its writer is C++ and hides the reason
                require_space(job.folder, error)
                raise
