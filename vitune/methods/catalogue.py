"""One row per method for a given backbone: what it adapts, what it costs, what it guarantees."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

import torch
from peft import get_peft_model
from peft.utils import get_peft_model_state_dict
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from vitune.backbones.rehearsal import rehearsed
from vitune.backbones.sites import ROLES, find_sites
from vitune.errors import VituneError
from vitune.methods import METHODS, Method
from vitune.methods.core.method_config import MethodConfig
from vitune.methods.core.peft_targets import UNSUPPORTED

HEAD_PART = "modules_to_save"
PAGE_CLASSES = 100
"""Classes of the network on the page; with more, a method with heads of its own trains more."""


@dataclass(frozen=True)
class MethodRow:
    """A method with its default settings on one backbone.

    Args:
        name: what `--method` takes.
        title: what tables show.
        paper: where it comes from.
        roles: roles of the sites it adapts, in forward order; empty if it trains parameters of the
            backbone in place.
        formula: of the parameter count; empty for PEFT's own methods.
        num_parameters: trainable, without the head; None if it cannot be determined here.
        megabytes: of the adapter on disk without the head, in units of 10⁶ bytes.
        mergeable: whether the result is a network of the same shape; None: ask PEFT.
        identity_at_init: whether training starts at the pre-trained function; None: ask PEFT.
        extra_gflops: per image at inference while not merged, in matrix products; None if it was
            not requested or cannot be counted.
        notice: what a user should know about the method on this backbone, or empty.
        refusal: why the method cannot be used on this backbone; empty if it can.
    """

    name: str
    title: str
    paper: str
    roles: tuple[str, ...] = ()
    formula: str = ""
    num_parameters: int | None = None
    megabytes: float | None = None
    mergeable: bool | None = None
    identity_at_init: bool | None = None
    extra_gflops: float | None = None
    notice: str = ""
    refusal: str = ""

    def as_dict(self) -> dict[str, Any]:
        """The row for JSON."""
        return asdict(self)


def method_rows(
    model: nn.Module,
    image_size: tuple[int, int],
    methods: Iterable[Method] | None = None,
    *,
    flops: bool = True,
) -> list[MethodRow]:
    """A row for each of `methods` on `model`, which is neither changed nor run.

    Args:
        image_size: (height, width) in pixels for counting the extra work.
        methods: None means everything that `--method` takes.
        flops: count the extra work, which takes most of the time; without it `extra_gflops` is
            None.
    """
    blueprint = copy.deepcopy(model).to("meta").eval()
    base_flops = _flops(blueprint, image_size) if flops else None
    chosen = METHODS.values() if methods is None else methods
    return [_row(method, blueprint, image_size, base_flops) for method in chosen]


def _row(
    method: Method, blueprint: nn.Module, image_size: tuple[int, int], base_flops: int | None
) -> MethodRow:
    model = copy.deepcopy(blueprint)
    known: dict[str, Any] = {"name": method.name, "title": method.title, "paper": method.source}
    try:
        with torch.device("meta"):
            config = method.configure(model)
            if isinstance(config, MethodConfig):
                known |= _traits(config, model)
            adapted = get_peft_model(model, config).eval()
    except VituneError as error:
        return MethodRow(**known, refusal=str(error))
    except Exception as error:
        # PEFT's own methods raise all kinds of errors if a layer is too narrow or has no values.
        reason = " ".join(str(error).split()) or type(error).__name__
        return MethodRow(**known, refusal=f"PEFT: {reason}")
    state = get_peft_model_state_dict(adapted)
    saved = [value for key, value in state.items() if not _in_head(key, adapted)]
    extra = None
    if base_flops is not None:
        with suppress(Exception):  # a PEFT layer that reads values, which do not exist here
            extra = (_flops(adapted, image_size) - base_flops) / 1e9
    return MethodRow(
        **known,
        num_parameters=sum(
            parameter.numel()
            for name, parameter in adapted.named_parameters()
            if parameter.requires_grad and HEAD_PART not in name
        ),
        megabytes=sum(value.numel() * value.element_size() for value in saved) / 1e6,
        extra_gflops=extra,
    )


def _traits(config: MethodConfig, model: nn.Module) -> dict[str, Any]:
    roles = {site.role for site in config.choose(find_sites(model))}
    return {
        "roles": tuple(role for role in ROLES if role in roles),
        "formula": config.formula,
        "mergeable": config.mergeable,
        "identity_at_init": config.identity_at_init,
        "notice": config.notice(model),
    }


def _in_head(key: str, adapted: nn.Module) -> bool:
    configs: Any = adapted.peft_config
    config = configs["default"]
    heads = tuple(f"base_model.model.{name}." for name in config.modules_to_save or ())
    return key.startswith(heads) if heads else False


def _flops(model: nn.Module, image_size: tuple[int, int]) -> int:
    """Floating point operations of one image's matrix products, counted without computing them."""
    try:
        return _counted(model, torch.empty(1, 3, *image_size, device="meta"))
    except RuntimeError:
        # A layer asks for the state of its device's autocast. Acting as a CPU takes twice as long.
        with rehearsed(model) as played:
            return _counted(played, torch.empty(1, 3, *image_size))


def _counted(model: nn.Module, images: Tensor) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(images)
    return int(counter.get_total_flops())


def methods_page() -> str:
    """The text of docs/methods.md: the table for ViT-B/16, and PEFT's methods."""
    import timm

    with torch.device("meta"):
        model = timm.create_model("vit_base_patch16_224", num_classes=PAGE_CLASSES)
    rows = method_rows(model, (224, 224), [m for m in METHODS.values() if m.ours and not m.plugin])
    theirs = sorted(name for name, method in METHODS.items() if not method.ours)
    return "\n".join(
        (
            "# Methods",
            "",
            "These are the names `--method` takes. `vitune methods --backbone NAME` prints the",
            "table for any backbone: `--flops` adds the extra GFLOPs, `--all` PEFT's own methods.",
            "`vitune.methods.catalogue.methods_page()` makes the page from what each method",
            "declares; a test checks that it is up to date.",
            "",
            "## vitune's methods on ViT-B/16 (224 x 224), with default settings, without the head",
            "",
            "d is the width, L the number of blocks, r the rank, p the number of prompts.",
            "Extra GFLOPs: added matrix products per image of an adapter that is not merged.",
            f"Counted on a network with {PAGE_CLASSES} classes; with fewer, a method whose formula",
            "names the classes trains fewer parameters.",
            "",
            "| method | title | touches | trained | count | MB | merges | starts as pre-trained |"
            " extra GFLOPs | source |",
            "|---|---|---|---|---|---|---|---|---|---|",
            *(_line(row) for row in rows),
            "",
            "## PEFT's own methods",
            "",
            "By default they act on all linear layers of the blocks; the exceptions are in",
            "`vitune/methods/core/peft_targets.py`. These train on a timm ViT. On a narrow one",
            "some need a smaller block size or rank.",
            "",
            ", ".join(f"`{name}`" for name in theirs) + ".",
            "",
            "These do not:",
            "",
            *(f"- `{name}`: {reason}." for name, reason in sorted(UNSUPPORTED.items())),
            "",
        )
    )


def _line(row: MethodRow) -> str:
    cells = (
        f"`{row.name}`",
        row.title,
        ", ".join(row.roles) or "parameters in place",
        row.formula,
        "?" if row.num_parameters is None else f"{row.num_parameters:,}",
        "?" if row.megabytes is None else f"{row.megabytes:.2f}",
        "yes" if row.mergeable else "no",
        "yes" if row.identity_at_init else "no",
        "?" if row.extra_gflops is None else f"{row.extra_gflops:z.3f}",
        row.paper,
    )
    return "| " + " | ".join(cells) + " |"
