"""The machine's resources for this process: cores, threads, memory, other load."""

from __future__ import annotations

import math
import os
import time
from collections.abc import MutableMapping
from dataclasses import dataclass, field
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")
PROC_STAT = Path("/proc/stat")
MEMINFO = Path("/proc/meminfo")

WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "KMP_LIBRARY")
"""Environment variables that control how idle OpenMP threads wait."""


def available_cores() -> int:
    """Cores this process may use: those it is bound to, at most its container's quota."""
    bound = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        bound = len(os.sched_getaffinity(0))
    quota = cgroup_quota(CGROUP)
    return bound if quota is None else max(1, min(bound, math.ceil(quota)))


def cgroup_quota(root: Path) -> float | None:
    """Cores that the control group mounted at `root` grants; None if it sets no limit."""
    try:
        if (root / "cpu.max").is_file():
            quota, period = (root / "cpu.max").read_text().split()
        else:
            quota = (root / "cpu" / "cpu.cfs_quota_us").read_text()
            period = (root / "cpu" / "cpu.cfs_period_us").read_text()
        granted = float(quota) / float(period)
    except (OSError, ValueError):  # no such file, or the "max" that means no limit
        return None
    return granted if granted > 0 else None


def available_memory_mib() -> float:
    """Memory available without swapping, at most what the container may still take.

    Half of all memory if the system does not report what is free.
    """
    try:
        lines = MEMINFO.read_text(encoding="ascii").splitlines()
        free = next(line for line in lines if line.startswith("MemAvailable:"))
        free_mib = int(free.split()[1]) / 1024
    except (OSError, StopIteration):
        free_mib = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**20 / 2
    granted = cgroup_memory_mib(CGROUP)
    return free_mib if granted is None else min(free_mib, granted)


def cgroup_memory_mib(root: Path) -> float | None:
    """What the control group mounted at `root` may still take; None if it sets no limit.

    Its count of used memory includes cached files, which the system frees on demand.
    """
    older = root / "memory"
    for limit, used, stat, cached in (
        (root / "memory.max", root / "memory.current", root / "memory.stat", "file"),
        (older / "memory.limit_in_bytes", older / "memory.usage_in_bytes", older / "memory.stat",
         "total_cache"),
    ):  # fmt: skip
        try:
            taken = int(used.read_text())
            pairs = (line.split() for line in stat.read_text().splitlines())
            taken -= next((int(value) for name, value in pairs if name == cached), 0)
            return max(0.0, (int(limit.read_text()) - taken) / 2**20)
        except (OSError, ValueError):  # no such file, or the "max" that means no limit
            continue
    return None


def settle_threads(environment: MutableMapping[str, str]) -> None:
    """Adjust PyTorch's threads to the machine; call it before torch is imported.

    Idle OpenMP threads normally spin. If other programs need the cores, each spinning thread takes
    one from the thread it waits for, and two threads become many times slower than one. Threads
    that sleep while they wait compute the same bits. A container's CPU quota, which PyTorch
    ignores, caps their number. The user's own settings are kept.
    """
    if not any(name in environment for name in WAITING):
        environment["OMP_WAIT_POLICY"] = "passive"
    if "OMP_NUM_THREADS" not in environment and available_cores() < (os.cpu_count() or 1):
        environment["OMP_NUM_THREADS"] = str(available_cores())


def _busy_seconds() -> float | None:
    """Processor time of the whole machine since it started, without idle time."""
    try:
        fields = PROC_STAT.read_text().split("\n", 1)[0].split()[1:9]
        user, nice, system, _, _, *interrupts = map(int, fields)
    except (OSError, ValueError):
        return None
    return (user + nice + system + sum(interrupts)) / os.sysconf("SC_CLK_TCK")


@dataclass
class ProcessorUse:
    """Measures how much of the cores this process and the rest of the machine use from now on."""

    started: float = field(default_factory=time.perf_counter)
    own_before: float = field(default_factory=time.process_time)
    all_before: float | None = field(default_factory=_busy_seconds)

    @property
    def own_seconds(self) -> float:
        """Processor time of this process so far, over all its threads."""
        return time.process_time() - self.own_before

    @property
    def others(self) -> float | None:
        """Cores that other programs kept busy on average; None if the system does not report it."""
        now = _busy_seconds()
        if now is None or self.all_before is None:
            return None
        elapsed = time.perf_counter() - self.started
        return max(0.0, now - self.all_before - self.own_seconds) / max(elapsed, 1e-9)
