"""PT2: PyTorch's own exported program, loaded without the code of the model or of vitune."""

from __future__ import annotations

import io

import torch

from vitune.errors import VituneError
from vitune.export.target import Job, Pixels


class Pt2Target:
    """torch.export's archive, run by PyTorch."""

    name = "pt2"
    suffix = ".pt2"
    extra = ""
    libraries = ()
    kinds = ()
    cuts = False

    def write(self, job: Job) -> None:
        """Write NAME.pt2 for every graph."""
        for name, program in job.programs.items():
            facts = {f"vitune.{key}": value for key, value in job.facts.items()}
            # Via memory: PyTorch's own writer ends the process if the disk is full.
            archive = io.BytesIO()
            program.example_inputs = None  # everything that the archive would hold in pickled form
            torch.export.save(program, archive, extra_files=facts)
            (job.folder / f"{name}.pt2").write_bytes(archive.getbuffer())

    def write_int8(self, job: Job, kind: str, images: Pixels) -> None:
        """Refuse: PyTorch keeps no quantised operations of its own.

        Raises:
            VituneError: always.
        """
        raise VituneError(f"--int8: got --to {self.name}, expected onnx or openvino.")
