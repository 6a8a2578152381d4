"""The adapters of a folder: read, watched, and refused with a reason if they cannot be served.

A fault in one of them never affects the others.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from weakref import WeakValueDictionary

from peft import PeftConfig
from torch import nn

from vitune.adapters import CONFIG, TENSORS, read_config
from vitune.cards import CARD, AdapterCard
from vitune.data import Decoding
from vitune.errors import AdapterError, VituneError, nearest, one_line
from vitune.preprocessing import Preprocessing
from vitune.serving.trees import Tree, Values, tree_key

FILES = (CARD, CONFIG, TENSORS)
MOST_CHARACTERS = 200
GONE_AFTER = 2
"""Checks in which a folder must be missing: a writer that replaces it renames the old one first."""

Signature = tuple[tuple[str, int, int, int], ...]
"""Name, time, size and inode of each file: changes when any of them is rewritten."""


class UnknownAdapterError(VituneError):
    """The name of no served adapter."""


@dataclass(frozen=True, eq=False)
class Served:
    """An adapter that is ready to run.

    Args:
        name: of its folder.
        fingerprint: `a1-` and 16 hex digits of sha256 over its files.
        card: backbone, preprocessing, class names.
        decoding: how its images are read.
    """

    name: str
    fingerprint: str
    card: AdapterCard
    decoding: Decoding
    values: Values
    tree: Tree

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in the order of the logits."""
        return self.card.classes


@dataclass
class Changes:
    """What a check of the folder found: names of adapters."""

    added: list[str] = field(default_factory=list)
    replaced: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    dropped: list[Served] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.added or self.replaced or self.removed or self.refused)


class Collection:
    """The adapters in the subfolders of one folder, over one backbone.

    Args:
        folder: every subfolder is a run or an adapter; hidden ones are skipped.
        network: the backbone.
        preprocessing: of the backbone; adapters of another image size are refused.
        max_megapixels: larger images are refused by their header.
    """

    def __init__(
        self,
        folder: Path,
        network: nn.Module,
        preprocessing: Preprocessing,
        max_megapixels: float,
    ) -> None:
        self.folder, self.network = folder, network
        self.preprocessing, self.max_megapixels = preprocessing, max_megapixels
        self.served: dict[str, Served] = {}
        self.refused: dict[str, str] = {}
        self._signatures: dict[str, Signature] = {}
        self._missed: dict[str, int] = {}
        self._trees: WeakValueDictionary[str, Tree] = WeakValueDictionary()

    def still_serves(self, one: Served) -> bool:
        """Whether an adapter with the files of `one` is served, under whatever name."""
        return self.served.get(one.name) is one or any(
            other.fingerprint == one.fingerprint for other in list(self.served.values())
        )

    def get(self, name: str) -> Served:
        """The adapter called `name`.

        Raises:
            UnknownAdapterError: there is none, or it was refused (with the reason).
        """
        found = self.served.get(name)
        if found is not None:
            return found
        if name in self.refused:
            raise UnknownAdapterError(f"adapter {name!r} was refused: {self.refused[name]}")
        raise UnknownAdapterError(
            f"adapter: got {name[:MOST_CHARACTERS]!r}, expected one that is served. "
            f"{nearest(name[:MOST_CHARACTERS], self.served)}"
        )

    def refresh(self, on_read: Callable[[int, int], object] = lambda _, __: None) -> Changes:
        """Check the folder and apply what is new, changed or gone.

        Args:
            on_read: called with the number of subfolders checked and their total.
        """
        changes, present = Changes(), set()
        try:
            found = list(sub_folders(self.folder))
        except OSError:  # a disk that is briefly unavailable takes no adapter out of service
            return changes
        for number, (name, place) in enumerate(found, start=1):
            present.add(name)
            signature = _signature(place)
            if self._signatures.get(name) != signature:
                self._take_in(name, place, signature, changes)
            on_read(number, len(found))
        for name in set(self._signatures) - present:
            self._missed[name] = self._missed.get(name, 0) + 1
            if self._missed[name] >= GONE_AFTER:
                self._forget(name, changes)
        self._missed = {name: n for name, n in self._missed.items() if name not in present}
        return changes

    def _take_in(self, name: str, place: Path, signature: Signature, changes: Changes) -> None:
        try:
            found = self._read(name, place)
        except Exception as error:  # whatever fails concerns only this adapter
            kind = "" if isinstance(error, VituneError) else f"{type(error).__name__}: "
            said = one_line(error).replace(f"{self.folder}/", "")  # clients need no paths
            found, reason = None, kind + said
        if _signature(place) != signature:
            return  # written to meanwhile: the next check reads it again
        self._signatures[name] = signature
        if found is None:
            self.refused[name] = reason
            changes.refused.append(name)
            return
        self.refused.pop(name, None)
        before = self.served.get(name)
        if before is not None and before.fingerprint == found.fingerprint:
            return
        self.served[name] = found
        (changes.added if before is None else changes.replaced).append(name)
        if before is not None:
            changes.dropped.append(before)

    def _forget(self, name: str, changes: Changes) -> None:
        self._signatures.pop(name, None)
        self._missed.pop(name, None)
        self.refused.pop(name, None)
        gone = self.served.pop(name, None)
        if gone is not None:
            changes.removed.append(name)
            changes.dropped.append(gone)

    def _read(self, name: str, place: Path) -> Served:
        if len(name) > MOST_CHARACTERS or not name.isprintable():
            raise AdapterError(
                f"adapter: got a folder called {name[:MOST_CHARACTERS]!r}, expected a name of at "
                f"most {MOST_CHARACTERS} printable characters. Rename it."
            )
        card = AdapterCard.read(place)
        if card.merged:
            raise AdapterError(
                f"adapter: got a merged model of {card.backbone!r}, expected a run or an adapter. "
                "Use the run it was merged from."
            )
        "".join(card.classes).encode()  # text that is not Unicode could not be sent
        self._check_size(card.preprocessing)
        config = read_config(place, card)
        fingerprint = content_fingerprint(place)
        tree, values = self._values(place, card, config)
        decoding = Decoding(card.preprocessing, max_megapixels=self.max_megapixels)
        return Served(name, fingerprint, card, decoding, values, tree)

    def _values(self, place: Path, card: AdapterCard, config: PeftConfig) -> tuple[Tree, Values]:
        """An adapter's values, and the tree that runs them: one for its own class count if needed.

        A method may hold tensors that are as wide as the head, an exit on the way for example. A
        tree lives as long as an adapter that runs through it.
        """
        key, num_classes = tree_key(config, card), len(card.classes)
        for name in (key, f"{key} {num_classes}"):
            tree = self._trees.get(name)
            if tree is None:
                tree = Tree(self.network, config, card)
            try:
                values = tree.read(place, card)
            except AdapterError:
                if tree.num_classes == num_classes:
                    raise
                continue
            self._trees[name] = tree
            return tree, values
        raise AssertionError("the second tree has the adapter's own class count")

    def _check_size(self, asked: Preprocessing) -> None:
        if asked.image_size != self.preprocessing.image_size:
            raise AdapterError(
                f"image size: got {asked.image_size}, expected "
                f"{self.preprocessing.image_size}, that of the served backbone. Serve it in a "
                "separate process."
            )


def content_fingerprint(place: Path) -> str:
    """`a1-` and 16 hex digits of sha256 over an adapter's files: card, configuration, tensors."""
    digest = hashlib.sha256()
    for file in FILES:
        digest.update((place / file).read_bytes())
    return f"a1-{digest.hexdigest()[:16]}"


def sub_folders(folder: Path) -> Iterator[tuple[str, Path]]:
    """Names of the subfolders, and the path of each one's card."""
    for path in sorted(path for path in folder.iterdir() if path.is_dir()):
        if not path.name.startswith("."):
            run = path / "adapter"
            yield path.name, run if (run / CARD).is_file() else path


def _signature(place: Path) -> Signature:
    found = []
    for name in FILES:
        try:
            status = (place / name).stat()
        except OSError:
            continue
        found.append((name, status.st_mtime_ns, status.st_size, status.st_ino))
    return tuple(found)
