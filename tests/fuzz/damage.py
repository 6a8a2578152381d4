"""What can happen to a file: bytes, kind of file, and values where it is JSON, YAML or tensors."""

from __future__ import annotations

import json
import os
import socket
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import yaml

Steps = tuple[str | int, ...]


def damage(path: Path, name: str, *parameters: Any) -> None:
    """Do to the file what the draw says; values of a file without values: the bytes are cut."""
    if name in ON_VALUES:
        if path.is_dir() or not _on_values(path, name, parameters):
            damage(path, "truncate", (parameters[0] % 1000) / 1000)
    elif name in ON_BYTES:
        files = [path] if path.is_file() else [p for p in sorted(path.rglob("*")) if p.is_file()]
        for file in files[:3]:
            file.write_bytes(ON_BYTES[name](file.read_bytes(), *parameters))
    else:
        _become(path, name)


def _truncated(data: bytes, share: float) -> bytes:
    return data[: int(share * len(data))]


def _flipped(data: bytes, shares: list[float], bit: int) -> bytes:
    changed = bytearray(data)
    for share in shares if data else ():
        changed[min(int(share * len(data)), len(data) - 1)] ^= 1 << bit
    return bytes(changed)


def _inserted(data: bytes, share: float, more: list[int]) -> bytes:
    place = int(share * len(data))
    return data[:place] + bytes(more) + data[place:]


ON_BYTES: dict[str, Callable[..., bytes]] = {
    "truncate": _truncated,
    "flip": _flipped,
    "insert": _inserted,
    "text": lambda data, text: text.encode("utf-8", "surrogatepass"),
    "repeat": lambda data, times: data * times,
    "empty": lambda data: b"",
    "deep": lambda data: b"[" * 100_000,
}
ON_VALUES = ("replace", "remove", "rename", "swap")


def _become(path: Path, kind: str) -> None:
    """Put something else in the place of a file or folder; what was there stays beside it."""
    if kind == "forbidden":
        path.chmod(0)
        return
    path.rename(path.with_name(f"{path.name}.was"))
    if kind == "folder":
        (path / "inner").mkdir(parents=True)
    elif kind == "dangling":
        path.symlink_to("nowhere")
    elif kind == "loop":
        path.symlink_to(path.name)
    elif kind == "other_file":
        other = path.with_name(f"{path.name}.other")  # writers follow links, as they say
        other.write_text("another file\n")
        path.symlink_to(other.name)
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "socket":
        _make_socket(path)
    else:
        assert kind == "delete"


def _make_socket(path: Path) -> None:
    before = Path.cwd()
    os.chdir(path.parent)  # its name may have 107 bytes
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    finally:
        os.chdir(before)


def _on_values(path: Path, name: str, parameters: tuple[Any, ...]) -> bool:
    """Change a value of the file; False where it is not one that holds values."""
    suffix = path.suffix
    if suffix == ".json":
        _write_json(path, changed(json.loads(path.read_bytes()), name, *parameters))
    elif suffix == ".jsonl":
        lines = [json.loads(line) for line in path.read_text().splitlines() if line]
        path.write_text("".join(f"{_json(v)}\n" for v in changed(lines, name, *parameters)))
    elif suffix == ".yaml":
        value = changed(yaml.safe_load(path.read_text()), name, *parameters)
        path.write_text(yaml.safe_dump(_plain(value)))
    elif suffix == ".safetensors":
        _change_header(path, name, parameters)
    elif suffix == ".npz":
        _change_arrays(path, name, parameters)
    else:
        return False
    return True


def changed(value: Any, name: str, place: int, other: Any = None) -> Any:
    """`value` with one of its entries, however deep, replaced, removed, renamed or swapped."""
    places = list(_places(value))
    if not places:
        return other
    steps = places[place % len(places)]
    inside = _at(value, steps[:-1])
    last = steps[-1]
    if name == "remove":
        del inside[last]
    elif name == "rename" and isinstance(inside, dict):
        inside[str(other)] = inside.pop(last)
    elif name != "swap":
        inside[last] = other
    else:
        inside[last] = json.loads(json.dumps(_at(value, places[int(other) % len(places)])))
    return value


def _places(value: Any, before: Steps = ()) -> Iterator[Steps]:
    entries = value.items() if isinstance(value, dict) else ()
    if isinstance(value, list):
        entries = enumerate(value[:20])
    for key, entry in entries:
        yield (*before, key)
        yield from _places(entry, (*before, key))


def _at(value: Any, steps: Steps) -> Any:
    for step in steps:
        value = value[step]
    return value


def _plain(value: Any) -> Any:
    """YAML without lone surrogates, which its writer refuses."""
    return json.loads(_json(value).encode("utf-8", "replace"))


def _json(value: Any) -> str:
    return json.dumps(value)


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2))


def _change_header(path: Path, name: str, parameters: tuple[Any, ...]) -> None:
    """Safetensors: 8 bytes of length, a JSON header, then the numbers."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = changed(json.loads(data[8 : 8 + length]), name, *parameters)
    text = _json(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])


def _change_arrays(path: Path, name: str, parameters: tuple[Any, ...]) -> None:
    with np.load(path, allow_pickle=False) as stored:
        arrays = {key: stored[key] for key in stored.files}
    keys = sorted(arrays)
    key = keys[parameters[0] % len(keys)]
    if name == "remove":
        del arrays[key]
    elif name == "rename":
        arrays["".join(c for c in str(parameters[1]) if c.isalnum()) or "x"] = arrays.pop(key)
    elif name == "swap":
        arrays[key] = arrays[keys[(parameters[0] + 1) % len(keys)]]
    else:
        arrays[key] = np.asarray(str(parameters[1]).encode("utf-8", "replace"))
    with path.open("wb") as file:
        np.savez(file, **arrays)
