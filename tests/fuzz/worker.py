"""A process that has imported everything and forks for each command: a case costs no start-up.

    python worker.py DRAWS_JSON SEED

First prints what hypothesis draws, then answers JSON lines on stdin, one per request:

    {"import": [names]}                          import these modules for all later commands
    {"argv": [...], "folder": ..., "told": ...,  run a command in the folder; stdout and stderr go
     "modules": FILE, "die_at": NAME}            to files in `told`
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import resource
import select
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from draws import drawn

LIMIT_S = 60.0
"""Seconds that a command may take on a machine that does nothing else: a hang has no end, and the
longest, `methods --all`, takes 17 on a slow core of its own."""
MEMORY = 16 * 2**30
"""Address space of a command; what asks for more is to be refused, not to stop this machine."""


def answer(request: dict[str, Any]) -> dict[str, Any]:
    if "import" in request:
        for name in request["import"]:
            with suppress(Exception):
                importlib.import_module(name)
        gc.collect()
        gc.freeze()  # a child's collections would copy every page of what was imported
        return {}
    started, limit = time.monotonic(), request.get("limit", limit_s())
    child = os.fork()
    if child == 0:
        run_command(request)
    ended = waited(child, limit)
    with suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)  # processes that the command started go with it
    if not ended:
        os.kill(child, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return {"code": code if ended else None, "seconds": time.monotonic() - started}


def waited(child: int, limit: float) -> bool:
    """Whether the child ends within so many seconds."""
    handle = os.pidfd_open(child)
    try:
        return bool(select.select([handle], [], [], limit)[0])
    finally:
        os.close(handle)


def limit_s() -> float:
    """The limit, longer where others use the machine: a hang stays a hang."""
    return LIMIT_S * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


def run_command(request: dict[str, Any]) -> None:
    """The command as `python -m vitune` would run it; never returns."""
    os.setsid()
    os.chdir(request["folder"])
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        path = os.devnull if number == 0 else os.path.join(request["told"], name)
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        os.dup2(handle, number)
    code: Any = 1
    try:
        if "limit" not in request:
            resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        if "die_at" in request:
            die_at(request["die_at"])
        from vitune.cli import main

        main(request["argv"])
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    if "modules" in request:
        Path(request["modules"]).write_text(json.dumps(sorted(sys.modules)))
    with suppress(Exception):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def die_at(name: str) -> None:
    """Die, as by kill -9, when the folder of that name is about to be replaced."""

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "os.rename" and os.path.basename(str(arguments[0])) == name:
            os._exit(9)

    sys.addaudithook(watch)


def main() -> None:
    counts, start = json.loads(sys.argv[1]), int(sys.argv[2])
    print(json.dumps(drawn(counts, start)), flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
