"""A `vitune serve` in a process of its own, for studies."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil


@dataclass
class Running:
    """A server: its URL, its process, what it has printed so far."""

    url: str
    process: psutil.Process
    lines: list[str]

    def resident_mib(self) -> float:
        """Resident memory of the server and of all processes below it."""
        total = 0
        for process in (self.process, *self.process.children(recursive=True)):
            try:
                total += process.memory_info().rss
            except psutil.Error:  # ended meanwhile
                continue
        return total / 2**20


@contextmanager
def serving(folder: Path, *options: str, command: Sequence[str] = ()) -> Iterator[Running]:
    """`vitune serve FOLDER --port 0 ...` from when it listens to the end of the block.

    Args:
        command: another program that prints its URL, instead.
    """
    started = command or (
        sys.executable, "-m", "vitune", "serve", str(folder), "--port", "0", "--rate-limit", "0",
        *options,
    )  # fmt: skip
    process = subprocess.Popen(
        started, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    lines: list[str] = []
    assert process.stdout is not None
    for line in process.stdout:
        lines.append(line)
        found = re.search(r"http://[\w.]+:\d+", line)
        if found:
            break
    else:
        raise RuntimeError("".join(lines))
    reading = threading.Thread(target=lines.extend, args=(process.stdout,), daemon=True)
    reading.start()
    try:
        yield Running(found[0], psutil.Process(process.pid), lines)
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(120)
        reading.join(10)
