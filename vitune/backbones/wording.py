"""Words of errors that more than one source of backbones uses."""

from __future__ import annotations

from vitune.errors import BackboneError


def one_line(error: Exception) -> str:
    """A library's error as its kind and the start of its text, on one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}"


def cannot_fetch(name: str, error: Exception) -> BackboneError:
    """The error for weights that could not be downloaded, with what works without a network."""
    return BackboneError(
        f"backbone: got {name!r} whose weights could not be fetched ({one_line(error)}), expected "
        f"a network connection or cached weights. Without one: ARCHITECTURE@FILE for a local "
        f"checkpoint, hf:/FOLDER for a saved transformers model, or the bundled "
        f"vitune/vit_micro_patch4_32."
    )
