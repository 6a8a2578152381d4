"""Add exits to a finished run, and calibrate them on images that it has never seen."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from vitune.data import (
    CacheSettings,
    Split,
    batches,
    load_labelled,
    normalise,
    one_per_group,
    open_source,
    record_digests,
    with_groups,
)
from vitune.errors import AdapterError, DataError, VituneError
from vitune.exits import (
    EarlyExit,
    ExitRecipe,
    ExitsFolder,
    Recorded,
    Thresholds,
    certify,
    check_share,
    errors,
    exit_gflops,
    exit_logits,
    features_of,
    find_exits,
    find_trunk,
    for_budget,
    leaving_exit,
    norm_of,
    train_exits,
)
from vitune.fewer_tokens import TokenPlan
from vitune.files import atomic_folder, check_new_folder
from vitune.inference.load import BATCH, LoadedRun, load_run
from vitune.inference.own_images import own_splits
from vitune.inference.seen import held_out, used_images, warn_of_other_labels
from vitune.ops import usual_modes
from vitune.report import write_report
from vitune.runs import RunFolder

KEPT = ("config.yaml", "metrics.jsonl", "summary.json", "images.npz")
Progress = Callable[[int, int], None]


@usual_modes()
def add_exits(
    run: str | Path,
    at: Sequence[int],
    out: str | Path,
    data: str | Path | None = None,
    *,
    recipe: ExitRecipe | None = None,
    device: str = "auto",
    on_read: Progress | None = None,
    on_train: Progress | None = None,
) -> dict[str, Any]:
    """Train exits on the frozen network of `run` and write both as the new run `out`.

    The adapter is copied byte for byte, so the last exit's logits are those of `run`. The network's
    features are computed once; only the exits are trained.

    Args:
        at: the blocks after which exits are placed, as numbers of blocks.
        data: images to train the exits on; None means those of the run. Validation images are held
            out as in the run; they calibrate the exits' confidence.

    Returns:
        What exits.json holds, with the accuracy of every exit on the validation images.

    Raises:
        VituneError: exits outside the depth, or a run that already has exits.
        AdapterError: `out` exists, or `run` is not a run folder.
        BackboneError: a network that does not support early exits.
        DataError: images that cannot be used.
    """
    check_new_folder(out)
    source, recipe = RunFolder.open(run), recipe or ExitRecipe()
    if not source.config.is_file():
        raise AdapterError(f"run: got {str(run)!r} without config.yaml, expected a run folder.")
    config = source.read_config()
    # What the method does inside a layer is visible only un-merged.
    find_trunk(load_run(run, device=device, exits="full", merge=False).model).check(at)
    loaded = load_run(run, device=device, exits="full")
    if find_exits(loaded.model, ExitsFolder(source.path), len(loaded.classes)):
        raise VituneError(
            f"run: got {str(run)!r}, which has exits, expected one without. Calibrate them: "
            f"vitune exits calibrate {run}"
        )
    _require_every_token(loaded)
    trunk = find_trunk(loaded.model)
    places = trunk.check(at)
    data = str(data or config["data"])
    splits = own_splits(loaded, data, config, on_read)
    assert splits.train is not None
    prepared = loaded.card.preprocessing
    warn_of_other_labels(used_images(source.path), splits.train)
    train = features_of(loaded.model, trunk, places, splits.train, prepared, on_progress=on_read)
    val, was_trained_on = None, False
    if splits.val is not None:
        refitted = bool(config.get("refit")) and data == str(config["data"])
        images, was_trained_on = held_out(source.path, splits.val, otherwise=refitted)
        val = features_of(loaded.model, trunk, places, images, prepared)
    heads = train_exits(loaded.model, trunk, train, val, recipe, on_progress=on_train)
    record: dict[str, Any] = {
        "after": list(places),
        "depth": len(trunk.blocks),
        "run": str(run),
        "data": data,
        "num_train": len(train),
        "num_val": 0 if val is None else len(val),
        "recipe": asdict(recipe),
        "num_parameters": sum(value.numel() for value in heads.parameters()),
    }
    if val is not None:
        logits = exit_logits(heads, norm_of(loaded.model, trunk), val)
        record["val_was_trained_on"] = was_trained_on
        record["val_accuracy"] = (logits.argmax(-1) == val.labels).double().mean(1).tolist()
    seen = {*digests_of_run(source.path), *digests_trained_on(data)}
    with atomic_folder(out) as aside:
        for name in KEPT:
            if (source.path / name).is_file():
                shutil.copyfile(source.path / name, aside / name)
        shutil.copytree(source.adapter, aside / "adapter")
        ExitsFolder(aside).write(heads, record, seen)
    write_report(out)
    return record


@usual_modes()
def calibrate_exits(
    run: str | Path,
    data: str | Path,
    *,
    split: str | None = None,
    risk: float | None = None,
    delta: float = 0.05,
    definition: str = "disagreement",
    budget: float | None = None,
    groups: str | None = None,
    skip_seen: bool = False,
    device: str = "auto",
    on_read: Progress | None = None,
) -> Thresholds:
    """Choose when images leave, on images the run has never seen, and store that in the run.

    Args:
        risk, delta, definition: certify that at most this share of images leaves wrongly, with
            probability 1 - delta (`vitune.exits.certify`).
        budget: instead, a mean cost as a fraction of the full cost, without a certificate.
        groups: regular expression that finds in a path what an image shows. The certificate is for
            independent images: one image of each group is used.
        skip_seen: leave out images that took part in training or selection, instead of refusing.

    Raises:
        VituneError: neither or both of risk and budget, a run without exits, or what `certify`
            and `for_budget` refuse.
        DataError: images that took part in training or selection.
    """
    if (risk is None) == (budget is None):
        given = "neither" if risk is None else "both"
        raise VituneError(
            f"calibrate: got {given} of --risk and --budget, expected one of them: a certified "
            "risk or a mean cost."
        )
    for name, share in (("--risk", risk), ("--delta", delta), ("--budget", budget)):
        if share is not None:
            check_share(name, share)
    data = str(data)
    loaded = load_run(run, device=device, exits="full")
    folder = ExitsFolder(Path(run))
    exits = find_exits(loaded.model, folder, len(loaded.classes))
    if not exits:
        raise VituneError(
            f"run: got {str(run)!r} without exits, expected a run with exits. Add them: vitune "
            f"exits add {run} "
            "--at 4,7,10 --out RUN2, or train with --method met."
        )
    _require_every_token(loaded)
    listed = open_source(data)
    images, _ = load_labelled(
        listed if groups is None else with_groups(listed, groups),
        loaded.card.preprocessing,
        classes=loaded.classes,
        split=split,
        settings=CacheSettings(on_progress=on_read),
    )
    images = unseen(images, digests_of_run(Path(run)), data, skip=skip_seen)
    images = one_per_group(images)
    runner = EarlyExit(loaded.model, exits)
    recorded = record_exits(loaded, runner, images)
    gflops = exit_gflops(runner, _one_image(loaded))
    certificate = None
    if risk is not None:
        risk, delta = float(risk), float(delta)
        values, certificate = certify(recorded, risk=risk, delta=delta, definition=definition)
    else:
        assert budget is not None
        values = for_budget(recorded, [cost / gflops[-1] for cost in gflops], budget)
    thresholds = Thresholds(
        after=tuple(place.after for place in exits),
        values=values,
        fingerprint=folder.fingerprint,
        certificate=certificate,
        budget=None if budget is None else float(budget),
        data=data,
        content_hash=images.content_hash,
        expected=_expected(recorded, values, gflops),
    )
    thresholds.write(folder.thresholds)
    return thresholds


@torch.inference_mode()
def record_exits(run: LoadedRun, runner: EarlyExit, split: Split) -> Recorded:
    """Every exit's logits of every image, from one full pass."""
    parts = []
    for batch in batches(split, BATCH):
        inputs = normalise(batch["images"], run.card.preprocessing, device=run.device)
        parts.append(runner.all_logits(inputs).cpu())
    return Recorded(torch.cat(parts, dim=1), torch.from_numpy(split.labels.copy()))


def digests_trained_on(data: str) -> list[str]:
    """Content hashes of all images of a source that training or selection may use.

    Raises:
        DataError: the source cannot be opened.
    """
    listed = open_source(data)
    return [
        digest
        for name, records in listed.splits.items()
        if name != "test"
        for digest in record_digests(records)
    ]


def digests_of_run(run: Path) -> set[str]:
    """Content hashes of the images that trained or selected a run and its exits.

    Training recorded them. For a run without such a list (from an older version) the current
    content of its data folder is used.

    Raises:
        DataError: nothing was recorded and the run's images are no longer there.
    """
    known = ExitsFolder(run).read_seen()
    used = used_images(run)
    if used is not None:
        return known | {digest.hex() for digest in used.digests()}
    config = RunFolder(run).config
    data = RunFolder(run).read_config().get("data") if config.is_file() else None
    try:
        return known | set(digests_trained_on(str(data)))
    except DataError as error:
        if known:
            return known
        raise DataError(
            f"images of the run: got {data!r}, which cannot be read ({error}), expected readable "
            "images, to tell which ones took part in training. Put them back where they were."
        ) from None


def unseen(split: Split, seen: set[str], data: str, *, skip: bool) -> Split:
    """The images of `split` that are not in `seen`.

    Raises:
        DataError: some are in `seen` and `skip` is off, or all are.
    """
    assert split.digests is not None
    known = [digest.tobytes().hex() in seen for digest in split.digests]
    if not any(known):
        return split
    if all(known) or not skip:
        first = split.paths[known.index(True)]
        hint = "" if all(known) else " Leave those out with --skip-seen."
        raise DataError(
            f"--data: got {sum(known)} of {len(split)} images of {data!r} that took part in "
            f"training or selection ({first!r} for one), expected others: the network is "
            f"overconfident on them.{hint}"
        )
    return split.subset([index for index, was in enumerate(known) if not was])


def _require_every_token(run: LoadedRun) -> None:
    """Refuse a run that merges tokens: what it knows of them is of all images of a batch.

    Raises:
        VituneError: it does.
    """
    if TokenPlan.parse(run.card.tokens).in_inference:
        raise VituneError(
            f"run: got {str(run.path)!r} with --tokens {run.card.tokens}, expected one that keeps "
            "every token: an exit reads them all. Train with --tokens keep."
        )


def _expected(
    recorded: Recorded, values: Sequence[float], gflops: Sequence[float]
) -> dict[str, Any]:
    """The result on the calibration images: shares per exit, mean cost, errors of both kinds."""
    left = leaving_exit(recorded.confidence, values)
    shares = torch.bincount(left, minlength=len(gflops)).double() / len(left)
    mean = float((shares * torch.tensor(list(gflops), dtype=torch.float64)).sum())
    return {
        "num_images": len(left),
        "shares": shares.tolist(),
        "mean_gflops": mean,
        "cost": mean / gflops[-1],
        "disagreement": errors(recorded, values, "disagreement").double().mean().item(),
        "error_gap": errors(recorded, values, "error-gap").double().mean().item(),
    }


def _one_image(run: LoadedRun) -> torch.Tensor:
    return torch.zeros(1, 3, *run.card.preprocessing.image_size, device=run.device)
