"""Ctrl-C during a study in several processes."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from vitune.bench.study.cells import CellResult
from vitune.bench.study.execution import Processes
from vitune.bench.study.plan import Study
from vitune.bench.study.protocol import Watcher, run_study
from vitune.bench.study.workbench import Workbench

Make = Callable[..., Study]


class Interrupts(Watcher):
    """Ctrl-C when the first result is there, in this process and, where asked, in the workers."""

    def __init__(self, in_workers: bool) -> None:
        self.in_workers = in_workers

    def finished(self, result: CellResult, reused: bool) -> None:
        for worker in multiprocessing.active_children() if self.in_workers else ():
            assert worker.pid is not None
            os.kill(worker.pid, signal.SIGINT)
        raise KeyboardInterrupt


@pytest.mark.parametrize("in_workers", [False, True])
def test_an_interrupted_study_does_not_run_what_waits(
    tiny_study: Make,
    bench: Workbench,
    tmp_path: Path,
    in_workers: bool,
    capfd: pytest.CaptureFixture[str],
) -> None:
    study = tiny_study(seeds=list(range(8)))
    with pytest.raises(KeyboardInterrupt):
        run_study(study, tmp_path, executor=Processes(1, bench), watcher=Interrupts(in_workers))
    done = len(list((tmp_path / "cells").glob("*.json")))
    assert 1 <= done <= 4  # a pool hands out two cells in advance
    assert "Traceback" not in capfd.readouterr().err
