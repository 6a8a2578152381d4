"""`vitune audit backbone`: is a checkpoint what it should be, and does it look like a trained one?

Every test looks for one trace that a tampered backbone leaves. None proves honesty: a server that
knows the tests can try to pass them. Only the fingerprint of a backbone that was obtained in
another way is proof.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitune.backbones import fingerprint, head_name, head_names, load_backbone, logits_of
from vitune.data import load_splits, normalise
from vitune.errors import VituneError, listed, nearest
from vitune.files import write_atomic

DEFAULT_LIST = "~/.config/vitune/known-backbones.json"
PARALLEL = 0.98
"""|cosine| from which two rows of a weight count as the same direction."""
MOST_PARALLEL = 2
"""Rows of one matrix that may share a direction with another row."""
ONE_HOT = 0.8
"""Share of a row's squared norm in one entry from which the row only copies a channel."""
MOST_ONE_HOT = 2
MOST_ZERO_ROWS = 0.02
LONGEST_ROW = 8.0
"""Norm of a row against the median of its matrix."""
LARGEST_BIAS = 4.0
"""|bias| against the norm of its row: how far the neuron's zero is from normalised tokens."""
FLATTEST_NORM = 1e-4
"""Spread of LayerNorm weights against their mean; untrained ones are exactly 1."""
LARGEST_NORM = 30.0
UNIFORM = 1e-6
"""How near to the highest entropy a head's attention is everywhere if it only takes means."""
OWN_TOKEN = 0.999
LEAST_OF_PIXELS = 0.5
"""Share of the pixels' lead over guessing that features must keep."""
NUM_IMAGES = 256


@dataclass(frozen=True)
class Finding:
    """One test's answer.

    Args:
        saw: what it saw, for people; also where nothing was wrong.
        looked: False where the network has nothing that the test can look at; it then passes.
    """

    test: str
    passed: bool
    saw: str
    looked: bool = True


@dataclass(frozen=True)
class Attestation:
    """What all tests say of one network."""

    fingerprint: str
    findings: tuple[Finding, ...]

    @property
    def passed(self) -> bool:
        """No test saw anything."""
        return all(finding.passed for finding in self.findings)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "passed": self.passed}


def attest(
    model: nn.Module,
    *,
    reference: str | None = None,
    known: dict[str, str] | None = None,
    images: Tensor | None = None,
    labels: Tensor | None = None,
) -> Attestation:
    """Test a network that was loaded from a checkpoint.

    Args:
        reference: a name in `known`, or a fingerprint; None compares with all of `known` and
            does not mind a stranger.
        known: fingerprints by name.
        images: normalised (b, 3, h, w), for attention; with `labels` (b,) for clean accuracy too.

    Raises:
        VituneError: a reference that is neither a known name nor a fingerprint.
    """
    own = fingerprint(model)
    findings = [_known(own, reference, known or {}), _numbers(model)]
    findings += [*_weights(model), *_norms(model)]
    if images is not None:
        findings += _attention(model, images)
        if labels is not None:
            findings.append(_accuracy(model, images, labels))
    return Attestation(own, tuple(findings))


def attest_checkpoint(
    checkpoint: str,
    *,
    backbone: str | None = None,
    image_size: int | None = None,
    reference: str | None = None,
    known: str | None = None,
    data: str | None = None,
    name: str | None = None,
) -> Attestation:
    """Load a checkpoint and test it.

    Args:
        checkpoint: weights for the architecture `backbone`, or a backbone's own name.
        known: file of the user's list.
        data: labelled images of the user, in any source that training takes.
        name: under which a fingerprint that passes all tests is added to the list.

    Raises:
        VituneError: a backbone, list, reference or data that cannot be used, or a name that stands
            for another backbone.
    """
    options: dict[str, Any] = {} if image_size is None else {"image_size": image_size}
    if backbone is not None:
        options["checkpoint"] = checkpoint
    loaded = load_backbone(backbone or checkpoint, **options)
    own_list = known or DEFAULT_LIST
    pixels = labels = None
    if data is not None:
        splits = load_splits(data, loaded.preprocessing, seed=0, val_fraction=0, include=("train",))
        assert splits.train is not None
        images = torch.from_numpy(splits.train.images[:]).permute(0, 3, 1, 2)
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
        chosen = order[:NUM_IMAGES]
        pixels = normalise(images[chosen], loaded.preprocessing)
        labels = torch.from_numpy(splits.train.labels)[chosen]
    found = attest(
        loaded.model, reference=reference, known=read_known(own_list), images=pixels, labels=labels
    )
    if name is not None and found.passed:
        remember(name, found.fingerprint, own_list)
    return found


def read_known(path: str | Path = DEFAULT_LIST) -> dict[str, str]:
    """Fingerprints by name, from the list that the user keeps; empty where there is none.

    Raises:
        VituneError: the file holds something else.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        return {}
    try:
        values = json.loads(file.read_text())
    except (ValueError, UnicodeDecodeError):
        values = None
    if not isinstance(values, dict) or not all(isinstance(v, str) for v in values.values()):
        raise VituneError(
            f"--known: got {str(path)!r}, expected a JSON file of names and fingerprints. "
            "'vitune audit backbone ... --remember NAME' writes one."
        )
    return values


def remember(name: str, value: str, path: str | Path = DEFAULT_LIST) -> None:
    """Add a fingerprint to the user's list.

    Raises:
        VituneError: another fingerprint has that name already.
    """
    known = read_known(path)
    if known.get(name, value) != value:
        raise VituneError(
            f"--remember: got {name!r}, which is {known[name]} already, expected a new name. "
            f"Remove it from {path} first."
        )
    file = Path(path).expanduser()
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(file, json.dumps({**known, name: value}, indent=1, sort_keys=True))


def _known(own: str, reference: str | None, known: dict[str, str]) -> Finding:
    if reference is None:
        names = [name for name, value in known.items() if value == own]
        said = f"{own} is {names[0]!r} of your list" if names else f"{own} is not in your list"
        return Finding("fingerprint", True, said)
    if reference not in known and not reference.startswith("v1-"):
        raise VituneError(
            f"--reference: got {reference!r}, expected a name in your list or a fingerprint. "
            f"{nearest(reference, known)}"
        )
    wanted = known.get(reference, reference)
    said = "is" if wanted == own else "is not"
    return Finding("fingerprint", wanted == own, f"{own} {said} the reference {wanted}")


def _numbers(model: nn.Module) -> Finding:
    """NaN passes every comparison below."""
    wrong = [name for name, value in model.state_dict().items() if not value.isfinite().all()]
    saw = f"NaN or infinity in {listed(wrong, 3)}" if wrong else "no NaN, no infinity"
    return Finding("numbers", not wrong, saw)


def _weights(model: nn.Module) -> Iterator[Finding]:
    heads = head_names(model)
    layers = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name not in heads
    ]
    tests: tuple[tuple[str, Callable[[nn.Linear], float], float, str], ...] = (
        ("parallel rows", _num_parallel, MOST_PARALLEL, "rows share a direction"),
        ("copying rows", _num_one_hot, MOST_ONE_HOT, "rows only copy one channel"),
        ("empty rows", _share_zero, MOST_ZERO_ROWS, "of the rows are zero"),
        ("long rows", _longest, LONGEST_ROW, "times the median is the longest row"),
        ("biases", _largest_bias, LARGEST_BIAS, "row norms is the largest bias"),
    )
    for test, measure, limit, words in tests:
        values = [(measure(module), name) for name, module in layers]
        worst, where = max(values, default=(0.0, ""))
        yield Finding(test, worst <= limit, f"{worst:.3g} {words} at {where} (up to {limit:g})")


@torch.no_grad()
def _num_parallel(layer: nn.Linear) -> float:
    rows = F.normalize(layer.weight.float(), dim=1)
    count = 0
    for part in rows.split(512):
        # Every row meets itself once; rows of zeros meet nobody.
        count += int((((part @ rows.T).abs() > PARALLEL).sum(1) > 1).sum())
    return float(count)


@torch.no_grad()
def _num_one_hot(layer: nn.Linear) -> float:
    squared = layer.weight.float() ** 2
    return float((squared.amax(1) > ONE_HOT * squared.sum(1).clamp_min(1e-30)).sum())


@torch.no_grad()
def _share_zero(layer: nn.Linear) -> float:
    return float((layer.weight == 0).all(1).float().mean())


@torch.no_grad()
def _longest(layer: nn.Linear) -> float:
    norms = layer.weight.float().norm(dim=1)
    return float(norms.max() / norms.median().clamp_min(1e-12))


@torch.no_grad()
def _largest_bias(layer: nn.Linear) -> float:
    if layer.bias is None:
        return 0.0
    norms = layer.weight.float().norm(dim=1)
    return float((layer.bias.float().abs() / norms.clamp_min(float(norms.median()) / 4)).max())


@torch.no_grad()
def _norms(model: nn.Module) -> Iterator[Finding]:
    flattest, largest = (math.inf, ""), (0.0, "")
    for name, module in model.named_modules():
        if isinstance(module, nn.LayerNorm) and module.weight is not None:
            weight = module.weight.float()
            mean = float(weight.mean().abs())
            if not torch.equal(weight, torch.ones_like(weight)):
                flattest = min(flattest, (float(weight.std()) / max(mean, 1e-12), name))
            largest = max(largest, (float(weight.abs().max()), name))
    yield Finding(
        "flat norms",
        flattest[0] >= FLATTEST_NORM,
        f"least spread of LayerNorm weights {flattest[0]:.3g} at {flattest[1] or 'none'} "
        f"(from {FLATTEST_NORM:g})",
    )
    yield Finding(
        "large norms",
        largest[0] <= LARGEST_NORM,
        f"largest LayerNorm weight {largest[0]:.3g} at {largest[1]} (up to {LARGEST_NORM:g})",
    )


@torch.no_grad()
def _attention(model: nn.Module, images: Tensor) -> Iterator[Finding]:
    """Heads that only take means, or only look at their own token, on every image."""
    uniform: list[str] = []
    own: list[str] = []
    seen = _seen_attention(model, images[:32])
    for name, attention in seen:
        tokens = attention.shape[-1]
        entropy = -(attention * attention.clamp_min(1e-30).log()).sum(-1)  # (b, h, n)
        lacking = 1 - entropy.amin((0, 2)) / math.log(tokens)
        diagonal = attention.diagonal(dim1=-2, dim2=-1).amin((0, 2))
        uniform += [f"{name} head {head}" for head in (lacking < UNIFORM).nonzero().flatten()]
        own += [f"{name} head {head}" for head in (diagonal > OWN_TOKEN).nonzero().flatten()]
    for test, found in (("attention to all alike", uniform), ("attention to oneself", own)):
        saw = ", ".join(found[:3]) or "no such head"
        if not seen:
            saw = "not tested: no layer computes queries, keys and values in one, as timm's do"
        yield Finding(test, not found, saw, looked=bool(seen))


def _seen_attention(model: nn.Module, images: Tensor) -> list[tuple[str, Tensor]]:
    """Attention of every layer with a fused qkv as timm has it: (b, heads, n, n)."""
    seen: list[tuple[str, Tensor]] = []
    handles = []
    for name, module in model.named_modules():
        if isinstance(getattr(module, "qkv", None), nn.Linear) and hasattr(module, "num_heads"):
            heads = int(module.num_heads)

            def watch(
                layer: nn.Module, inputs: Any, output: Tensor, name: str = name, heads: int = heads
            ) -> None:
                b, n, _ = output.shape
                queries, keys, _ = output.view(b, n, 3, heads, -1).permute(2, 0, 3, 1, 4)
                logits = queries.double() @ keys.double().mT / math.sqrt(queries.shape[-1])
                seen.append((name, logits.softmax(-1)))

            qkv = module.qkv
            assert isinstance(qkv, nn.Linear)
            handles.append(qkv.register_forward_hook(watch))
    try:
        model.eval()(images)
    finally:
        for handle in handles:
            handle.remove()
    return seen


@torch.no_grad()
def _accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> Finding:
    """Nearest neighbour among the user's own images: in features it must not lose far to pixels."""
    images, labels = images[:NUM_IMAGES], labels[:NUM_IMAGES]
    features = _neighbour_accuracy(_features(model, images), labels)
    pixels = _neighbour_accuracy(images.flatten(1), labels)
    guess = float((torch.bincount(labels) / len(labels)).max())
    return Finding(
        "clean accuracy",
        features - guess >= LEAST_OF_PIXELS * (pixels - guess),
        f"nearest neighbours agree in {100 * features:.0f} % by features, "
        f"in {100 * pixels:.0f} % by pixels",
    )


def _features(model: nn.Module, images: Tensor) -> Tensor:
    """What the classifier reads; what the network returns if it has none. (b, d)."""
    name = head_name(model)
    seen: list[Tensor] = []

    def keep(_: nn.Module, inputs: Any, output: Any) -> None:
        seen.append(logits_of(output) if name is None else inputs[0])

    handle = (model if name is None else model.get_submodule(name)).register_forward_hook(keep)
    try:
        for part in images.split(64):
            model.eval()(part)
    finally:
        handle.remove()
    return torch.cat(seen).flatten(1)


def _neighbour_accuracy(points: Tensor, labels: Tensor) -> float:
    points = F.normalize(points.double() - points.double().mean(0), dim=1)
    alike = points @ points.T
    alike.fill_diagonal_(-math.inf)
    return float((labels[alike.argmax(1)] == labels).double().mean())
