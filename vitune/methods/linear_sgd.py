"""Linear probe by gradient steps: only the classifier head is trained."""

from __future__ import annotations

from dataclasses import dataclass

from vitune.methods.probe_authoring import HeadOnlyConfig


@dataclass
class SteppedProbeConfig(HeadOnlyConfig):
    """y = W_head f(x) + b_head with f frozen, trained like every other method.

    The probe of published tables, with their schedules, augmentation and rates. `linear` solves
    the same model instead, which is faster and more accurate at default settings.

    Source: common practice; the "Linear" rows of VTAB-1k and FGVC tables.
    """

    method = "linear_sgd"
    title = "Linear probe, stepped"
    source = "common practice"
    counts_on_vit_b16 = (({}, 0),)
