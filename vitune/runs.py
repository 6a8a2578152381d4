"""The run folder: its files, who may write into it, and how it is read."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from vitune.errors import AdapterError, VituneError
from vitune.files import check_new_folder, is_part, recover_folder, sweep, write_atomic
from vitune.processes import locked
from vitune.result_files import as_record, read_json, sealed_record
from vitune.run_summary import Calibration as Calibration
from vitune.run_summary import Oddity as Oddity
from vitune.run_summary import PrivacySpent as PrivacySpent
from vitune.run_summary import Reported as Reported
from vitune.run_summary import RunSummary as RunSummary
from vitune.run_summary import SolvedFacts as SolvedFacts
from vitune.run_summary import TrainedPart as TrainedPart
from vitune.run_summary import Verdict as Verdict
from vitune.seals import sealed

LOCK = ".lock"


@dataclass(frozen=True)
class RunFolder:
    """Paths inside one run folder.

    config.yaml     every value that affects the result, and what computed it
    images.npz      which images trained and which were watched, by content
    metrics.jsonl   one line per epoch
    adapter/        PEFT's files and vitune.json
    checkpoint/     what --resume continues from
    snapshots/      epoch-000/, epoch-005/, ...: adapters along training, where asked for
    probe/          the solved probe that the run is compared with: an adapter, and probe.json
    summary.json    what came out
    exits/          early exits: heads, thresholds, certificate; where there are any
    evaluation/     one file per evaluated data set
    report.html     all of it for a reader
    """

    path: Path
    beside: tuple[str, ...] = ()
    """Names of a search's files, which may exist when the run begins."""

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def images(self) -> Path:
        return self.path / "images.npz"

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
        """The path of the adapter after `epoch` epochs; 0 is before the first step."""
        return self.path / "snapshots" / f"epoch-{epoch:03d}"

    def snapshots(self) -> dict[int, Path]:
        """The kept adapters by epoch, ascending; empty if none were requested."""
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
    def existing(cls, path: str | Path) -> RunFolder:
        """The run at `path` that --resume is to continue.

        Raises:
            AdapterError: there is none.
        """
        folder = cls(Path(path))
        if not folder.config.is_file():
            raise AdapterError(
                f"--resume: got {str(path)!r} without config.yaml, expected a run folder."
            )
        return folder

    @classmethod
    def open(cls, path: str | Path) -> RunFolder:
        """The finished or stopped run at `path`.

        Raises:
            AdapterError: there is no run folder, or it has no adapter yet.
        """
        folder = cls(Path(path))
        if not folder.path.is_dir():
            raise AdapterError(f"run: got {str(path)!r}, expected an existing run folder.")
        recover_folder(folder.adapter)
        if not folder.adapter.is_dir():
            hint = "Finish it with --resume." if folder.config.is_file() else "Is it a run?"
            raise AdapterError(f"run: got {str(path)!r} without an adapter. {hint}")
        return folder

    def check_new(self) -> None:
        """Check that a run may begin here: the folder is empty or holds only what a dead start
        left.

        Raises:
            OutputError: the folder holds something.
        """
        names = set(os.listdir(self.path)) - set(self.beside) if self.path.is_dir() else set()
        if not self.path.is_dir() or any(not _is_left_over(name) for name in names):
            hint = "Continue it with --resume, or choose another name."
            check_new_folder(self.path, hint=hint)

    @contextmanager
    def begun(self) -> Iterator[None]:
        """Within the context, the folder exists and only this process may write a new run into it.

        If nothing was written, a folder that was made for it is gone afterwards.

        Raises:
            OutputError: it holds something, or another process writes to it.
        """
        was_there = self.path.is_dir()
        self.path.mkdir(parents=True, exist_ok=True)
        try:
            with self.held():
                self.check_new()
                yield
        finally:
            if not was_there:
                with suppress(OSError):  # it holds the run
                    self.path.rmdir()

    @contextmanager
    def held(self) -> Iterator[None]:
        """Within the context, no other training run writes to the folder; leftovers are removed.

        Raises:
            OutputError: another process writes to it.
        """
        with locked(self.path / LOCK, f"run folder {str(self.path)!r}"):
            for folder in (self.path, self.evaluations, self.path / "analysis"):
                sweep(folder)
            yield

    def forget(self) -> None:
        """Remove a run that failed to start; other files in the folder are kept."""
        for file in (self.metrics, self.images, self.config, self.path / LOCK):
            file.unlink(missing_ok=True)
        shutil.rmtree(self.probe, ignore_errors=True)
        with suppress(OSError):
            self.path.rmdir()

    def read_config(self) -> dict[str, Any]:
        """The settings of the run.

        Raises:
            AdapterError: config.yaml is missing or not a YAML mapping.
        """
        try:
            values = yaml.safe_load(self.config.read_text())
        except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
            reason = " ".join(str(error).split())
            raise AdapterError(
                f"{self.config}: got {reason!r}, expected the YAML that training wrote. Replace "
                "it with an intact copy."
            ) from None
        if not isinstance(values, dict):
            raise AdapterError(f"{self.config}: got no mapping, expected 'name: value' lines.")
        return values

    def read_data(self) -> str:
        """The data source of the run.

        Raises:
            AdapterError: config.yaml does not say.
        """
        data = self.read_config().get("data")
        if not isinstance(data, str):
            raise AdapterError(f"{self.config}: data: got {data!r}, expected a data source.")
        return data

    def weights_digest(self) -> str | None:
        """`weights_digest` of its adapter: scores of other weights are out of date."""
        return weights_digest(self.adapter)

    def read_summary(self) -> RunSummary | None:
        """The summary of the run; None until it is finished.

        Raises:
            VituneError: summary.json is damaged (the text names line or key) or was edited.
        """
        if not self.summary.is_file():
            return None
        return RunSummary.of(sealed_record(self.summary))

    def write_summary(self, summary: RunSummary) -> None:
        """Write summary.json atomically."""
        write_atomic(self.summary, json.dumps(sealed(summary.as_dict()), indent=2) + "\n")


def weights_digest(adapter: Path) -> str | None:
    """sha256 of an adapter's weights by its card; None if there is no card, or it does not say."""
    card = adapter / "vitune.json"
    try:
        record = as_record(read_json(card, str(card)), str(card))
        digests = record.mapping("checksums")
    except (OSError, VituneError):
        return None
    found = (str(digest) for name, digest in digests.items() if name.endswith(".safetensors"))
    return next(found, None)


def _is_left_over(name: str) -> bool:
    """Whether a start that died before it wrote config.yaml may have left a file of this name."""
    return name == LOCK or is_part(name)
