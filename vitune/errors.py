"""The errors a user can cause; everything else that fails is a defect of vitune."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class VituneError(ValueError):
    """A mistake in what the user asked for; the command line prints it on one line, exit 2."""


class DataError(VituneError):
    """Images, labels or splits that cannot be used as given."""


class BackboneError(VituneError):
    """A backbone that cannot be found, read or adapted."""


class AdapterError(VituneError):
    """An adapter or run folder that does not fit what it is loaded into."""


class TrainingError(VituneError):
    """A training run that had to stop; what was saved before is untouched."""


class OutOfMemoryError(VituneError, MemoryError):
    """More memory is asked for than the machine has; nothing was allocated."""


def nearest(name: str, valid: Iterable[str], *, most: int = 3) -> str:
    """The valid names closest to `name` as a sentence, or a sample of them where none is close."""
    known = sorted(set(valid))
    close = difflib.get_close_matches(name, known, n=most, cutoff=0.5)
    if not close:
        lowered = name.lower()
        close = [known_name for known_name in known if lowered and lowered in known_name.lower()]
    if close:
        return "Did you mean " + " or ".join(close[:most]) + "?"
    if not known:
        return "There are none to choose from."
    shown = ", ".join(known[:12])
    return f"Valid names: {shown}{', ...' if len(known) > 12 else ''}."
