"""Many adapters over one backbone: decides which images run together, and with which weights.

No web framework here: `vitune.serving.app` is one way to reach an engine, `submit` is another.
"""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from vitune.backbones import Backbone, absolute_backbone, fingerprint, load_backbone
from vitune.cards import AdapterCard
from vitune.data import decode_bytes, normalise, quiet_pillow
from vitune.errors import AdapterError, VituneError
from vitune.serving.batching import Batcher, Waiting
from vitune.serving.collection import Changes, Collection, Served, sub_folders
from vitune.serving.runner import Runner
from vitune.serving.settings import EngineSettings
from vitune.serving.trees import Tree
from vitune.serving.weight_cache import WeightCache

Pixels = Any
"""(h, w, 3) uint8 array."""


@dataclass(frozen=True)
class Upload:
    """An image as a client sent it."""

    name: str
    content: bytes


@dataclass(frozen=True, eq=False)
class Answer:
    """The network's output for one image.

    Args:
        adapter: name of the adapter.
        fingerprint: of the adapter's files when it ran.
        classes: names in the order of the logits.
        batch_size: images that ran together.
        merged: whether its weights were merged.
        waited_ms, ran_ms: time in the queue, and time of the batch.

    Shapes: logits (c,), divided by the adapter's temperature; features (d,); float32.
    """

    adapter: str
    fingerprint: str
    classes: tuple[str, ...]
    logits: Tensor
    features: Tensor
    batch_size: int
    merged: bool
    waited_ms: float
    ran_ms: float


@dataclass(frozen=True, eq=False)
class _Job:
    served: Served
    pixels: Pixels


class Engine:
    """One backbone and the adapters of a folder, watched and ready to answer.

    Args:
        folder: every subfolder is a run or an adapter.
        on_read: called with the number of subfolders read and their total.
        on_change: called on every change of the folder, from a separate thread.

    Raises:
        VituneError: there is no such folder, no adapter that can be served, or the backbone cannot
            be loaded.
    """

    def __init__(
        self,
        folder: str | Path,
        settings: EngineSettings | None = None,
        *,
        on_read: Callable[[int, int], object] = lambda _, __: None,
        on_change: Callable[[Changes], object] = lambda _: None,
    ) -> None:
        self.settings = settings or EngineSettings()
        self.folder = Path(folder)
        self.backbone = _backbone_of(self.folder, self.settings.backbone)
        self.device = torch.device(_device(self.settings.device))
        network = self.backbone.model.requires_grad_(False).to(self.device).eval()
        self.fingerprint = fingerprint(network)
        self.collection = Collection(
            self.folder, network, self.backbone.preprocessing, self.settings.max_megapixels
        )
        self.cache = WeightCache(int(self.settings.cache_mib * 2**20))
        self.num_images: Counter[str] = Counter()
        self.num_batches = 0
        self._runners: WeakKeyDictionary[Tree, Runner] = WeakKeyDictionary()
        self._dropped: list[str] = []
        self._looking = threading.Lock()
        self._on_change = on_change
        self.collection.refresh(on_read)
        self._require_some()
        self._batcher: Batcher[_Job, Answer] = Batcher(
            self._run,
            max_batch=self.settings.max_batch,
            max_wait_s=self.settings.max_wait_ms / 1000,
            max_queue=self.settings.max_queue,
        )
        self._stop = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="vitune-watch", daemon=True)
        if self.settings.watch_s > 0:
            self._watcher.start()

    @property
    def num_waiting(self) -> int:
        """Images in the queue."""
        return self._batcher.num_waiting

    def get(self, name: str) -> Served:
        """The adapter called `name` in its current version; a request keeps it to its end.

        Raises:
            UnknownAdapterError: there is none, or it was refused.
        """
        return self.collection.get(name)

    def decode(self, served: Served, uploads: Sequence[Upload]) -> list[Pixels]:
        """The pixels of images, prepared as in the adapter's training.

        Raises:
            DataError: an image is broken, too large or of an unknown kind.
        """
        return [decode_bytes(one.content, served.decoding, one.name) for one in uploads]

    def submit(self, served: Served, pixels: Sequence[Pixels]) -> list[Future[Answer]]:
        """Submit images; either all are accepted or none.

        Raises:
            BusyError: the queue is full.
            StoppedError: the engine is closed.
        """
        return self._batcher.submit(served.fingerprint, [_Job(served, one) for one in pixels])

    def predict(self, name: str, uploads: Sequence[Upload]) -> list[Answer]:
        """Submit images and wait for the answers.

        Raises:
            VituneError: as `get`, `decode` and `submit`.
        """
        served = self.get(name)
        with quiet_pillow():
            pixels = self.decode(served, uploads)
        return [future.result() for future in self.submit(served, pixels)]

    def listing(self) -> dict[str, Any]:
        """What is served and what was refused, as plain JSON values."""
        served, refused = dict(self.collection.served), dict(self.collection.refused)
        adapters = [
            {
                "name": name,
                "state": "served",
                "fingerprint": one.fingerprint,
                "method": one.card.method,
                "classes": list(one.classes),
                "image_size": list(one.card.preprocessing.image_size),
                "merges": one.tree.mergeable,
                "in_cache": one.fingerprint in self.cache,
                "problem": refused.get(name),
            }
            for name, one in sorted(served.items())
        ]
        adapters += [
            {"name": _printable(name), "state": "refused", "problem": reason}
            for name, reason in sorted(refused.items())
            if name not in served
        ]
        backbone = {"name": self.backbone.name, "fingerprint": self.fingerprint}
        return {"backbone": backbone, "adapters": adapters}

    def refresh(self) -> Changes:
        """Check the folder now; what is gone or replaced leaves the cache."""
        with self._looking:
            changes = self.collection.refresh()
            gone = [one for one in changes.dropped if not self.collection.still_serves(one)]
        self._dropped += [one.fingerprint for one in gone]
        return changes

    def close(self) -> None:
        """Answer what was accepted, then stop."""
        self._stop.set()
        self._batcher.close()
        if self._watcher.is_alive():
            self._watcher.join()

    def _watch(self) -> None:
        while not self._stop.wait(self.settings.watch_s):
            changes = self.refresh()
            if changes:
                self._on_change(changes)

    def _run(self, key: str, batch: Sequence[Waiting[_Job]]) -> list[Answer]:
        """Run one batch of one adapter; only the batcher's thread calls this."""
        started = time.perf_counter()
        while self._dropped:
            self.cache.drop(self._dropped.pop())
        served = batch[0].item.served
        pixels = torch.from_numpy(np.stack([one.item.pixels for one in batch]))  # (b, h, w, 3)
        inputs = normalise(
            pixels.permute(0, 3, 1, 2), served.card.preprocessing, device=self.device
        )
        runner, merged = self._runner(served)
        logits, features = runner(inputs)
        if not torch.isfinite(logits).all():
            raise AdapterError(
                f"adapter {served.name!r}: got logits with NaN or infinity, expected numbers. "
                "Train again with a lower learning rate."
            )
        logits = logits / served.card.temperature
        ran_ms = 1000 * (time.perf_counter() - started)
        self.num_batches += 1
        self.num_images.update(one.item.served.name for one in batch)  # equal files, other names
        return [
            Answer(
                one.item.served.name,
                key,
                served.classes,
                logits[index],
                features[index],
                len(batch),
                merged,
                1000 * (started - one.since),
                ran_ms,
            )
            for index, one in enumerate(batch)
        ]

    def _runner(self, served: Served) -> tuple[Runner, bool]:
        """The network that runs an adapter, and whether it is merged.

        One that is gone or replaced is not: its merged weights would only be in the way.
        """
        tree, values = served.tree, served.values

        def build() -> tuple[Runner, int] | None:
            network = tree.merged(values)
            return None if network is None else (Runner(network), tree.merged_bytes)

        if tree.mergeable and self.collection.still_serves(served):
            cached = self.cache.get(served.fingerprint, tree.merged_bytes, build)
            if cached is not None:
                return cached, True
        model = tree.bind(values)
        if tree not in self._runners:
            self._runners[tree] = Runner(model)
        return self._runners[tree], False

    def _require_some(self) -> None:
        refused = self.collection.refused
        if refused and not self.collection.served:
            name, reason = next(iter(refused.items()))
            raise AdapterError(
                f"adapters: got {len(refused)} in {str(self.folder)!r}, none of which can be "
                f"served; the first is {name!r}: {reason}"
            )


def _backbone_of(folder: Path, asked: str | None) -> Backbone:
    """The requested backbone, or the one of most adapters."""
    if not folder.is_dir():
        raise AdapterError(
            f"adapters: got {str(folder)!r}, expected a folder with one subfolder per run or "
            "adapter."
        )
    wanted: Counter[tuple[str, str]] = Counter()
    for _, place in sub_folders(folder):
        try:
            card = AdapterCard.read(place)
        except VituneError:
            continue
        if not card.merged:
            wanted[card.backbone, json.dumps(card.backbone_args, sort_keys=True)] += 1
    if asked is None and not wanted:
        raise AdapterError(
            f"adapters: got {str(folder)!r} without a run or adapter in its subfolders, expected "
            "at least one. Pass --backbone to start with none."
        )
    same = {k: n for k, n in wanted.items() if asked and _is_same(k[0], asked)}
    choices = Counter(same) or (wanted if asked is None else Counter())
    name, arguments = choices.most_common(1)[0][0] if choices else (str(asked), "{}")
    return load_backbone(name, num_classes=1, **json.loads(arguments))


def _is_same(one: str, other: str) -> bool:
    return absolute_backbone(one) == absolute_backbone(other)


def _device(asked: str) -> str:
    if asked == "cuda" and not torch.cuda.is_available():
        raise VituneError("--device: got 'cuda', expected a GPU that PyTorch can see. Use cpu.")
    if asked == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return asked


def _printable(name: str) -> str:
    return name.encode(errors="backslashreplace").decode()
