"""The environment of a result: versions, commit, interpreter and machine."""

from __future__ import annotations

import json
import platform
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path

from pydantic import BaseModel, ConfigDict

PACKAGES = (
    "vitune",
    "torch",
    "torchvision",
    "timm",
    "peft",
    "transformers",
    "accelerate",
    "numpy",
    "pillow",
    "safetensors",
)
"""Libraries whose release can change a result."""
SOURCE = Path(__file__).parent


class Environment(BaseModel):
    """The software and machine of one start of a run.

    Args:
        commit: vitune's git commit, ending in "+" if its files differ from it; None for a release
            that does not record it.
        python: version of the interpreter.
        platform: operating system, its release and the processor's kind.
        packages: versions of PACKAGES that are installed.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    commit: str | None
    python: str
    platform: str
    packages: dict[str, str]

    @classmethod
    def here(cls) -> Environment:
        """The environment of this process."""
        return cls(
            commit=vitune_commit(),
            python=platform.python_version(),
            platform=platform.platform(),
            packages=installed_versions(),
        )

    def differences(self, other: Environment) -> list[str]:
        """The differences from `other`, as "torch 2.1 instead of 2.0"."""
        found = []
        for name in ("commit", "python", "platform"):
            now, then = getattr(self, name), getattr(other, name)
            if now != then:
                found.append(f"{name} {now} instead of {then}")
        for name in sorted(set(self.packages) | set(other.packages)):
            now, then = self.packages.get(name), other.packages.get(name)
            if now != then:
                found.append(f"{name} {now} instead of {then}")
        return found


def installed_versions() -> dict[str, str]:
    """Versions of the libraries that decide a result."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


@cache
def vitune_commit() -> str | None:
    """The commit of a source checkout, or the one that pip recorded when it installed from git."""
    root = SOURCE.parent
    if (root / ".git").exists():
        head = _git(root, "rev-parse", "HEAD")
        if head:
            changed = _git(root, "status", "--porcelain", "--", SOURCE.name)
            return head + ("+" if changed else "")
    try:
        record = json.loads(distribution("vitune").read_text("direct_url.json") or "{}")
    except (PackageNotFoundError, ValueError):
        return None
    found = record.get("vcs_info", {}).get("commit_id")
    return None if found is None else str(found)


def _git(root: Path, *words: str) -> str | None:
    """The output of git; None without git."""
    command = ["git", "-C", str(root), *words]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
