"""Export targets, and the error if their libraries are not installed."""

from __future__ import annotations

import errno
import io
import logging
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from torch.export import ExportedProgram

from vitune.extras import require_extra

FULL_BYTES = 2**20

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Job:
    """One folder to write.

    Args:
        folder: where the files go.
        programs: graphs by name: "model", or "segment-0", "segment-1", ...
        facts: the metadata of every file, as text by name.
        converted: graphs by name that a target has already converted; filled by the target.
    """

    folder: Path
    programs: Mapping[str, ExportedProgram]
    facts: Mapping[str, str]
    converted: dict[str, Any] = field(default_factory=dict)


class Target(Protocol):
    """A file format.

    Args:
        name: what `--to` takes.
        suffix: of its files.
        extra: the pip extra that installs the libraries; empty for PyTorch itself.
        libraries: modules that must be installed.
        kinds: of int8 it supports.
        cuts: whether a network with exits becomes one graph per segment.
    """

    @property
    def name(self) -> str: ...
    @property
    def suffix(self) -> str: ...
    @property
    def extra(self) -> str: ...
    @property
    def libraries(self) -> Sequence[str]: ...
    @property
    def kinds(self) -> Sequence[str]: ...
    @property
    def cuts(self) -> bool: ...

    def write(self, job: Job) -> None:
        """Write NAME.suffix for every graph."""

    def write_int8(self, job: Job, kind: str, images: Pixels) -> None:
        """Like `write`, with 8-bit weights and activations.

        Args:
            kind: one of `kinds`.
            images: for calibrating activations, (b, h, w, 3).
        """


def require(target: Target) -> None:
    """Check that a target's libraries are installed.

    Raises:
        VituneError: one is missing; the text names the extra that installs it.
    """
    require_extra(f"--to {target.name}", target.extra, *target.libraries)


def versions_of(target: Target) -> dict[str, str]:
    """Versions of a target's libraries."""
    return {library: version(library) for library in target.libraries}


def require_space(folder: Path, error: Exception) -> None:
    """Report a full disk as such if a writer hides the reason.

    Raises:
        OSError: less than a MiB is left in `folder`.
    """
    if shutil.disk_usage(folder).free < FULL_BYTES:
        reason = "No space left on device"
        raise OSError(errno.ENOSPC, reason, str(folder)) from error


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the exporters' output, log lines and deprecation warnings off the user's terminal."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
