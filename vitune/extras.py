"""Optional libraries: where one is missing, the error names the extra that brings it."""

from __future__ import annotations

import importlib
from importlib.util import find_spec
from typing import Any

from vitune.errors import VituneError


def require_extra(what: str, extra: str, *libraries: str) -> None:
    """Check that libraries are installed, without importing them.

    Args:
        what: the option or feature that needs them, for the error text.
        extra: of the package, as in `pip install 'vitune[extra]'`.
        libraries: top-level import names.

    Raises:
        VituneError: one is not installed.
    """
    missing = [name for name in libraries if find_spec(name) is None]
    if missing:
        raise _not_installed(what, extra, missing)


def import_extra(what: str, extra: str, library: str) -> Any:
    """An optional library, imported; the arguments are those of `require_extra`.

    Raises:
        VituneError: it is not installed, or something it needs is not.
    """
    try:
        return importlib.import_module(library)
    except ImportError:
        raise _not_installed(what, extra, [library]) from None


def _not_installed(what: str, extra: str, missing: list[str]) -> VituneError:
    return VituneError(
        f"{what}: got a Python without {', '.join(missing)}, expected it to be installed. "
        f"Run: pip install 'vitune[{extra}]'."
    )
