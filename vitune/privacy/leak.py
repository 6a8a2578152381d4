"""`vitune audit leak`: attack one's own method and data before a federation does."""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn

from vitune.adapters import attach
from vitune.backbones import Backbone, head_names, load_backbone, start_heads
from vitune.data import Split, load_splits, normalise
from vitune.errors import BackboneError, DataError, VituneError
from vitune.methods import get_method
from vitune.privacy.image_metrics import Agreement, agreement, matched
from vitune.privacy.inversion import MatchSettings, labels_from_head, match_gradient
from vitune.privacy.malicious import Malicious, Recovered, new_malicious, new_malicious_head
from vitune.privacy.shared_update import Defence, local_update, trained

ATTACKS = ("labels", "honest", "malicious", "head")
NUM_PUBLIC = 2000
NUM_DECOYS = 100
FEATURE_BATCH = 64
SAME_PATCH = 0.01
"""Mean squared difference of coefficients below which a reading is of a patch."""


@dataclass(frozen=True)
class LeakSettings:
    """What is attacked, and how.

    Args:
        data: labelled images; a batch of them is the victim's, the others are the attacker's.
        pretrained: False gives the honest attack a random backbone, too.
        batches, local_steps: every pair of them is tried.
        attacks: some of ATTACKS.
        lr: of the client's local steps.
        head_init: how the classifier starts; a head of zeros lets nothing below it leak in the
            first step of an honest server.
        detail: share of each patch that scales and biases are to give away; less detail leaves
            room for more images, and None trades one for the other.
        seeds: each draws another batch.

    Raises:
        VituneError: an unknown attack or method, one without gradients, or a number out of range.
    """

    data: str
    method: str
    method_args: dict[str, Any] = field(default_factory=dict)
    backbone: str = "vitune/vit_micro_patch4_32"
    checkpoint: str | None = None
    image_size: int | None = None
    pretrained: bool = True
    batches: tuple[int, ...] = (1, 8, 32)
    local_steps: tuple[int, ...] = (1,)
    attacks: tuple[str, ...] = ATTACKS
    lr: float = 1e-2
    head_init: str = "linear"
    detail: float | None = None
    seeds: tuple[int, ...] = (0,)
    match: MatchSettings = field(default_factory=MatchSettings)
    defence: Defence = field(default_factory=Defence)

    def __post_init__(self) -> None:
        unknown = sorted(set(self.attacks) - set(ATTACKS))
        if unknown or not self.attacks:
            raise VituneError(
                f"--attack: got {', '.join(unknown) or 'none'!r}, expected some of "
                f"{', '.join(ATTACKS)}."
            )
        for name, values in (("--batch", self.batches), ("--local-steps", self.local_steps)):
            if not values or min(values) < 1:
                raise VituneError(f"{name}: got {values!r}, expected whole numbers from 1.")
        if not self.seeds:
            raise VituneError("--seeds: got none, expected at least 1.")
        if not 0 < self.lr < math.inf:
            raise VituneError(f"--lr: got {self.lr!r}, expected a number above 0.")
        method = get_method(self.method)
        if method.solved and not method.stepped:
            raise VituneError(
                f"--method: got {self.method!r}, which is solved from all images and has no "
                "gradients to share, expected one that takes steps. See 'vitune methods'."
            )
        if self.detail is not None and not 0 < self.detail <= 1:
            raise VituneError(f"--detail: got {self.detail!r}, expected a share in (0, 1].")


@dataclass(frozen=True)
class LeakRow:
    """One attack on one update.

    Args:
        numbers_per_image: numbers that the client sends, per image of the batch.
        found: what was recovered; None where only labels were looked for.
        without: the same figures of an attacker who has public images but no update.
        labels: share of the batch's labels that the head's gradient gave away.
        clustered: share of images whose patches were put together rightly, or None.
        bins: tokens or images that the attack can tell apart at most, or None.
        note: why there is no result.
    """

    attack: str
    batch: int
    local_steps: int
    seed: int
    numbers_per_image: float
    found: Agreement | None = None
    without: Agreement | None = None
    labels: float | None = None
    clustered: float | None = None
    bins: int | None = None
    note: str = ""

    def as_dict(self) -> dict[str, Any]:
        """The row for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Picture:
    """Originals and recoveries of one attack, (b, 3, h, w) in [0, 1]."""

    row: LeakRow
    originals: Tensor
    recovered: Tensor


def audit_leak(
    settings: LeakSettings,
    on_row: Callable[[LeakRow], None] = lambda row: None,
    on_read: Callable[[int, int], None] | None = None,
) -> tuple[list[LeakRow], list[Picture]]:
    """Every attack on every batch; pictures are of the first seed.

    Raises:
        VituneError: an unknown method or one that shares no gradients on this backbone.
        DataError: fewer images than a batch and the attacker's own need.
    """
    backbone, split = _ingredients(settings, on_read)
    auditor = _Auditor(settings, backbone, split)
    rows, pictures = [], []
    for row, shown in auditor.rows():
        on_row(row)
        rows.append(row)
        if shown is not None and row.seed == settings.seeds[0]:
            pictures.append(shown)
    return rows, pictures


def _ingredients(
    settings: LeakSettings, on_read: Callable[[int, int], None] | None
) -> tuple[Backbone, Split]:
    given = {"image_size": settings.image_size, "checkpoint": settings.checkpoint}
    options: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    torch.manual_seed(0)
    backbone = load_backbone(
        settings.backbone, num_classes=1, pretrained=settings.pretrained, **options
    )
    splits = load_splits(
        settings.data,
        backbone.preprocessing,
        seed=0,
        val_fraction=0,
        include=("train",),
        on_progress=on_read,
    )
    assert splits.train is not None
    needed = max(settings.batches) + NUM_DECOYS
    if len(splits.train) < needed:
        raise DataError(
            f"--data: got {len(splits.train)} training images, expected at least {needed}: the "
            f"batch and {NUM_DECOYS} for the attacker. Give more, or a smaller --batch."
        )
    backbone = load_backbone(
        settings.backbone,
        num_classes=len(splits.classes),
        pretrained=settings.pretrained,
        **options,
    )
    return backbone, splits.train


class _Auditor:
    def __init__(self, settings: LeakSettings, backbone: Backbone, split: Split) -> None:
        self.settings, self.backbone, self.split = settings, backbone, split
        self.honest = copy.deepcopy(backbone.model)
        if settings.head_init != "zero":
            start_heads(self.honest, settings.head_init)
        self.statistics = [
            torch.tensor(values).view(3, 1, 1)
            for values in (backbone.preprocessing.mean, backbone.preprocessing.std)
        ]

    def rows(self) -> Iterator[tuple[LeakRow, Picture | None]]:
        for seed in self.settings.seeds:
            for batch in self.settings.batches:
                images, labels, public = self._draw(batch, seed)
                for steps in self.settings.local_steps:
                    for attack in self.settings.attacks:
                        run = getattr(self, f"_{attack}")
                        yield run(attack, images, labels, public, steps, seed)

    def _draw(self, batch: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
        """The victim's images and labels, and the attacker's images, normalised."""
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(self.split), generator=generator).numpy()
        chosen = self.split.subset(order[: batch + NUM_PUBLIC])
        images = torch.from_numpy(chosen.images).permute(0, 3, 1, 2)
        pixels = normalise(images, self.backbone.preprocessing)
        return pixels[:batch], torch.from_numpy(chosen.labels[:batch]), pixels[batch:]

    def _labels(
        self, attack: str, images: Tensor, labels: Tensor, public: Tensor, steps: int, seed: int
    ) -> tuple[LeakRow, None]:
        model, update = self._honest_update(images, labels, steps, seed)
        guessed = Counter(labels_from_head(model, update, len(labels)).tolist())
        right = sum((guessed & Counter(labels.tolist())).values()) / len(labels)
        return self._row(attack, model, images, steps, seed, labels=right), None

    def _honest(
        self, attack: str, images: Tensor, labels: Tensor, public: Tensor, steps: int, seed: int
    ) -> tuple[LeakRow, Picture]:
        model, update = self._honest_update(images, labels, steps, seed)
        known = labels
        if not self.settings.match.knows_labels:
            known = labels_from_head(model, update, len(labels))
        low = float(((0 - self.statistics[0]) / self.statistics[1]).min())
        high = float(((1 - self.statistics[0]) / self.statistics[1]).max())
        found = match_gradient(
            model, update, known, tuple(images.shape[1:]), self.settings.match,  # type: ignore[arg-type]
            limits=(low, high), seed=seed,
        )  # fmt: skip
        row = self._row(attack, model, images, steps, seed)
        return self._judged(row, images, list(found), public)

    def _malicious(
        self, attack: str, images: Tensor, labels: Tensor, public: Tensor, steps: int, seed: int
    ) -> tuple[LeakRow, Picture | None]:
        return self._prepared(attack, images, labels, public, steps, seed)

    def _head(
        self, attack: str, images: Tensor, labels: Tensor, public: Tensor, steps: int, seed: int
    ) -> tuple[LeakRow, Picture | None]:
        return self._prepared(attack, images, labels, public, steps, seed)

    def _prepared(
        self, attack: str, images: Tensor, labels: Tensor, public: Tensor, steps: int, seed: int
    ) -> tuple[LeakRow, Picture | None]:
        settings, network = self.settings, copy.deepcopy(self.backbone.model)
        arguments = (settings.method, settings.method_args, public, len(images))
        try:
            if attack == "head":
                prepared = new_malicious_head(network, *arguments, seed=seed)
            else:
                prepared = new_malicious(network, *arguments, detail=settings.detail, seed=seed)
        except BackboneError as error:
            honest = attach(self._copy(), settings.method, settings.method_args)
            return self._row(attack, honest, images, steps, seed, note=str(error)), None
        model = prepared.model.eval()
        update = local_update(model, images, labels, steps=steps, lr=settings.lr)
        found = prepared.recover(settings.defence(update, seed))
        grouped = _clustered(found, images, prepared) if found.readings else None
        bins = prepared.attack.num_bins
        row = self._row(attack, model, images, steps, seed, clustered=grouped, bins=bins)
        return self._judged(row, images, found.images, public)

    def _honest_update(
        self, images: Tensor, labels: Tensor, steps: int, seed: int
    ) -> tuple[PeftModel, dict[str, Tensor]]:
        torch.manual_seed(seed)
        model = attach(self._copy(), self.settings.method, self.settings.method_args).eval()
        update = local_update(model, images, labels, steps=steps, lr=self.settings.lr)
        return model, self.settings.defence(update, seed)

    def _copy(self) -> Backbone:
        values = {**vars(self.backbone), "model": copy.deepcopy(self.honest)}
        return Backbone(**values)

    def _row(
        self, attack: str, model: PeftModel, images: Tensor, steps: int, seed: int, **told: Any
    ) -> LeakRow:
        numbers = sum(value.numel() for value in trained(model).values())
        return LeakRow(attack, len(images), steps, seed, numbers / len(images), **told)

    def _judged(
        self, row: LeakRow, images: Tensor, found: list[Tensor], public: Tensor
    ) -> tuple[LeakRow, Picture]:
        originals = self._pixels(images)
        decoys, known = self._pixels(public[:NUM_DECOYS]), self._pixels(public[NUM_DECOYS:])
        known = known if len(known) else decoys
        shape = (0, *images.shape[1:])
        recovered = matched(
            originals, self._pixels(torch.stack(found)) if found else torch.zeros(shape)
        )
        blind = matched(originals, known[: len(images)])
        mean = known.mean(0).expand_as(originals)
        patch, pool = self._patch(), self._features(torch.cat([originals, decoys]))
        judged = [
            agreement(originals, one, decoys, pool, self._features(one), patch)
            for one in (recovered, blind, mean)
        ]
        row = LeakRow(**{**vars(row), "found": judged[0], "without": _better(*judged[1:])})
        return row, Picture(row, originals, recovered)

    def _patch(self) -> int:
        embed = getattr(self.backbone.model, "patch_embed", None)
        size = getattr(embed, "patch_size", None)
        return int(size[0]) if size else max(1, self.backbone.preprocessing.image_size[0] // 8)

    def _pixels(self, images: Tensor) -> Tensor:
        mean, std = self.statistics
        return (images * std + mean).clamp(0, 1)

    @torch.no_grad()
    def _features(self, images: Tensor) -> Tensor:
        """What the honest backbone's classifier reads."""
        seen: list[Tensor] = []
        head: nn.Module = self.honest.get_submodule(head_names(self.honest)[0])
        handle = head.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
        mean, std = self.statistics
        try:
            for part in ((images - mean) / std).split(FEATURE_BATCH):
                self.honest(part)
        finally:
            handle.remove()
        return torch.cat(seen).flatten(1)


def _better(first: Agreement, second: Agreement) -> Agreement:
    """Figure by figure the better of two attackers without a gradient."""
    kept: dict[str, Any] = {}
    for name, one in vars(first).items():
        other = vars(second)[name]
        pick = min if name in ("mse", "lpips") else max
        kept[name] = None if one is None else pick(one, other)
    return Agreement(**kept)


def _clustered(found: Recovered, images: Tensor, prepared: Malicious) -> float:
    """Share of images all of whose recovered patches, and no other's, are in one group.

    A patch that two bins share is read twice; the nearer reading counts.
    """
    coefficients = prepared.prepared.coefficients(images)  # (b, patches, n)
    nearest: dict[tuple[int, int], tuple[float, int]] = {}
    for number, group in enumerate(found.groups):
        for reading in group:
            gaps = ((coefficients[:, reading.position] - reading.coefficients) ** 2).mean(1)
            image, gap = int(gaps.argmin()), float(gaps.min())
            place = (image, reading.position)
            if gap < SAME_PATCH and gap < nearest.get(place, (SAME_PATCH, 0))[0]:
                nearest[place] = (gap, number)
    owners: dict[int, set[int]] = {}
    groups: dict[int, set[int]] = {}
    for (image, _), (_, number) in nearest.items():
        owners.setdefault(number, set()).add(image)
        groups.setdefault(image, set()).add(number)
    right = [len(own) == 1 and owners[next(iter(own))] == {image} for image, own in groups.items()]
    return sum(right) / len(images)
