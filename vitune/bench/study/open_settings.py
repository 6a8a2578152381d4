"""The settings of a study's runs: which names they may have, and values that need a method."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vitune.errors import VituneError, nearest
from vitune.methods import Method
from vitune.training import TrainConfig

Setting = Mapping[str, Any]

SET_BY_STUDY = frozenset(
    ("data", "backbone", "checkpoint", "image_size", "method", "seed", "refit", "select",
     "patience", "val_fraction")
)  # fmt: skip
"""Fields of TrainConfig that the protocol sets; no setting may change them."""

EXTRA_SETTINGS = ("lr_factor",)
"""Settings beyond TrainConfig's: `lr_factor` times the method's default learning rate."""


def require_free(setting: Setting) -> None:
    """Check that every name is a training setting which the study leaves open.

    Raises:
        VituneError: an unknown name, one that the protocol sets, or two names for one rate.
    """
    if "lr" in setting and "lr_factor" in setting:
        raise VituneError(
            f"setting: got lr {setting['lr']!r} and lr_factor {setting['lr_factor']!r}, expected "
            "one of the two: the factor is of the method's own rate."
        )
    for name in setting:
        if name in SET_BY_STUDY:
            raise VituneError(
                f"setting: got {name!r}, expected none that the protocol sets "
                f"({', '.join(sorted(SET_BY_STUDY))})."
            )
        if name not in TrainConfig.model_fields and name not in EXTRA_SETTINGS:
            free = set(TrainConfig.model_fields) - SET_BY_STUDY | set(EXTRA_SETTINGS)
            raise VituneError(
                f"setting: got {name!r}, expected a training setting. {nearest(name, free)}"
            )


def rate_of(factor: Any, default: float) -> float:
    """`lr_factor` times the method's default rate.

    Raises:
        VituneError: a factor that is no number.
    """
    try:
        return float(factor) * default
    except (TypeError, ValueError):
        raise VituneError(f"lr_factor: got {factor!r}, expected a number.") from None


def arguments_of(method: Method, *given: Any) -> dict[str, Any]:
    """The method's arguments; of two values for one, the later counts.

    Raises:
        VituneError: no mapping, or a name that the method does not take.
    """
    found: dict[str, Any] = {}
    for values in given:
        if not isinstance(values, Mapping):
            raise VituneError(f"method_args: got {values!r}, expected names with their values.")
        for name in values:
            if name not in method.argument_names():
                raise VituneError(
                    f"--method-arg: got {name!r}, expected an argument of {method.name!r}. "
                    f"{nearest(str(name), method.argument_names())}"
                )
        found.update(values)
    return found
