"""`vitune.json`, the card next to an adapter's files: everything needed to use it again."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, Field, TypeAdapter, ValidationError

from vitune.errors import AdapterError, VituneError, explain, one_line
from vitune.fewer_tokens.token_plan import TokenPlan
from vitune.files import file_sha256
from vitune.hub import local_copy
from vitune.preprocessing import Preprocessing
from vitune.runs import RunFolder
from vitune.seals import values_sha256

CARD = "vitune.json"
FORMAT = 1
KEEP = str(TokenPlan())


Pixels = Annotated[int, Field(gt=0)]


class BackboneArgs(BaseModel, extra="forbid"):
    """Arguments of `load_backbone` that a card may hold."""

    image_size: Pixels | tuple[Pixels, Pixels] | None = None
    checkpoint: str | None = None


def _plan(text: str) -> str:
    return str(TokenPlan.parse(text))


def _known(arguments: dict[str, Any]) -> dict[str, Any]:
    BackboneArgs.model_validate(arguments)
    return arguments


@dataclass(frozen=True)
class AdapterCard:
    """Everything needed to use an adapter again: `vitune.json`.

    Args:
        method: vitune's method name.
        method_args: its arguments, as passed.
        backbone: the name `load_backbone` takes.
        backbone_args: further arguments of `load_backbone` (image_size, checkpoint).
        fingerprint: of the frozen weights the adapter touches; None for a merged model.
        preprocessing: how images become inputs.
        classes: class names in the order of the logits.
        temperature: what logits are divided by before they become probabilities.
        versions: of the libraries that wrote it.
        tokens: the value of `--tokens`; merging that also applies in inference is part of the
            network. Not written if every token is kept.
        plugin: the origin of a method from outside vitune: "file" and "sha256", or "package" and
            "version"; empty, and not written, for all others.
        checksums: sha256 of the files next to the card, by name, and of the card's own values.
    """

    method: str
    method_args: dict[str, Any]
    backbone: str
    backbone_args: Annotated[dict[str, Any], AfterValidator(_known)]
    preprocessing: Preprocessing
    classes: tuple[str, ...]
    fingerprint: str | None = None
    merged: bool = False
    tokens: Annotated[str, AfterValidator(_plan)] = KEEP
    temperature: float = 1.0
    versions: dict[str, str] = field(default_factory=dict)
    plugin: dict[str, str] = field(default_factory=dict)
    checksums: dict[str, str] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """Write the card to `folder`, with the checksums of the files in it."""
        files = sorted(path for path in folder.iterdir() if path.is_file() and path.name != CARD)
        card = replace(self, checksums={path.name: file_sha256(path) for path in files})
        values = asdict(card)
        # An older vitune without plugins or token plans can then read the card of a run without
        # them.
        for name, usual in (("plugin", {}), ("tokens", KEEP)):
            if values[name] == usual:
                del values[name]
        whole: dict[str, Any] = {"format": FORMAT, **values}
        whole["checksums"] = {**card.checksums, CARD: _own_sha256(whole)}
        (folder / CARD).write_text(json.dumps(whole, indent=2) + "\n")

    @classmethod
    def read(cls, folder: str | Path, *, force: bool = False) -> AdapterCard:
        """The card in `folder`.

        Args:
            force: warn of values that were edited, instead of refusing.

        Raises:
            AdapterError: the folder or the card is missing, or the card is damaged or was edited,
                for example the order of its classes.
        """
        path = Path(folder) / CARD
        if not path.is_file():
            raise AdapterError(
                f"adapter: got {str(folder)!r} without {CARD}, expected a folder that vitune wrote "
                "(RUN/adapter or the result of 'vitune merge')."
            )
        try:
            return cls._parsed(path, force)
        except ValidationError as error:
            raise _damaged(path, explain(error)) from None
        except AdapterError:
            raise
        except (OSError, ValueError, KeyError, RecursionError) as error:
            raise _damaged(path, one_line(error)) from None

    @classmethod
    def _parsed(cls, path: Path, force: bool) -> AdapterCard:
        whole = json.loads(path.read_text())
        if not isinstance(whole, dict):
            raise VituneError(f"got {type(whole).__name__}, expected a mapping")
        values = dict(whole)
        given = values.pop("format")
        if given != FORMAT:
            raise AdapterError(
                f"{path}: got format {given!r}, expected {FORMAT}. Update vitune to read it."
            )
        odd = sorted(set(values) - set(cls.__dataclass_fields__))
        if odd:
            raise VituneError(f"unknown entry {odd[0]!r}")
        card: AdapterCard = TypeAdapter(cls).validate_python(values)
        if not 0 < card.temperature < math.inf:
            raise VituneError(f"temperature: got {card.temperature!r}, expected a number above 0")
        own = card.checksums.get(CARD)  # cards of older releases have none
        if own is not None and own != _own_sha256(whole):
            text = (
                f"{path}: got values that were edited after vitune wrote them, expected the "
                "original ones."
            )
            remedy = (
                "Put the original back, rename a class as 'Renaming a class' in docs/runs.md says"
            )
            refuse_unless_forced(text, remedy, force=force)
        return card

    def check_file(self, file: Path, *, force: bool = False) -> None:
        """Check that a file next to the card is unchanged; a card without checksums passes.

        Args:
            force: warn instead of refusing.

        Raises:
            AdapterError: a bit was flipped, or the file was edited.
        """
        expected = self.checksums.get(file.name)
        if expected is None:
            return
        found = file_sha256(file)
        if found == expected:
            return
        text = (
            f"{file}: got sha256 {found[:16]}, expected {expected[:16]}: the file is damaged, or "
            "was edited after it was written."
        )
        refuse_unless_forced(text, "Get an intact copy", force=force)


def refuse_unless_forced(text: str, remedy: str, *, force: bool) -> None:
    """Refuse to load something that differs from what was written, or warn where forced.

    Raises:
        AdapterError: `text` and `remedy`, without `force`.
    """
    if not force:
        raise AdapterError(f"{text} {remedy}, or use --force.")
    warnings.warn(f"{text} Loading it anyway, as requested.", stacklevel=4)


def adapter_folder(path: str | Path) -> Path:
    """The folder of the card of `path`: `path` itself, or `adapter/` of a run folder.

    `hf:user/name` is downloaded first (`vitune.hub`).

    Raises:
        AdapterError: no such folder, or a run without an adapter yet.
    """
    folder = local_copy(path)
    return folder if (folder / CARD).is_file() else RunFolder.open(folder).adapter


def _own_sha256(values: Mapping[str, Any]) -> str:
    """sha256 of a card's values but for this checksum itself; the layout of the file is free."""
    files = {name: value for name, value in values["checksums"].items() if name != CARD}
    return values_sha256({**values, "checksums": files})


def _damaged(path: Path, what: str) -> AdapterError:
    return AdapterError(
        f"{path}: got a damaged card ({what}), expected the JSON that vitune wrote. Get an "
        "intact copy."
    )
