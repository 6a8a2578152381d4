"""The files in a run's exits/, and a network's exits from them or from its own method."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from vitune.data import content_hashes
from vitune.errors import VituneError
from vitune.exits.exit_heads import ExitHeads, norm_of
from vitune.exits.leaving import EarlyExit, Exit
from vitune.exits.points import find_trunk
from vitune.exits.thresholds import Thresholds
from vitune.files import write_atomic
from vitune.methods import MethodLayer

FORMAT = 1


@dataclass(frozen=True)
class ExitsFolder:
    """Paths inside RUN/exits/.

    exits.json          where the exits are and how they were trained; absent if the method trains
                        its own
    heads.safetensors   the heads and shared adapters
    seen.txt            sha256 of every image that took part in training or selection
    thresholds.json     when images leave, with the certificate
    """

    run: Path

    @property
    def path(self) -> Path:
        return self.run / "exits"

    @property
    def record(self) -> Path:
        return self.path / "exits.json"

    @property
    def heads(self) -> Path:
        return self.path / "heads.safetensors"

    @property
    def seen(self) -> Path:
        return self.path / "seen.txt"

    @property
    def thresholds(self) -> Path:
        return self.path / "thresholds.json"

    @property
    def fingerprint(self) -> str:
        """64 hex digits of the weights that decide where an image leaves: adapter and heads."""
        return _hash_of([*self._trunk_files, *([self.heads] if self.heads.is_file() else [])])

    @property
    def trunk(self) -> str:
        """64 hex digits of the adapter alone, on whose features the heads were trained."""
        return _hash_of(self._trunk_files)

    @property
    def _trunk_files(self) -> list[Path]:
        return sorted((self.run / "adapter").glob("*.safetensors"))

    def read_record(self) -> dict[str, Any]:
        """The content of exits.json; empty if there is none.

        Raises:
            VituneError: the file is damaged.
        """
        if not self.record.is_file():
            return {}
        try:
            values: dict[str, Any] = json.loads(self.record.read_text())
            if values["format"] != FORMAT:
                raise ValueError("another format")
            values["after"] = tuple(int(after) for after in values["after"])
        except (ValueError, KeyError, TypeError) as error:
            raise VituneError(
                f"{self.record}: got a damaged file ({error}), expected what 'vitune exits add' "
                "wrote. Add the exits again."
            ) from None
        return values

    def write(self, heads: ExitHeads, record: dict[str, Any], seen: Iterable[str]) -> None:
        """Write heads, record and the hashes of the images that took part; the record last."""
        self.path.mkdir(parents=True, exist_ok=True)
        heads.save(self.heads)
        write_atomic(self.seen, "".join(f"{digest}\n" for digest in sorted(set(seen))))
        whole = {"format": FORMAT, "trunk": self.trunk, **record}
        write_atomic(self.record, json.dumps(whole, indent=2) + "\n")

    def read_seen(self) -> set[str]:
        """Hashes of the images that took part, as recorded when the exits were trained."""
        return set(self.seen.read_text().split()) if self.seen.is_file() else set()

    def read_thresholds(self, exits: tuple[Exit, ...]) -> Thresholds | None:
        """The thresholds; None before calibration.

        Raises:
            VituneError: they belong to another run or other exits.
        """
        if not self.thresholds.is_file():
            return None
        found = Thresholds.read(self.thresholds)
        if found.fingerprint != self.fingerprint or found.after != tuple(e.after for e in exits):
            raise VituneError(
                f"{self.thresholds}: got thresholds of another run ({found.fingerprint[:12]}, "
                f"exits {','.join(map(str, found.after))}), expected those of this one "
                f"({self.fingerprint[:12]}). Calibrate again: vitune exits calibrate {self.run}"
            )
        return found


def _hash_of(files: list[Path]) -> str:
    return hashlib.sha256("\n".join(content_hashes(files)).encode()).hexdigest()


def find_exits(model: nn.Module, folder: ExitsFolder, num_classes: int) -> tuple[Exit, ...]:
    """The early exits of a loaded run, in ascending order; empty if it has none.

    Raises:
        VituneError: exits that the network cannot have.
    """
    record = folder.read_record()
    if not record:
        return _trained_with_the_method(model)
    if record.get("trunk") != folder.trunk:
        raise VituneError(
            f"{folder.record}: got exits of another adapter than the run's, expected the one they "
            "were trained on. Add the exits again."
        )
    trunk = find_trunk(model)
    at = trunk.check(record["after"])
    heads = ExitHeads.load(folder.heads, len(at), trunk.width, num_classes)
    heads = heads.to(next(model.parameters()).device)
    norm = norm_of(model, trunk)
    return tuple(
        Exit(after, trunk.blocks[after - 1], heads.head(index, trunk, norm))
        for index, after in enumerate(at)
    )


def early_exit(model: nn.Module, folder: ExitsFolder, num_classes: int) -> EarlyExit | None:
    """The network with its exits and thresholds; None if it has no exits.

    Raises:
        VituneError: as `find_exits`, or thresholds of another run.
    """
    exits = find_exits(model, folder, num_classes)
    if not exits:
        return None
    thresholds = folder.read_thresholds(exits)
    return EarlyExit(model, exits, None if thresholds is None else thresholds.values)


def _trained_with_the_method(model: nn.Module) -> tuple[Exit, ...]:
    """Exits that come with the layers of the run's method."""
    found = []
    for name, layer in model.named_modules():
        if isinstance(layer, MethodLayer) and layer.site.block is not None:
            for adapter in layer.adapters_here():
                head = layer.exit_head(adapter)
                if head is not None:
                    found.append(Exit(layer.site.block + 1, name, head))
    return tuple(sorted(found, key=lambda place: place.after))
