"""`vitune.json`, the card of an adapter or a merged model: read without PyTorch."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from vitune.errors import AdapterError
from vitune.preprocessing import Preprocessing
from vitune.runs import RunFolder

CARD = "vitune.json"
FORMAT = 1


@dataclass(frozen=True)
class AdapterCard:
    """What must be known to use an adapter again: `vitune.json`.

    Args:
        method: vitune's method name.
        method_args: its arguments, as given.
        backbone: the name `load_backbone` takes.
        backbone_args: further arguments of `load_backbone` (image_size, checkpoint).
        fingerprint: of the frozen weights the adapter touches; None for a merged model.
        preprocessing: how images become inputs.
        classes: class names in the order of the logits.
        versions: of the libraries that wrote it.
    """

    method: str
    method_args: dict[str, Any]
    backbone: str
    backbone_args: dict[str, Any]
    preprocessing: Preprocessing
    classes: tuple[str, ...]
    fingerprint: str | None = None
    merged: bool = False
    versions: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> str:
        """The card as JSON text."""
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=2) + "\n"

    @classmethod
    def read(cls, folder: str | Path) -> AdapterCard:
        """The card in `folder`.

        Raises:
            AdapterError: the folder or the card is missing, or the card is not one.
        """
        path = Path(folder) / CARD
        if not path.is_file():
            raise AdapterError(
                f"adapter: got {str(folder)!r} without {CARD}, expected a folder that vitune wrote "
                "(RUN/adapter or the result of 'vitune merge')."
            )
        try:
            values = json.loads(path.read_text())
            given = values.pop("format")
            if given != FORMAT:
                raise AdapterError(
                    f"{path}: got format {given!r}, expected {FORMAT}. Update vitune to read it."
                )
            prepared = Preprocessing.from_dict(values.pop("preprocessing"))
            return cls(**{**values, "preprocessing": prepared, "classes": tuple(values["classes"])})
        except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
            raise AdapterError(f"{path}: got a damaged card ({error}), expected JSON.") from error


def adapter_folder(path: str | Path) -> Path:
    """Where the card of `path` lies: `path` itself, or `adapter/` of a run folder.

    Raises:
        AdapterError: no such folder, or a run without an adapter yet.
    """
    folder = Path(path)
    return folder if (folder / CARD).is_file() else RunFolder.open(folder).adapter
