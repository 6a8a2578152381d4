"""The errors a user can cause; any other failure is a bug in vitune."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

from pydantic import ValidationError


class VituneError(ValueError):
    """A user's mistake; the command line prints it on one line and exits with 2."""


class DataError(VituneError):
    """Images, labels or splits that cannot be used as given."""


class BackboneError(VituneError):
    """A backbone that cannot be found, read or adapted."""


class AdapterError(VituneError):
    """An adapter or run folder that does not fit what it is loaded into."""


class OutputError(VituneError):
    """An output path that already holds something, or that another process writes to."""


class TrainingError(VituneError):
    """A training run that had to stop; what was saved before is intact."""


class OutOfMemoryError(VituneError, MemoryError):
    """More memory is needed than the machine has; nothing was allocated."""


class InterruptError(Exception):
    """The user interrupted a command; the text says what is kept and how to continue."""


_NO_MEMORY = (
    "out of memory",
    "can't allocate memory",
    "not enough memory",
    "Storage size calculation overflowed",
)
"""What PyTorch says of a tensor for which memory, or an integer, is too small."""


def says_no_memory(error: BaseException) -> bool:
    """Whether the text of an error of PyTorch says that there was no memory for a tensor."""
    return any(text in str(error) for text in _NO_MEMORY)


def one_line(error: BaseException) -> str:
    """An error's message with its lines joined."""
    return " ".join(str(error).split())


def explain(error: ValidationError, known: Iterable[str] = ()) -> str:
    """One line for everything that pydantic found wrong in a record with the fields `known`."""
    parts = []
    for problem in error.errors():
        name = ".".join(str(step) for step in problem["loc"])
        if problem["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
            parts.append(f"{name}: unknown option. {nearest(name, known)}")
        elif problem["type"] == "missing":
            parts.append(f"{name}: got nothing, expected a value.")
        else:
            cause = problem.get("ctx", {}).get("error")
            if isinstance(cause, VituneError):  # is already a complete message
                parts.append(str(cause))
                continue
            reason = problem["msg"].removeprefix("Value error, ").removesuffix(".")
            parts.append(f"{name}: got {problem['input']!r}, {reason[0].lower()}{reason[1:]}.")
    return " ".join(parts)


def listed(names: Sequence[str], most: int = 8) -> str:
    """The first names, and the number of further ones: a network has hundreds of tensors."""
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest:,} more" if rest > 0 else "")


def nearest(name: str, valid: Iterable[str], *, most: int = 3) -> str:
    """The valid names closest to `name` as a sentence, or a sample of them if none is close."""
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
