"""What each preset does under both protocols, and how it differs from its source, as text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from vitune.bench.presets import Deviation, Preset, Protocol, common_deviations
from vitune.bench.presets import load_preset as load_preset
from vitune.bench.presets import preset_names as preset_names
from vitune.bench.study.plan import Variant
from vitune.bench.study.recipe import OfficialRecipe
from vitune.training import TrainConfig

PROTOCOLS: tuple[Protocol, ...] = ("as-published", "honest")
PER_TASK = "by task"
DECAYED = {"published": "as in the authors' code", "vitune": "by vitune's rule"}

INTRODUCTION = """\
# Where the presets differ from the published recipes

`as-published` follows the authors' code. This page lists every point where it still differs.
`honest` keeps their images, epochs and regularisation, and chooses settings on validation images.

Files and lines refer to the commit after the repository's name. Pixel sizes are for a network of
224 x 224. vitune's rule for weight decay: matrices decay, and so does what a method declares;
norms, biases and other vectors do not.

`vitune bench presets --page > docs/deviations.md` writes this page from the files in
`vitune/bench/presets/`; a test checks that it is up to date.
"""


def deviations_page() -> str:
    """docs/deviations.md."""
    parts = [INTRODUCTION, "## Every preset\n", _bullets(common_deviations())]
    for name in preset_names():
        preset = load_preset(name)
        parts += [f"## {name}\n", f"{preset.title}, `{preset.backbone}`.\n"]
        parts += [f"Source: {preset.source}.\n"]
        parts += [_table(preset), _bullets(preset.deviations)]
    return "\n".join(parts)


def preset_lines(preset: Preset) -> Iterator[str]:
    """The terminal output for one preset."""
    yield f"source: {preset.source}"
    yield "expected: " + ", ".join(f"{key} {value:g}" for key, value in preset.expected.items())
    columns = [dict(_rows(preset, protocol)) for protocol in PROTOCOLS]
    for what in columns[0]:
        for protocol, column in zip(PROTOCOLS, columns, strict=True):
            yield f"{what}, {protocol}: {column[what]}"
    for deviation in (*preset.deviations, *common_deviations()):
        under = "" if deviation.under == "both" else f" ({deviation.under})"
        yield f"differs{under}: {deviation}"


def _bullets(deviations: tuple[Deviation, ...]) -> str:
    lines = []
    for protocols, heading in (
        (("both", "as-published"), "`as-published` differs from the source:"),
        (("honest",), "`honest` also differs:"),
    ):
        chosen = [found for found in deviations if found.under in protocols]
        if chosen:
            lines += [heading, "", *(f"- {found}" for found in chosen), ""]
    return "\n".join(lines)


def _table(preset: Preset) -> str:
    columns = [dict(_rows(preset, protocol)) for protocol in PROTOCOLS]
    lines = ["| | as-published | honest |", "|---|---|---|"]
    for what in columns[0]:
        first, second = columns[0][what], columns[1][what]
        lines.append(f"| {what} | {first} | {'same' if second == first else second} |")
    return "\n".join(lines) + "\n"


def _rows(preset: Preset, protocol: Protocol) -> Iterator[tuple[str, str]]:
    """The settings, subject by subject, under one protocol."""
    images, variant = preset.images.under(protocol), preset.variant(protocol)
    config = TrainConfig.make({"data": "-", "epochs": preset.epochs_under(protocol),
                               **variant.settings})  # fmt: skip
    recipe = OfficialRecipe.make(variant.recipe)
    stats = {"half": "0.5 each", "imagenet": "ImageNet's", "checkpoint": "the checkpoint's"}
    yield "training images", str(images.train)
    yield "scored images", str(images.test)
    yield "mean and std", stats[images.normalise]
    yield "settings", _chosen(variant, protocol)
    yield "epochs", _epochs(config, recipe)
    yield "optimiser", f"{config.optimiser}, batches of {_by_task(variant, config, 'batch_size')}"
    yield "learning rate", _rate(config, variant, recipe)
    yield "decayed", DECAYED[config.decay_rule]
    yield "classifier starts", config.head_init.replace("_", " ")
    yield "averaged weights", _average(config, variant)
    yield "dropped", _dropped(config, variant, recipe)
    yield "last batch", "left out if not full" if config.drop_last else "trained"
    yield "trained on", "train" if recipe.train_on == "train" else "train and validation"
    yield "figure", _figure(recipe) if protocol == "as-published" else "last epoch"


def _chosen(variant: Variant, protocol: Protocol) -> str:
    if protocol == "honest":
        return f"best of {len(variant.grid or ())} on validation"
    return f"the authors', {PER_TASK}" if variant.task_settings else "one for all tasks"


def _by_task(variant: Variant, config: TrainConfig, name: str) -> Any:
    values = {setting.get(name, getattr(config, name)) for setting in _settings(variant)}
    if len(values) == 1:
        return values.pop()
    return f"{min(values)} to {max(values)} {PER_TASK}"


def _settings(variant: Variant) -> list[dict[str, Any]]:
    return list(variant.task_settings.values()) or [{}]


def _epochs(config: TrainConfig, recipe: OfficialRecipe) -> str:
    extra = f" + {recipe.cooldown_epochs} at the least rate" if recipe.cooldown_epochs else ""
    return f"{config.epochs}{extra}"


def _rate(config: TrainConfig, variant: Variant, recipe: OfficialRecipe) -> str:
    held = "set at each step" if recipe.rate_per == "step" else "set once per epoch"
    if recipe.lag_epochs:
        held += ", one epoch late"
    if recipe.restart_epochs:
        growth = f", each {recipe.restart_factor} times as long" * (recipe.restart_factor > 1)
        first = f"the first after {recipe.restart_epochs} epochs"
        return f"{held}; cosines to 0 without warm-up that restart, {first}{growth}"
    begin = "after the warm-up" if recipe.cosine_from == "warmup" else "that counts the warm-up"
    end = f"{config.min_lr:g}"
    if recipe.least_factor:
        end = f"{recipe.least_factor:g} of its peak"
    cosine = f"warm-up from {config.warmup_lr:g} for {config.resolved_warmup_epochs:g} epochs"
    cosine += f", one cosine {begin} to {end}"
    restarted = {
        task: own["restart_epochs"]
        for task, own in variant.task_recipe.items()
        if own.get("restart_epochs")
    }
    if restarted:
        epochs = max(restarted.values())
        cosine += f"; on {', '.join(restarted)} cosines to 0 that restart every {epochs} epochs"
    return f"{held}; {cosine}"


def _average(config: TrainConfig, variant: Variant) -> str:
    if not config.ema:
        return "none"
    ramp = "less at the start" if config.ema_ramp else "constant"
    return f"decay {_by_task(variant, config, 'ema')}, {ramp}; they are scored"


def _dropped(config: TrainConfig, variant: Variant, recipe: OfficialRecipe) -> str:
    parts = []
    path = _by_task(variant, config, "drop_path")
    if path:
        mean = ", its mask of mean 1" if recipe.renormalised_drop_path else ""
        parts.append(f"stochastic depth {path}{mean}")
    rates = [own.get("element_dropout", 0) for own in variant.task_recipe.values()]
    if any(rates):
        parts.append(f"elements of branches {min(rates)} to {max(rates)} {PER_TASK}")
    return ", ".join(parts) or "nothing"


def _figure(recipe: OfficialRecipe) -> str:
    scored = f" of every {recipe.score_every}th" if recipe.score_every > 1 else ""
    after = " but the first" if recipe.skip_epochs else ""
    return f"best test epoch{scored}{after}; the last beside it"
