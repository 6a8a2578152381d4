"""What a resumed run must still have: the same images, weights and processes."""

from __future__ import annotations

import warnings
from pathlib import Path

from vitune.data import UsedImages
from vitune.errors import AdapterError
from vitune.runs import RunFolder
from vitune.training.record import Resolved, Start
from vitune.training.resume_point import has_checkpoint


def require_same_images(folder: RunFolder, images: UsedImages) -> None:
    """Check that a run continues with the images it began with.

    Raises:
        AdapterError: other images; the text names what differs.
    """
    if not folder.images.is_file() and not has_checkpoint(folder.checkpoint):
        return  # the first start died between two files, before the first step
    refuse_other_images(folder.images, images)


def refuse_other_images(recorded: Path, images: UsedImages) -> None:
    """Check that `images` are those that a run or a search recorded when it began.

    Raises:
        AdapterError: others; the text names what differs.
        DataError: the record is damaged.
    """
    difference = UsedImages.read(recorded).difference(images)
    if difference is not None:
        raise AdapterError(
            f"--resume: got other images than the run began with: {difference}. Expected the "
            "same files with the same labels. Put them back, or start a new run."
        )


def require_checkpoint(folder: RunFolder) -> None:
    """Check that a finished run still has what it continues from, else it would begin again.

    Raises:
        AdapterError: it has none.
    """
    if folder.summary.is_file() and not has_checkpoint(folder.checkpoint):
        raise AdapterError(
            f"--resume: got {str(folder.path)!r}, which is finished, without "
            f"{folder.checkpoint.name}/, expected the one that it continues from. Put it back, or "
            "start a new run."
        )


def require_own_checkpoint(folder: RunFolder, found: str, own: str) -> None:
    """Check that a checkpoint is of the run in whose folder it is.

    Args:
        found, own: identities; that of a run or checkpoint of an older release is empty.

    Raises:
        AdapterError: it is of another run.
    """
    if found and own and found != own:
        raise AdapterError(
            f"checkpoint {str(folder.checkpoint)!r}: got one of a run with other settings or "
            "images, expected this run's own. Put it back, or start a new run."
        )


def require_same_weights(now: Resolved, begun: Resolved) -> None:
    """Check that a run continues with the weights and the processes it began with.

    Raises:
        AdapterError: others; the text names what differs.
    """
    for name in ("fingerprint", "num_processes"):
        found, first = getattr(now, name), getattr(begun, name)
        if found != first:
            raise AdapterError(
                f"--resume: got {name} {found!r}, expected {first!r}, with which the run was "
                "begun. Restore it, or start a new run."
            )


def warn_of_other_software(before: tuple[Start, ...], now: Start) -> None:
    """Warn where a run continues with other software than it began with."""
    found = now.environment.differences(before[0].environment) if before else []
    if found:
        warnings.warn(
            f"--resume: {', '.join(found)}. The settings are the run's own, but its end may differ "
            "from that of a run in one go.",
            stacklevel=2,
        )
