"""What computed a result: the versions of the libraries that decide it."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

PACKAGES = ("vitune", "torch", "timm", "peft", "transformers")


def installed_versions() -> dict[str, str]:
    """Versions of the libraries that decide a result."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
