"""Put a run on the hub: PEFT's files, vitune's card, and a README that describes it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from vitune.cards import KEEP, AdapterCard, adapter_folder
from vitune.errors import AdapterError
from vitune.exits import ExitsFolder
from vitune.fewer_tokens import TokenPlan
from vitune.hub import FILES, PREFIX, upload
from vitune.report import RunResults, read_run
from vitune.runs import RunFolder

PROTOCOL = (
    "method_args", "epochs", "batch_size", "lr", "weight_decay", "optimiser", "augment", "seed",
    "val_fraction", "groups",
)  # fmt: skip
"""Settings that the page shows; config.yaml itself is not uploaded because it holds paths."""


@dataclass(frozen=True)
class Licences:
    """The licences, which only the user knows.

    Args:
        backbone: licence of the pre-trained weights, which the adapter inherits.
        data: licence of the images.

    Raises:
        AdapterError: one is not given.
    """

    backbone: str | None
    data: str | None

    def __post_init__(self) -> None:
        for option, value, whose in (
            ("--license", self.backbone, "the backbone's weights"),
            ("--data-license", self.data, "the images"),
        ):
            if not value or not value.strip():
                raise AdapterError(
                    f"{option}: got nothing, expected the licence of {whose}, e.g. apache-2.0, "
                    "cc-by-4.0, proprietary or unknown."
                )


@dataclass(frozen=True)
class Pushed:
    """What was uploaded: the commit's address, and what its readers will not have."""

    url: str
    notes: tuple[str, ...]


def push_run(run: str | Path, name: str, *, licences: Licences, private: bool = False) -> Pushed:
    """Upload the adapter or merged model of `run` to the hub as `name` = user/name.

    The repository holds the adapter's own files at its top, where `PeftModel.from_pretrained` finds
    them, and README.md with the run's figures. Images, their paths and config.yaml are not
    uploaded.

    Raises:
        AdapterError: no such run, no token, no write permission, or a hub that cannot be reached.
        VituneError: result files that are damaged.
    """
    folder = adapter_folder(run)
    card = AdapterCard.read(folder)
    source = RunFolder(Path(run))
    results = read_run(run) if source.config.is_file() else None
    name = name.removeprefix(PREFIX)
    with TemporaryDirectory() as aside:
        for file in folder.iterdir():
            if file.name in FILES:
                shutil.copyfile(file, Path(aside) / file.name)
        page = model_page(card, results, name, licences)
        (Path(aside) / "README.md").write_text(page)
        url = upload(Path(aside), name, private=private, message=f"vitune push: {card.method}")
    return Pushed(url, tuple(_missing(card, Path(run))))


def model_page(card: AdapterCard, results: RunResults | None, name: str, licences: Licences) -> str:
    """The README.md of a repository: what it is, how to use it, its scores, how it was trained."""
    kind = "merged model" if card.merged else "adapter"
    parts = [
        _front_matter(card, licences),
        f"# {name.rpartition('/')[2]}",
        f"A {card.method} {kind} for `{card.backbone}`, {len(card.classes)} classes, trained with "
        "vitune.",
        "## Use it",
        f"    vitune predict hf:{name} images/",
        *_with_peft(card, name),
        "## Figures",
        *_figures(results),
        "## Protocol",
        *_protocol(card, results),
        "## Licences",
        f"- Backbone `{card.backbone}`: {licences.backbone}\n- Images: {licences.data}",
        "## Classes",
        ", ".join(f"`{name}`" for name in card.classes),
    ]
    return "\n\n".join(parts) + "\n"


def _front_matter(card: AdapterCard, licences: Licences) -> str:
    library = "vitune" if card.merged else "peft"
    lines = [
        "---",
        f"license: {json.dumps(licences.backbone)}",
        f"library_name: {library}",
        "pipeline_tag: image-classification",
        f"tags: [vitune, {json.dumps(card.method)}]",
        "---",
    ]
    return "\n".join(lines)


def _with_peft(card: AdapterCard, name: str) -> list[str]:
    if card.merged:
        return []
    height, width = card.preprocessing.image_size
    given = {"num_classes": len(card.classes), **card.backbone_args}
    words = ", ".join(f"{name}={value!r}" for name, value in given.items() if value is not None)
    merging = ""
    if TokenPlan.parse(card.tokens).in_inference:
        merging = (
            "\n    from vitune.fewer_tokens import TokenPlan, reduce_tokens\n\n"
            f"    reduce_tokens(model, TokenPlan.parse({card.tokens!r}))"
        )
    return [
        "With plain PEFT, on the same backbone with a head of the same number of classes:",
        "    import vitune  # makes its methods known to PEFT\n"
        "    from peft import PeftModel\n\n"
        f"    backbone = vitune.load_backbone({card.backbone!r}, {words})\n"
        f"    model = PeftModel.from_pretrained(backbone.model, {name!r}).eval(){merging}",
        f"Input: {height} x {width} pixels, {card.preprocessing.interpolation}, mean "
        f"{card.preprocessing.mean}, std {card.preprocessing.std}. Divide the logits by the "
        f"temperature {card.temperature:.6g} before the softmax: that gives the probabilities of "
        "`vitune predict`.",
    ]


def _figures(results: RunResults | None) -> list[str]:
    if results is None:
        return ["Pushed without its run folder, so no figures are known."]
    rows = []
    summary = results.summary
    if summary is not None and summary.reported.val_accuracy is not None:
        chosen = f"{summary.reported.which} epoch" if summary.reported.which else "validation"
        rows.append(("validation", summary.num_val, summary.reported.val_accuracy, chosen))
    rows += [
        (found.name, found.num_images, found.top1, " ".join(found.marks))
        for found in results.evaluations
        if not found.is_outdated
    ]
    lines = ["| images | number | accuracy | |", "|---|---:|---:|---|"]
    lines += [
        f"| {images} | {number or '-'} | {100 * top1:.2f} % | {mark} |"
        for images, number, top1, mark in rows
    ]
    text = ["\n".join(lines)] if rows else ["None were recorded."]
    if summary is not None and summary.num_trainable_without_head is not None:
        text.append(
            f"Trained parameters: {summary.num_trainable_without_head:,} and "
            f"{summary.num_head or 0:,} in the head, of {summary.num_total or 0:,}."
        )
    return text


def _protocol(card: AdapterCard, results: RunResults | None) -> list[str]:
    facts: list[tuple[str, Any]] = [
        ("method", card.method),
        ("backbone", card.backbone),
        ("backbone fingerprint", card.fingerprint or "none (merged)"),
        ("tokens", None if card.tokens == KEEP else card.tokens),
        *(("weights", f"sha256 {digest}") for file, digest in card.checksums.items()
          if file.endswith(".safetensors")),
    ]  # fmt: skip
    if results is not None:
        config, summary = results.config, results.summary
        facts.append(("images", Path(str(config.get("data", "-"))).name))
        if summary is not None:
            facts += [
                ("training images", summary.num_train),
                ("validation images", f"{summary.num_val} ({summary.held_out or 'a split'})"),
                ("precision", summary.precision),
            ]
        facts += [(key.replace("_", " "), config[key]) for key in PROTOCOL if key in config]
    facts.append(("versions", ", ".join(f"{k} {v}" for k, v in card.versions.items())))
    return ["\n".join(f"- {key}: {value}" for key, value in facts if value not in (None, {}, ""))]


def _missing(card: AdapterCard, run: Path) -> Sequence[str]:
    """Notes on what users who load it from the hub will not have."""
    notes = []
    places = [card.backbone, str(card.backbone_args.get("checkpoint") or "")]
    for place in places:
        if "/" in place and Path(place.rpartition(":")[2]).expanduser().exists():
            notes.append(f"its backbone is a file on this machine ({place}): others need it too")
    if card.plugin:
        notes.append("its method comes from a plugin: other users need --plugin with the same file")
    if ExitsFolder(run).path.is_dir():
        notes.append("its exits are not uploaded: the hub gets the whole network")
    return notes
