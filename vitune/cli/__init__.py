"""The command line: one file per command. A user's mistake is one line on stderr and exit code 2.

Commands import what they use inside their functions: PyTorch takes seconds to load, and --help, TAB
and a mistyped option do not need it.
"""

from __future__ import annotations

import io
import os
import sys
import warnings
from typing import Any

import typer

from vitune.cli import (
    analyze,
    audit,
    bench,
    combine,
    compare,
    data,
    demo,
    evaluate,
    exits,
    export,
    info,
    merge,
    methods,
    predict,
    push,
    rebalance,
    serve,
    train,
)
from vitune.cli._options import Verbs
from vitune.cli._signals import INTERRUPTED, until_terminated
from vitune.cli._words import SYNTAX
from vitune.errors import InterruptError, VituneError, nearest, says_no_memory
from vitune.machine import settle_threads

ClickException: type[Exception] = typer.BadParameter.__mro__[2]
"""typer's own: recent releases carry a copy of click and no longer raise click's."""

NO_MEMORY = "out of memory. Lower --batch-size, or add --checkpointing."

VERBS = (
    train,
    predict,
    evaluate,
    exits,
    merge,
    export,
    push,
    serve,
    info,
    methods,
    compare,
    combine,
    rebalance,
    analyze,
    audit,
    bench,
    data,
    demo,
)

app = Verbs(
    name="vitune",
    help="Adapt a pre-trained Vision Transformer to your own images.",
    epilog=SYNTAX,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for _verb in VERBS:
    _verb.add_to(app)


def _print_version(wanted: bool) -> None:
    if wanted:
        from vitune.environment import installed_versions

        (_, own), *others = installed_versions().items()
        python = sys.version.split()[0]
        libraries = ", ".join(f"{name} {number}" for name, number in others)
        typer.echo(f"vitune {own} (python {python}, {libraries})")
        raise typer.Exit


@app.callback(help=app.info.help)
def _options(
    version: bool = typer.Option(
        False, "--version", callback=_print_version, is_eager=True, help="show versions and exit"
    ),
) -> None: ...


def main(arguments: list[str] | None = None) -> None:
    """Run one command and exit.

    0 done, 1 some runs of a study have no accuracy (or a defect), 2 a user's mistake, 130
    interrupted, 143 terminated.
    """
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TQDM_DISABLE", "1")  # libraries' progress bars would mix with ours
    settle_threads(os.environ)
    warnings.showwarning = _show_warning  # type: ignore[assignment]
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # file names need not be UTF-8
    given = sys.argv[1:] if arguments is None else arguments
    sys.exit(until_terminated(lambda: run(given)))


def run(arguments: list[str]) -> int:
    """The exit code of one command; errors a user can cause are printed, never raised."""
    arguments = arguments or ["--help"]
    try:
        code = app(arguments, prog_name="vitune", standalone_mode=False) or 0
        sys.stdout.flush()  # reports a full disk here, not when the interpreter ends
        return _interrupted("stopped.") if code == INTERRUPTED else int(code)
    except InterruptError as stop:
        return _interrupted(str(stop))
    except typer.Exit as stop:
        return int(stop.exit_code)
    except ClickException as error:
        return _fail(_usage_text(error))
    except VituneError as error:
        return _fail(str(error))
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        return _fail(f"{error.strerror or error}{where}. What was saved before is intact.")
    except MemoryError:
        return _fail(NO_MEMORY)
    except RuntimeError as error:
        if not says_no_memory(error):
            raise
        return _fail(NO_MEMORY)
    except (KeyboardInterrupt, typer.Abort):
        return _interrupted("stopped.")


def _interrupted(text: str) -> int:
    print(f"vitune: {text}", file=sys.stderr)
    return INTERRUPTED


def _fail(text: str) -> int:
    print(f"vitune: error: {' '.join(text.split())}", file=sys.stderr)
    return 2


def _usage_text(error: Any) -> str:
    """The parser's message on one line, with the nearest names if a word is unknown."""
    text = str(error.format_message())
    context = getattr(error, "ctx", None)
    unknown = getattr(error, "option_name", None)
    if unknown is not None and context is not None:
        known = [name for option in context.command.params for name in option.opts]
        return f"unknown option {unknown}. {nearest(unknown, known)}"
    if "No such command" in text and context is not None:
        word = text.split("'")[1]
        return f"unknown command {word!r}. {nearest(word, context.command.commands)}"
    path = "" if context is None else f" See '{context.command_path} --help'."
    return f"{text}{path}"


def _show_warning(message: Warning | str, category: type[Warning], *rest: Any) -> None:
    """Print vitune's warnings as one line on stderr; those of libraries are for developers."""
    if category is UserWarning and "vitune" in str(rest[0] if rest else ""):
        print(f"vitune: warning: {' '.join(str(message).split())}", file=sys.stderr)
