"""Images in folders: class folders, or train / val / test folders above them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from vitune.data.records import SPLIT_ALIASES, ImageList, Record, require_records
from vitune.errors import DataError, nearest

IMAGE_SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm")
)


def open_folder(spec: str) -> ImageList:
    """List a folder of class folders, or of train / val / test folders that hold class folders.

    Class names are the folder names in sorted order (torchvision's order), over all splits at
    once. Files that are not images and hidden files are left out; class folders may be nested.

    Args:
        spec: path of the folder; `valid` and `validation` also name the validation split.

    Raises:
        DataError: no such folder, no images, an empty class, or a mix of splits and classes.
    """
    root = require_folder(spec)
    folders = _class_folders_by_split(root, spec)
    classes = tuple(sorted({name for found in folders.values() for name in found}))
    splits = {
        split: require_records(_labelled(found, classes, spec), spec, split)
        for split, found in folders.items()
    }
    return ImageList(spec, splits, classes)


def list_images(folder_or_file: str | Path) -> list[Path]:
    """All image files below a folder in sorted order, or the one file that was named.

    Args:
        folder_or_file: a folder (searched to any depth) or an image file.

    Raises:
        DataError: nothing there, no image in the folder, or a file with another suffix.
    """
    path = Path(folder_or_file)
    if path.is_file():
        if not _is_image(path.name):
            raise DataError(
                f"image file: got {str(path)!r}, expected a suffix among "
                f"{', '.join(sorted(IMAGE_SUFFIXES))}."
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
    raise DataError(
        f"data folder: got {spec!r}, expected an existing folder. {nearest_sibling(folder)}"
    )


def nearest_sibling(path: Path) -> str:
    """The names beside `path` that come closest to it, as a sentence."""
    if not path.parent.is_dir():
        return f"There is no {str(path.parent)!r} either."
    return nearest(path.name, (entry.name for entry in path.parent.iterdir()))


def _class_folders_by_split(root: Path, spec: str) -> Mapping[str, dict[str, Path]]:
    """Class folders by class name, for every split or for "all"."""
    children = _subfolders(root)
    splits = {name: path for name, path in children.items() if _holds_classes(name, path)}
    if not splits:
        _require_class_folders(root, children, spec)
        return {"all": children}
    others = {name: path for name, path in children.items() if name not in splits}
    strays = [name for name, path in others.items() if any(_images_below(path))]
    if strays:
        raise DataError(
            f"folders of {spec}: got {strays[0]!r} with images beside {next(iter(splits))!r}, "
            "expected either class folders or train, val and test folders that hold them."
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


def _require_class_folders(root: Path, children: Mapping[str, Path], spec: str) -> None:
    """Refuse a folder without class folders: empty, or with the images lying loose."""
    if not any(_images_below(root)):
        raise _no_images(spec)
    if not children:
        raise DataError(
            f"folders of {spec}: got images without class folders, expected one folder a class "
            f"({spec}/cat/1.jpg). To classify unlabelled images use vitune predict."
        )


def _labelled(folders: Mapping[str, Path], classes: tuple[str, ...], spec: str) -> Iterator[Record]:
    """One record an image, class by class; every class folder must hold an image."""
    for label, name in enumerate(classes):
        if name not in folders:
            continue
        images = list(_images_below(folders[name]))
        if not images:
            raise DataError(
                f"class folder {name!r} of {spec}: got no images, expected at least one. "
                f"Fill or remove {str(folders[name])!r}."
            )
        yield from (Record(path, label) for path in images)


def _holds_classes(name: str, folder: Path) -> bool:
    """Whether `folder` is a split: named like one, with folders inside and no loose images."""
    if name.lower() not in SPLIT_ALIASES:
        return False
    loose = any(_is_image(entry) and Path(folder, entry).is_file() for entry in os.listdir(folder))
    return not loose and bool(_subfolders(folder))


def _subfolders(folder: Path) -> dict[str, Path]:
    names = (name for name in os.listdir(folder) if not name.startswith((".", "__")))
    return {name: folder / name for name in sorted(names) if (folder / name).is_dir()}


def _images_below(folder: Path) -> Iterator[Path]:
    """Image files to any depth in sorted order; each real folder is entered once (link loops)."""
    entered: set[str] = set()
    for parent, inner, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(parent)
        if real in entered:
            inner.clear()
            continue
        entered.add(real)
        inner[:] = sorted(name for name in inner if not name.startswith((".", "__")))
        yield from (Path(parent, name) for name in sorted(files) if _is_image(name))


def _is_image(name: str) -> bool:
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def _no_images(spec: str) -> DataError:
    return DataError(
        f"data folder {spec!r}: got no images, expected files with a suffix among "
        f"{', '.join(sorted(IMAGE_SUFFIXES))}."
    )
