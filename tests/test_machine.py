"""Threads that fit the machine: quota, waiting, and what other programs use."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vitune import machine
from vitune.machine import ProcessorUse, available_cores, cgroup_quota, settle_threads


def test_quota_of_both_kinds_of_control_groups(tmp_path: Path) -> None:
    assert cgroup_quota(tmp_path) is None
    (tmp_path / "cpu.max").write_text("150000 100000\n")
    assert cgroup_quota(tmp_path) == 1.5
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert cgroup_quota(tmp_path) is None

    older = tmp_path / "older"
    (older / "cpu").mkdir(parents=True)
    (older / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    for text, cores in (("400000\n", 4.0), ("-1\n", None), ("", None)):
        (older / "cpu" / "cpu.cfs_quota_us").write_text(text)
        assert cgroup_quota(older) == cores


def test_a_quota_caps_the_cores_and_the_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "CGROUP", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    assert available_cores() == 8
    (tmp_path / "cpu.max").write_text("250000 100000")
    assert available_cores() == 3
    (tmp_path / "cpu.max").write_text("1000 100000")
    assert available_cores() == 1

    environment: dict[str, str] = {}
    settle_threads(environment)
    assert environment == {"OMP_WAIT_POLICY": "passive", "OMP_NUM_THREADS": "1"}


def test_what_the_user_set_is_left_alone() -> None:
    for name in machine.WAITING:
        environment = {name: "1", "OMP_NUM_THREADS": "7"}
        settle_threads(environment)
        assert environment == {name: "1", "OMP_NUM_THREADS": "7"}


def test_the_command_line_settles_threads_before_pytorch_loads() -> None:
    code = (
        "import os, sys; sys.argv = ['vitune', '--version']\n"
        "from vitune.cli import main\n"
        "try: main()\n"
        "except SystemExit as stop: assert stop.code == 0\n"
        "assert os.environ['OMP_WAIT_POLICY'] == 'passive' and 'torch' not in sys.modules"
    )
    plain = {name: value for name, value in os.environ.items() if name not in machine.WAITING}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env=plain
    )
    assert done.returncode == 0, done.stderr


def test_own_time_is_told_from_that_of_others() -> None:
    if not machine.PROC_STAT.exists():
        pytest.skip("no /proc/stat on this system")
    use = ProcessorUse()
    worker = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        end = time.process_time() + 0.3
        while time.process_time() < end:
            pass
        while (use.others or 0) < 0.1 and time.perf_counter() - use.started < 30:
            time.sleep(0.1)
        assert 0.3 <= use.own_seconds < 5
        assert use.others is not None and 0.1 <= use.others <= (os.cpu_count() or 1)
    finally:
        worker.kill()
        worker.wait()


def test_a_system_without_proc_says_nothing_of_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "PROC_STAT", tmp_path / "absent")
    assert ProcessorUse().others is None
