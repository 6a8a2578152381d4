"""Kill -9 a run at the n-th change it makes to its folder, go on, and compare the ends.

    python killed_runs.py WORK_FOLDER STRIDE

Every child is forked from this process, which has imported everything and computed nothing.
Prints one JSON line per kill.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vitune.errors import VituneError
from vitune.files import file_sha256
from vitune.training.fitting import fit

SETTINGS: dict[str, Any] = {
    "data": "demo:digits?train=40",
    "method": "linear_sgd",
    "batch_size": 16,
    "epochs": 2,
    "image_size": 16,
    "lr": 5e-3,
    "ema": 0.9,
}
CHANGES = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.chmod", "shutil.rmtree")
WRITES = os.O_WRONLY | os.O_RDWR


def kill_at_change(number: int, folder: Path) -> None:
    """From now on count what this process changes below `folder`; die before change `number`."""
    seen = 0

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal seen
        is_write = event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITES
        if (is_write or event in CHANGES) and str(folder) in str(arguments[0]):
            seen += 1
            if seen == number:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)


def in_child(work: Callable[[], None]) -> int:
    """The wait status of a child that does `work`."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException as error:
            print(repr(error), file=sys.stderr)
            os._exit(1)
        os._exit(0)
    return os.waitpid(child, 0)[1]


def killed(run: Path, number: int) -> bool:
    """Start a run that dies at change `number`; whether it lived to do so."""

    def work() -> None:
        kill_at_change(number, run)
        fit(out=run, **SETTINGS)

    status = in_child(work)
    return os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL


def gone_on(run: Path) -> str:
    """How the run was brought to its end after the kill."""
    how = "resumed" if (run / "config.yaml").is_file() else "begun anew"

    def work() -> None:
        if how == "resumed":
            fit(out=run, resume=True)
        else:
            fit(out=run, **SETTINGS)

    return how if in_child(work) == 0 else "stuck"


def state_of(run: Path) -> dict[str, Any]:
    """The end of a run as plain values that can be compared."""
    if not (run / "summary.json").is_file():
        raise VituneError(f"{run}: no summary")
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return {
        "weights": file_sha256(run / "adapter" / "adapter_model.safetensors"),
        "losses": [[row["epoch"], row["train_loss"]] for row in map(json.loads, lines)],
        "files": sorted(path.relative_to(run).as_posix() for path in run.rglob("*")),
    }


def main(work: Path, stride: int) -> None:
    """Kill at change 1, 1 + stride, ... until a run lives to its end."""
    whole = work / "whole"
    assert in_child(lambda: fit(out=whole, **SETTINGS) and None) == 0
    expected = state_of(whole)
    number = 1
    while killed(work / f"run{number}", number):
        run = work / f"run{number}"
        how = gone_on(run)
        same = how != "stuck" and state_of(run) == expected
        print(json.dumps({"change": number, "how": how, "same": same}), flush=True)
        number += stride


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
