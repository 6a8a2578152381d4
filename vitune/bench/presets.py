"""Published recipes as files: source, expected score, and deviations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict, Field

from vitune.bench.preset_images import Images
from vitune.bench.study.plan import Frozen, Study, Task, Variant
from vitune.bench.study.recipe import OfficialRecipe
from vitune.errors import VituneError, nearest
from vitune.training import read_yaml

FOLDER = Path(__file__).parent / "presets"
EVERY_PRESET = "_every_preset.yaml"

Protocol = Literal["honest", "as-published"]


class Deviation(Frozen):
    """One deviation from the authors' code.

    Args:
        here: what vitune does.
        there: what the source does, or that it does not say.
        source: where to find that, file and lines.
        under: the protocol it applies to; the other one follows the source.
    """

    here: str
    there: str
    source: str
    under: Literal["both", "honest", "as-published"] = "both"

    def __str__(self) -> str:
        return f"{self.here} In the source: {self.there} ({self.source})"


class BothImages(Frozen):
    """How images are prepared under each protocol."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    as_published: Images = Field(alias="as-published")
    honest: Images

    def under(self, protocol: Protocol) -> Images:
        """Those of one protocol."""
        return self.honest if protocol == "honest" else self.as_published


class Published(Frozen):
    """The settings of the authors' scripts, not used under the honest protocol.

    Args:
        epochs: of the cosine, if the honest runs have fewer; None takes the preset's.
        settings: training settings on every task.
        task_settings: further ones by task; empty if the source prints none.
        recipe: what those scripts do differently, see `OfficialRecipe`.
        task_recipe: further deviations by task.
    """

    epochs: int | None = Field(None, ge=1)
    settings: dict[str, Any] = Field(default_factory=dict)
    task_settings: dict[str, dict[str, Any]] = Field(default_factory=dict)
    recipe: dict[str, Any] = Field(default_factory=dict)
    task_recipe: dict[str, dict[str, Any]] = Field(default_factory=dict)


class Preset(Frozen):
    """A published recipe.

    Args:
        title: for display.
        source: where recipe and figures are printed.
        suite: the tasks it is for.
        backbone: of the published figures.
        expected: published means, in [0, 1]: mean_tasks, mean_groups.
        images: how they are prepared, under each protocol.
        deviations: all known differences from the authors' code.
        settings: training settings on every task, under both protocols.
        grid: the settings that stage 1 of the honest protocol chooses from.
        published: what the as-published protocol uses instead.
    """

    title: str
    source: str
    suite: str
    backbone: str
    expected: dict[str, float]
    images: BothImages
    deviations: tuple[Deviation, ...] = Field(min_length=1)
    method: str
    method_args: dict[str, Any] = Field(default_factory=dict)
    epochs: int = Field(100, ge=1)
    settings: dict[str, Any] = Field(default_factory=dict)
    grid: tuple[dict[str, Any], ...] = Field(default=({},), min_length=1)
    published: Published = Published()

    def variant(
        self,
        protocol: Protocol = "honest",
        overrides: Mapping[str, Any] | None = None,
    ) -> Variant:
        """The variant of a study that follows this recipe; `overrides` take precedence."""
        forced = dict(overrides or {})
        images, official = self.images.under(protocol), self.published
        settings = {**images.settings(), **self.settings}
        values: dict[str, Any] = {
            "label": self.method,
            "method": self.method,
            "method_args": self.method_args,
        }
        if protocol == "honest":
            left = [_without(setting, forced) for setting in self.grid]
            return Variant.make(
                {
                    **values,
                    "settings": {**settings, **forced},
                    "task_settings": _merged(images.task_settings(), {}, forced),
                    "grid": [setting for i, setting in enumerate(left) if setting not in left[:i]],
                }
            )
        for recipe in (official.recipe, *official.task_recipe.values()):
            OfficialRecipe.make(recipe)
        return Variant.make(
            {
                **values,
                "settings": {**settings, **official.settings, **forced},
                "task_settings": _merged(images.task_settings(), official.task_settings, forced),
                "recipe": official.recipe,
                "task_recipe": official.task_recipe,
                "grid": ({},),
            }
        )

    def epochs_under(self, protocol: Protocol) -> int:
        """Epochs of a run, without its cooldown."""
        own = self.published.epochs if protocol == "as-published" else None
        return self.epochs if own is None else own

    def remarks(self, protocol: Protocol) -> tuple[str, ...]:
        """Notes that must appear below a table of this recipe's results."""
        if protocol == "honest" or self.published.task_settings:
            return ()
        return (
            f"{self.title}: the source prints no per-task settings, so the as-published runs use "
            "the same ones on all tasks.",
        )

    def study(
        self,
        tasks: Sequence[Task],
        *,
        name: str,
        protocol: Protocol = "honest",
        overrides: Mapping[str, Any] | None = None,
        **values: Any,
    ) -> Study:
        """A study of this recipe on `tasks`.

        Args:
            overrides: training settings that override the recipe.
            values: further fields of Study (epochs, seeds, backbone, ...).
        """
        return Study.make(
            {
                "name": name,
                "variants": (self.variant(protocol, overrides),),
                "tasks": tuple(tasks),
                "backbone": self.backbone,
                "epochs": self.epochs_under(protocol),
                "protocol": protocol,
                "remarks": self.remarks(protocol),
                **values,
            }
        )


def preset_names() -> tuple[str, ...]:
    """Names that `--preset` takes."""
    return tuple(sorted(path.stem for path in FOLDER.glob("[!_]*.yaml")))


def common_deviations() -> tuple[Deviation, ...]:
    """Deviations from the authors' code in every preset."""
    values = read_yaml(FOLDER / EVERY_PRESET)
    return tuple(Deviation.make(value) for value in values["deviations"])


def load_preset(name: str) -> Preset:
    """The preset called `name`.

    Raises:
        VituneError: there is none; the nearest names are given.
    """
    if name not in preset_names():
        raise VituneError(
            f"--preset: got {name!r}, expected a known one. {nearest(name, preset_names())}"
        )
    return Preset.make(read_yaml(FOLDER / f"{name}.yaml"))


def _without(setting: Mapping[str, Any], forced: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in setting.items() if name not in forced}


def _merged(
    first: Mapping[str, Mapping[str, Any]],
    second: Mapping[str, Mapping[str, Any]],
    forced: Mapping[str, Any],
) -> dict[str, dict[str, Any]]:
    """The per-task settings of both, without overridden ones."""
    names = dict.fromkeys([*first, *second])
    both = {name: {**first.get(name, {}), **second.get(name, {})} for name in names}
    return {name: _without(setting, forced) for name, setting in both.items()}
