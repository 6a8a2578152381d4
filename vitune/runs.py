"""The run folder: its files, how it is created without ever overwriting one, and how it is read."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from vitune.errors import AdapterError
from vitune.files import recover_folder


@dataclass(frozen=True)
class RunFolder:
    """Paths inside one run folder.

    config.yaml     every value that affects the result
    metrics.jsonl   one line an epoch
    adapter/        PEFT's files and vitune.json
    checkpoint/     what --resume continues from
    snapshots/      epoch-000/, epoch-005/, ...: adapters along training, where asked for
    probe/          the solved probe that the run is compared with: an adapter, and probe.json
    summary.json    what came out
    evaluation/     one file per evaluated data set
    report.html     all of it for a reader
    """

    path: Path

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def adapter(self) -> Path:
        return self.path / "adapter"

    @property
    def probe(self) -> Path:
        return self.path / "probe"

    @property
    def checkpoint(self) -> Path:
        return self.path / "checkpoint"

    def snapshot(self, epoch: int) -> Path:
        """Where the adapter after so many epochs is kept; 0 is before the first step."""
        return self.path / "snapshots" / f"epoch-{epoch:03d}"

    def snapshots(self) -> dict[int, Path]:
        """The kept adapters by epoch, rising; empty where none were asked for."""
        found = (self.path / "snapshots").glob("epoch-*")
        epochs = {path.name.removeprefix("epoch-"): path for path in found}
        return {int(n): epochs[n] for n in sorted(filter(str.isdigit, epochs), key=int)}

    @property
    def summary(self) -> Path:
        return self.path / "summary.json"

    @property
    def evaluations(self) -> Path:
        return self.path / "evaluation"

    @classmethod
    def create(cls, path: str | Path, *, resume: bool = False) -> RunFolder:
        """A new run folder at `path`, or with `resume` the existing one.

        Raises:
            AdapterError: the folder holds something already and `resume` was not asked for, or
                `resume` was and there is no run to continue.
        """
        folder = cls(Path(path))
        if resume:
            if not folder.config.is_file():
                raise AdapterError(
                    f"--resume: got {str(path)!r} without config.yaml, expected a run folder."
                )
            return folder
        require_new_folder(path, hint="Continue it with --resume, or choose another name.")
        folder.path.mkdir(parents=True, exist_ok=True)
        return folder

    @classmethod
    def open(cls, path: str | Path) -> RunFolder:
        """The finished or stopped run at `path`.

        Raises:
            AdapterError: there is no run folder, or it holds no adapter yet.
        """
        folder = cls(Path(path))
        if not folder.path.is_dir():
            raise AdapterError(f"run: got {str(path)!r}, expected an existing run folder.")
        recover_folder(folder.adapter)
        if not folder.adapter.is_dir():
            hint = "Finish it with --resume." if folder.config.is_file() else "Is it a run?"
            raise AdapterError(f"run: got {str(path)!r} without an adapter. {hint}")
        return folder

    def read_config(self) -> dict[str, Any]:
        """The settings of the run."""
        values = yaml.safe_load(self.config.read_text())
        return values if isinstance(values, dict) else {}

    def read_summary(self) -> dict[str, Any]:
        """What came out of the run; empty while it is not finished."""
        if not self.summary.is_file():
            return {}
        summary: dict[str, Any] = json.loads(self.summary.read_text())
        return summary


def require_new_folder(path: str | Path, *, hint: str = "Choose another name.") -> None:
    """Refuse a path where something already is: nothing of the user's is ever overwritten.

    Raises:
        AdapterError: `path` is a file or a folder that is not empty.
    """
    folder = Path(path)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise AdapterError(f"--out: got {str(path)!r}, which exists, expected a new folder. {hint}")
