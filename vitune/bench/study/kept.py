"""What a study keeps of a run besides scores: logits of every image, the adapter on request.

`OUT/logits/ADDRESS.safetensors` and `OUT/adapters/ADDRESS/`, by the address of the cell.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from vitune.adapters import card_of, save_adapter
from vitune.bench.study.cells import CellResult
from vitune.data import Split
from vitune.errors import VituneError
from vitune.files import write_atomic
from vitune.runs import weights_digest
from vitune.training import TrainConfig
from vitune.training.keeping import Trained, backbone_arguments

LOGITS, ADAPTERS = "logits", "adapters"

FLOAT16_MAX = 65504.0


@dataclass(frozen=True)
class ImageLogits:
    """A network's outputs for every image of the reported split, in the split's order.

    Args:
        ids: the first 8 bytes of the image file's sha256, to find an image again elsewhere.

    Shapes:
        logits: (b, c) float32.
        labels: (b,) int64.
        ids: (b,) int64.
    """

    logits: Tensor
    labels: Tensor
    ids: Tensor


def write_logits(out: Path, address: str, logits: Tensor, split: Split) -> None:
    """Store logits in float16 relative to each row's largest, which is stored in float32.

    Relative to the largest, float16 is most precise where it matters: the order of the leading
    classes survives, and probabilities change by less than 0.1 % of themselves.

    Shapes:
        logits: (b, c).
    """
    offset = logits.float().amax(1)  # (b,)
    relative = (logits.float() - offset[:, None]).clamp(min=-FLOAT16_MAX)  # (b, c)
    assert split.digests is not None
    ids = torch.from_numpy(split.digests[:, :8].copy().view("<i8").reshape(-1))  # (b,)
    tensors = {
        "logits": relative.half(),
        "offset": offset,
        "labels": torch.from_numpy(split.labels.copy()),
        "ids": ids,
    }
    write_atomic(logits_file(out, address), save(tensors, {"format": "pt"}))


def read_logits(out: str | Path, address: str) -> ImageLogits:
    """The logits kept from a run of the study in `out`.

    Args:
        address: of the result; see `vitune.bench.study.protocol.read_results`.

    Raises:
        VituneError: none were kept, or the file is damaged.
    """
    path = logits_file(Path(out), address)
    if not path.is_file():
        raise VituneError(
            f"logits: got no file {str(path)!r}, expected one for every finished final run. Runs "
            "of vitune before logits were kept have none."
        )
    try:
        found = load_file(path)
        logits = found["logits"].float() + found["offset"][:, None]
        return ImageLogits(logits, found["labels"], found["ids"])
    except (SafetensorError, OSError, KeyError, RuntimeError) as error:
        raise VituneError(f"{path}: got a damaged file ({error}), expected logits.") from None


def logits_file(out: Path, address: str) -> Path:
    """The path of a cell's logits."""
    return out / LOGITS / f"{address}.safetensors"


def adapter_of(out: Path, address: str) -> Path:
    """The path of a cell's adapter."""
    return out / ADAPTERS / address


def has_adapter(out: Path, result: CellResult) -> bool:
    """Whether the adapter that the run kept is there, and not another run's in its place."""
    folder = adapter_of(out, result.address)
    return folder.is_dir() and result.adapter in (None, weights_digest(folder))


def keep_adapter(out: Path, address: str, trained: Trained, config: TrainConfig) -> str | None:
    """Write the trained adapter as `vitune train` would; return its `weights_digest`."""
    card = card_of(
        trained.model,
        trained.backbone,
        method=config.method,
        method_args=config.method_args,
        backbone_args=backbone_arguments(config),
        classes=trained.classes,
    )
    save_adapter(trained.model, adapter_of(out, address), card)
    return weights_digest(adapter_of(out, address))
