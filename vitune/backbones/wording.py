"""Error texts shared by several backbone sources."""

from __future__ import annotations

from vitune.errors import BackboneError


def one_line(error: Exception) -> str:
    """A library's error on one line: its type and the start of its text."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}"


def cannot_fetch(name: str, error: Exception) -> BackboneError:
    """The error for weights that could not be downloaded, with offline alternatives."""
    return BackboneError(
        f"backbone: got {name!r} whose weights could not be downloaded ({one_line(error)}), "
        "expected "
        f"a network connection or cached weights. Without one: ARCHITECTURE@FILE for a local "
        f"checkpoint, hf:/FOLDER for a saved transformers model, or the bundled "
        f"vitune/vit_micro_patch4_32."
    )
