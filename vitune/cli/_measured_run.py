"""Measure one run for `vitune analyze`, on its own or as part of a study."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

    from vitune.analysis import IntruderRule, MapEffect, Retention, SpectrumReport
    from vitune.cards import AdapterCard

BATCH = 64


def measured_run(
    run: str, name: str, images: str | None, num_images: int, rule: IntruderRule
) -> tuple[SpectrumReport, Retention | None]:
    """The weights and, if there are images, the features of one run."""
    from peft import PeftModel

    from vitune.analysis import measure_retention, spectrum
    from vitune.backbones import load_backbone
    from vitune.cli._progress import Counting
    from vitune.inference import load_run

    loaded = load_run(run, merge=False, device="cpu")
    _require_finite(loaded.model, run)
    bar = Counting(f"analysing {name}")
    networks: dict[str, Any] = {"model": loaded.model}
    if not isinstance(loaded.model, PeftModel):
        arguments = loaded.card.backbone_args
        base = load_backbone(loaded.card.backbone, num_classes=len(loaded.classes), **arguments)
        networks = {"model": base.model, "tuned": loaded.model}
    try:
        report = spectrum(
            **networks, intruders=rule, on_progress=lambda done, total, _: bar(done, total)
        )
        batches = _images(run, loaded.card, images, num_images)
        if batches is None:
            return report, None
        return report, measure_retention(
            networks["model"], batches, tuned=networks.get("tuned"), head=_base_head(loaded.card)
        )
    finally:
        bar.close()


def _require_finite(model: nn.Module, run: str) -> None:
    """Refuse weights of a run that has diverged: figures about them mean nothing."""
    from vitune.errors import AdapterError

    odd = [name for name, value in model.state_dict().items() if not value.isfinite().all()]
    if odd:
        raise AdapterError(
            f"weights of {run!r}: got NaN or infinity in {len(odd)} tensors, the first {odd[0]!r}, "
            "expected finite numbers. The run has diverged; train again with a lower --lr."
        )


def _images(
    run: str, card: AdapterCard, images: str | None, num_images: int
) -> Iterator[Tensor] | None:
    """Normalised batches of the images given, or of the run's validation images."""
    from pathlib import Path

    from vitune.data import batches, load_splits, load_unlabelled, normalise
    from vitune.runs import RunFolder
    from vitune.training.train_config import settings_in

    folder = RunFolder(Path(run))
    if num_images < 4 or (images is None and not folder.config.is_file()):
        return None
    if images is not None:
        split, _ = load_unlabelled(images, card.preprocessing)
    else:
        settings = settings_in(folder.read_config(), folder.config)
        splits = load_splits(
            settings.data,
            card.preprocessing,
            seed=settings.seed,
            val_fraction=settings.val_fraction,
            groups=settings.groups,
            skip_bad_images=settings.skip_bad_images,
            include=("val",),
        )
        assert splits.val is not None
        split = splits.val
    chosen = split.subset(range(min(num_images, len(split))))
    return (normalise(batch["images"], card.preprocessing) for batch in batches(chosen, BATCH))


def _base_head(card: AdapterCard) -> Any:
    """The backbone's own pre-trained classifier, or None."""
    from vitune.backbones import head_name, load_backbone

    own = load_backbone(card.backbone, **card.backbone_args)
    name = head_name(own.model)
    return own.model.get_submodule(name) if name and own.num_classes else None


def print_effects(effects: Sequence[MapEffect]) -> None:
    """The table of left basis, spectrum and right basis, in two parts that fit a terminal."""
    from vitune.analysis import effect_cells
    from vitune.cli._progress import console
    from vitune.cli._tables import print_columns

    heads, lines = effect_cells(effects)
    if not any(cell != "–" for line in lines for cell in line[1:]):
        return
    console.print()
    for first, last in ((1, 4), (4, 7), (7, len(heads))):
        kept = (0, *range(first, last))
        print_columns(
            [heads[place] for place in kept],
            [[line[place] for place in kept] for line in lines],
            widest=22,
            to=console,
        )
        console.print()
