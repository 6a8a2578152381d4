"""SIGTERM, from `kill`, a batch system or a container: a command ends on it as on Ctrl-C."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

INTERRUPTED = 128 + signal.SIGINT
"""Exit code after Ctrl-C; typer returns it instead of raising KeyboardInterrupt."""

TERMINATED = 128 + signal.SIGTERM


def until_terminated(command: Callable[[], int]) -> int:
    """The exit code of `command`, which SIGTERM interrupts: it can still say what it keeps.

    A process forked by the command ends at once on its own SIGTERM, as it would without this. If
    the signal is ignored here or handled already, that stays.
    """
    if signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        return command()
    owner, was_asked = os.getpid(), False

    def end(*_: object) -> None:
        nonlocal was_asked
        if os.getpid() != owner:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGTERM)
        was_asked = True
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, end)
    try:
        code = command()
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    return TERMINATED if was_asked and code == INTERRUPTED else code
