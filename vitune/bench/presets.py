"""Published recipes as files: source, expected score, and what is done otherwise here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from vitune.bench.as_published import check_recipe
from vitune.bench.study import Frozen, Study, Task, Variant
from vitune.errors import VituneError, nearest
from vitune.training import read_yaml

FOLDER = Path(__file__).parent / "presets"

Protocol = Literal["honest", "as-published"]


class Published(Frozen):
    """What the authors' scripts fix; it plays no part under the honest protocol.

    Args:
        settings: training settings on every task.
        task_settings: further ones by task.
        recipe: what those scripts do otherwise, see `as_published`.
        task_recipe: further deviations by task.
    """

    settings: dict[str, Any] = Field(default_factory=dict)
    task_settings: dict[str, dict[str, Any]] = Field(default_factory=dict)
    recipe: dict[str, Any] = Field(default_factory=dict)
    task_recipe: dict[str, dict[str, Any]] = Field(default_factory=dict)


class Preset(Frozen):
    """A published recipe.

    Args:
        title: for people.
        source: where recipe and figures are printed.
        suite: the tasks it is for.
        backbone: of the published figures.
        expected: published means, in [0, 1]: mean_tasks, mean_groups.
        deviations: what is known to differ from the authors' code, a sentence each.
        grid: what the honest protocol's stage 1 chooses from.
        published: what the as-published protocol uses in its place.
    """

    title: str
    source: str
    suite: str
    backbone: str
    expected: dict[str, float]
    deviations: tuple[str, ...] = ()
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
        """The variant of a study that follows this recipe; `overrides` win over all of it."""
        forced = dict(overrides or {})
        values: dict[str, Any] = {
            "label": self.method,
            "method": self.method,
            "method_args": self.method_args,
            "settings": {**self.settings, **forced},
        }
        if protocol == "honest":
            left = [_without(setting, forced) for setting in self.grid]
            once = [setting for i, setting in enumerate(left) if setting not in left[:i]]
            return Variant.make({**values, "grid": once})
        official = self.published
        check_recipe(official.recipe)
        for recipe in official.task_recipe.values():
            check_recipe(recipe)
        return Variant.make(
            {
                **values,
                "settings": {**self.settings, **official.settings, **forced},
                "task_settings": {
                    task: _without(setting, forced)
                    for task, setting in official.task_settings.items()
                },
                "recipe": official.recipe,
                "task_recipe": official.task_recipe,
                "grid": ({},),
            }
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
            overrides: training settings that win over the recipe.
            values: further fields of Study (epochs, seeds, backbone, ...).
        """
        return Study.make(
            {
                "name": name,
                "variants": (self.variant(protocol, overrides),),
                "tasks": tuple(tasks),
                "backbone": self.backbone,
                "epochs": self.epochs,
                "protocol": protocol,
                **values,
            }
        )


def preset_names() -> tuple[str, ...]:
    """Names that `--preset` takes."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.yaml")))


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
