"""Images in folders: class folders, or train / val / test folders above them."""

from __future__ import annotations

import os
from bisect import bisect
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path

from vitune.data.formats import (
    COMPANIONS,
    counted_suffixes,
    image_suffixes,
    is_image,
    suffix_hint,
)
from vitune.data.records import SPLIT_ALIASES, ImageList, Record, require_records
from vitune.errors import DataError, nearest


def open_folder(spec: str) -> ImageList:
    """List a folder of class folders, or of train / val / test folders that hold class folders.

    Class names are the folder names in sorted order (torchvision's order), over all splits at
    once. Class folders may be nested. Hidden files are skipped; files of kinds that are not read,
    and images outside the class folders, are listed separately.

    Args:
        spec: path of the folder; `valid` and `validation` also name the validation split.

    Raises:
        DataError: no such folder, no images, an empty class, a mix of splits and classes, or a link
            from one class folder into another.
    """
    root = require_folder(spec)
    folders = _class_folders_by_split(root, spec)
    classes = tuple(sorted({name for found in folders.values() for name in found}))
    unread: list[str] = []
    splits = {
        split: require_records(_labelled(_ClassFolders(found, spec), classes, unread), spec, split)
        for split, found in folders.items()
    }
    parents = {root, *(path.parent for found in folders.values() for path in found.values())}
    return ImageList(spec, splits, classes, unread=tuple(unread), loose=_loose_images(parents))


def list_images(folder_or_file: str | Path) -> list[Path]:
    """All image files below a folder in sorted order, or the one file that was named.

    Args:
        folder_or_file: a folder (searched to any depth) or an image file.

    Raises:
        DataError: the path does not exist, the folder has no images, or the file has another
            suffix.
    """
    path = Path(folder_or_file)
    if path.is_file():
        if not is_image(path.name):
            raise DataError(
                f"image file: got {str(path)!r}, expected a suffix among "
                f"{', '.join(sorted(image_suffixes()))} ({suffix_hint([path.name])})."
            )
        return [path]
    found = list(_images_below(require_folder(str(path))))
    if not found:
        raise _no_images(str(path))
    return found


def require_folder(spec: str) -> Path:
    """The folder `spec` names.

    Raises:
        DataError: no such folder; the message offers the nearest neighbours.
    """
    folder = Path(spec).expanduser()
    if folder.is_dir():
        return folder
    if folder.is_symlink():
        raise DataError(
            f"data folder: got {spec!r}, a link that leads to no folder or file, expected an "
            "existing one. Correct the link."
        )
    raise DataError(
        f"data folder: got {spec!r}, expected an existing folder. {nearest_sibling(folder)}"
    )


def nearest_sibling(path: Path) -> str:
    """The sibling names closest to `path`, as a sentence."""
    if not path.parent.is_dir():
        return f"There is no {str(path.parent)!r} either."
    return nearest(path.name, (entry.name for entry in path.parent.iterdir()))


def _class_folders_by_split(root: Path, spec: str) -> Mapping[str, dict[str, Path]]:
    """Class folders by class name, for every split or for "all"."""
    children = _subfolders(root)
    nothing_else = all(name.lower() in SPLIT_ALIASES for name in children)
    splits = {n: path for n, path in children.items() if _holds_classes(n, path, nothing_else)}
    if not splits:
        _require_class_folders(root, children, spec)
        _require_no_tasks(children, spec)
        return {"all": children}
    others = {name: path for name, path in children.items() if name not in splits}
    strays = [name for name, path in others.items() if any(_images_below(path))]
    if strays:
        raise DataError(
            f"folders of {spec}: got {strays[0]!r} with images next to {next(iter(splits))!r}, "
            "expected either class folders or train, val and test folders that hold them."
            f"{_without_classes(strays[0], others[strays[0]])}"
        )
    empty = {name: path for name, path in others.items() if name.lower() in SPLIT_ALIASES}
    found: dict[str, dict[str, Path]] = {}
    for name, path in {**splits, **empty}.items():
        split = SPLIT_ALIASES[name.lower()]
        if split in found:
            raise DataError(
                f"folders of {spec}: got {name!r} as a second {split} split, expected one."
            )
        found[split] = _subfolders(path)
    return found


def _without_classes(name: str, folder: Path) -> str:
    """A remedy for a split without class folders, as contests publish their test images."""
    if name.lower() not in SPLIT_ALIASES or _subfolders(folder):
        return ""
    return f" Move {name!r} elsewhere; vitune predict classifies images without labels."


def _require_class_folders(root: Path, children: Mapping[str, Path], spec: str) -> None:
    """Refuse a folder without class folders: empty, or with images directly in it."""
    if not any(_images_below(root)):
        raise _no_images(spec)
    if not children:
        raise DataError(
            f"folders of {spec}: got images without class folders, expected one folder per class "
            f"({spec}/cat/1.jpg). To classify unlabelled images use vitune predict."
        )


def _require_no_tasks(children: Mapping[str, Path], spec: str) -> None:
    """Refuse the root of a benchmark, whose tasks are not classes."""
    tasks = [name for name, path in children.items() if (path / "train800.txt").is_file()]
    if tasks:
        raise DataError(
            f"folders of {spec}: got the VTAB-1k task {tasks[0]!r}, expected class folders. Train "
            f"on vtab:{spec}/{tasks[0]}, or check all with: vitune data check {spec} --suite "
            "vtab1k."
        )


class _ClassFolders:
    """The class folders of one split; refuses links from one into another."""

    def __init__(self, folders: Mapping[str, Path], spec: str) -> None:
        self.folders, self.spec = folders, spec
        self.owners: dict[str, list[str]] = {}
        for name, path in folders.items():
            self.owners.setdefault(os.path.realpath(path), []).append(name)
        self.places = sorted(self.owners)

    def files(self, name: str) -> Iterator[Path]:
        """Visible files of one class to any depth, in sorted order.

        Raises:
            DataError: a link that would add another class's images to this one.
        """
        folder = self.folders[name]
        if folder.is_symlink():
            self._require_own(name, folder)
        for parent, inner, files in _walk(folder):
            for link in (Path(parent, entry) for entry in inner):
                if link.is_symlink():
                    self._require_own(name, link)
            yield from (Path(parent, entry) for entry in files)

    def _require_own(self, name: str, link: Path) -> None:
        real = os.path.realpath(link)
        other = next((owner for owner in self._owners(real) if owner != name), None)
        if other is not None:
            raise DataError(
                f"class folder {name!r} of {self.spec}: got {str(link)!r}, which leads to the "
                f"images of class {other!r} ({real}), expected images of {name!r} alone. Remove "
                "the link."
            )

    def _owners(self, real: str) -> Iterator[str]:
        """Classes whose folder is `real`, contains it or is inside it."""
        for place in (real, *map(str, Path(real).parents)):
            yield from self.owners.get(place, ())
        below = os.path.join(real, "")
        for place in islice(self.places, bisect(self.places, below), None):
            if not place.startswith(below):
                return
            yield from self.owners[place]


def _labelled(
    folders: _ClassFolders, classes: tuple[str, ...], unread: list[str]
) -> Iterator[Record]:
    """One record per image, class by class; files that are not read are added to `unread`."""
    for label, name in enumerate(classes):
        if name not in folders.folders:
            continue
        files = list(folders.files(name))
        images = [path for path in files if is_image(path.name)]
        others = [str(path) for path in files if not is_image(path.name)]
        strange = [path for path in others if os.path.splitext(path)[1].lower() not in COMPANIONS]
        if not images:
            found = f"only {counted_suffixes(strange)}" if strange else "no images"
            hint = f" ({suffix_hint(strange)})" if strange else ""
            raise DataError(
                f"class folder {name!r} of {folders.spec}: got {found}, expected at least one "
                f"image{hint}. Fill or remove {str(folders.folders[name])!r}."
            )
        unread += strange
        yield from (Record(path, label) for path in images)


def _loose_images(folders: Iterable[Path]) -> tuple[str, ...]:
    """Images directly in `folders`, where only class folders are expected."""
    return tuple(
        str(folder / name)
        for folder in sorted(folders)
        for name in sorted(os.listdir(folder))
        if is_image(name) and (folder / name).is_file()
    )


def _holds_classes(name: str, folder: Path, may_hold_images: bool) -> bool:
    """Whether `folder` is a split: named like one, with folders inside and no loose images.

    Among other classes, a folder `train` with its own images is the class of trains.
    """
    if name.lower() not in SPLIT_ALIASES:
        return False
    loose = any(is_image(entry) and Path(folder, entry).is_file() for entry in os.listdir(folder))
    return bool(_subfolders(folder)) and (may_hold_images or not loose)


def _subfolders(folder: Path) -> dict[str, Path]:
    names = (name for name in os.listdir(folder) if not name.startswith((".", "__")))
    return {name: folder / name for name in sorted(names) if (folder / name).is_dir()}


def _images_below(folder: Path) -> Iterator[Path]:
    """Image files to any depth in sorted order."""
    for parent, _, files in _walk(folder):
        yield from (Path(parent, name) for name in files if is_image(name))


def _walk(folder: Path) -> Iterator[tuple[str, list[str], list[str]]]:
    """os.walk over visible names in sorted order; each real folder is entered once (link loops)."""
    entered: set[str] = set()
    for parent, inner, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(parent)
        if real in entered:
            inner.clear()
            continue
        entered.add(real)
        inner[:] = sorted(name for name in inner if not name.startswith((".", "__")))
        yield parent, inner, sorted(name for name in files if not name.startswith("."))


def _no_images(spec: str) -> DataError:
    return DataError(
        f"data folder {spec!r}: got no images, expected files with a suffix among "
        f"{', '.join(sorted(image_suffixes()))}."
    )
