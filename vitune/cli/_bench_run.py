"""`vitune bench run`: its options as records, and the study that they ask for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vitune.cli import _completion, _study_options
from vitune.cli._options import DATA, MODEL, NAMES, NUMBERS, STUDY
from vitune.cli._study_options import Kept, Running, method_arguments
from vitune.cli._words import numbers, pair_words, whole_numbers, words
from vitune.errors import VituneError

if TYPE_CHECKING:
    from vitune.bench.study.plan import Study
    from vitune.bench.study.protocol import Outcome
    from vitune.bench.tables.study_table import Table

HONEST, PUBLISHED = "honest", "as-published"


@dataclass(frozen=True)
class Images:
    """Which tasks, and how many of their images."""

    suite: Annotated[
        str | None,
        typer.Option(
            "--suite",
            help="demo, vtab1k, fgvc, fewshot, FILE.yaml or one data set",
            autocompletion=_completion.suites,
            rich_help_panel=DATA,
        ),
    ] = None
    data_root: Annotated[
        str | None,
        typer.Option(
            "--data-root", help="folder that holds the suite's tasks", rich_help_panel=DATA
        ),
    ] = None
    tasks: Annotated[
        list[str] | None,
        typer.Option("--tasks", metavar=NAMES, help="only these tasks", rich_help_panel=DATA),
    ] = None
    allow_missing: Annotated[
        bool,
        typer.Option(
            "--allow-missing", help="continue without missing tasks", rich_help_panel=DATA
        ),
    ] = False
    shots: Annotated[
        list[str] | None,
        typer.Option(
            "--shots",
            metavar=NUMBERS,
            help="training images per class, e.g. 1,2,4,8,16, for an accuracy curve",
            rich_help_panel=DATA,
        ),
    ] = None
    allow_overlap: Annotated[bool, _study_options.OVERLAP] = False


@dataclass(frozen=True)
class Subject:
    """What is trained."""

    preset: Annotated[
        str | None,
        typer.Option(
            "--preset",
            help="a published recipe, see 'vitune bench presets'",
            autocompletion=_completion.presets,
            rich_help_panel=MODEL,
        ),
    ] = None
    methods: Annotated[list[str] | None, _study_options.METHODS] = None
    method_arg: Annotated[list[str] | None, _study_options.METHOD_ARG] = None
    backbone: Annotated[
        str | None, _study_options.backbone_option("; default: the preset's, else the bundled one")
    ] = None
    checkpoint: Annotated[str | None, _study_options.CHECKPOINT] = None


@dataclass(frozen=True)
class Choosing:
    """How settings are chosen, and how often the chosen ones are run."""

    protocol: Annotated[
        str,
        typer.Option(
            "--protocol",
            help="honest or as-published",
            autocompletion=_completion.one_of((HONEST, PUBLISHED)),
            rich_help_panel=STUDY,
        ),
    ] = HONEST
    epochs: Annotated[
        int | None, typer.Option("--epochs", help="of every run", rich_help_panel=STUDY)
    ] = None
    batch_size: Annotated[int | None, _study_options.BATCH_SIZE] = None
    lrs: Annotated[list[str] | None, _study_options.LRS] = None
    search: Annotated[
        str,
        typer.Option(
            "--search",
            help="tpe or asha (Optuna), instead of a grid",
            autocompletion=_completion.one_of(("tpe", "asha")),
            rich_help_panel=STUDY,
        ),
    ] = ""
    trials: Annotated[
        int,
        typer.Option(
            "--trials", help="trials per method and task, with --search", rich_help_panel=STUDY
        ),
    ] = 16
    untuned: Annotated[
        bool,
        typer.Option(
            "--defaults", help="use each method's defaults, choose nothing", rich_help_panel=STUDY
        ),
    ] = False
    seeds: Annotated[int, _study_options.SEEDS] = 3


@dataclass(frozen=True)
class Asked:
    """Everything that determines the study of one `vitune bench run`.

    Raises:
        VituneError: both a suite and a preset, neither, or a suite's option beside a preset.
    """

    images: Images
    subject: Subject
    choosing: Choosing
    kept: Kept

    def __post_init__(self) -> None:
        if (self.images.suite is None) == (self.subject.preset is None):
            raise VituneError(
                "bench run: got both or neither of --suite and --preset, expected one of them."
            )
        of_suites = {
            "--methods": self.subject.methods,
            "--lrs": self.choosing.lrs,
            "--search": self.choosing.search,
            "--defaults": self.choosing.untuned,
            "--shots": self.images.shots,
            "--method-arg": self.subject.method_arg,
        }
        for option, given in of_suites.items():
            if self.subject.preset is not None and given:
                raise VituneError(
                    f"{option}: got it with --preset, expected one of the two: a recipe has its "
                    "own "
                    "methods and settings."
                )

    def study(self, protocol: str) -> Study:
        """The study under a protocol."""
        from vitune.bench.launching import preset_study, suite_study

        if self.subject.preset is not None:
            return preset_study(
                self.subject.preset,
                self.kept.out,
                protocol=protocol,  # type: ignore[arg-type]
                overrides=self._settings(),
                **self._common(),
            )
        assert self.images.suite is not None
        names = words(self.subject.methods)
        return suite_study(
            self.images.suite,
            names,
            self.kept.out,
            lrs=numbers(self.choosing.lrs, "--lrs"),
            search=self.choosing.search,
            trials=self.choosing.trials,
            tune=not self.choosing.untuned,
            shots=whole_numbers(self.images.shots, "--shots"),
            method_args=method_arguments(pair_words(self.subject.method_arg), names),
            settings=self._settings(),
            protocol=protocol,
            **self._common(),
        )

    def _settings(self) -> dict[str, Any]:
        size = self.choosing.batch_size
        return {} if size is None else {"batch_size": size}

    def _common(self) -> dict[str, Any]:
        """What a suite and a preset both take; anything not given keeps its default."""
        given = {"backbone": self.subject.backbone, "checkpoint": self.subject.checkpoint}
        return {
            "root": self.images.data_root,
            "only": words(self.images.tasks),
            "allow_missing": self.images.allow_missing,
            "epochs": self.choosing.epochs,
            "seeds": self.choosing.seeds,
            "keep": tuple(words(self.kept.keep)),
            "allow_overlap": self.images.allow_overlap,
            **{name: value for name, value in given.items() if value is not None},
        }


def run_asked(asked: Asked, study: Study, running: Running) -> tuple[Table, Sequence[Outcome]]:
    """Run the study; 'as-published' never runs alone, the honest protocol runs with it."""
    from vitune.bench.beside_honest import run_both
    from vitune.bench.study.protocol import run_study
    from vitune.bench.tables.study_table import make_table
    from vitune.cli._study import StudyProgress, new_executor

    out = asked.kept.out
    executor = new_executor(running.jobs, running.ray, running.gpus_per_run)
    with StudyProgress(out) as watcher:
        how: dict[str, Any] = {
            "executor": executor, "watcher": watcher, "fresh": running.rerun_changed
        }  # fmt: skip
        if asked.choosing.protocol == PUBLISHED:
            both = run_both(asked.study(HONEST), study, out, **how)
            return both.table, [both.honest, both.published]
        outcome = run_study(study, out, **how)
        return make_table(outcome.results, missing=study.missing), [outcome]
