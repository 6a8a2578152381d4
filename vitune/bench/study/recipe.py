"""How a published script deviates from vitune: plain values of the as-published protocol."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from vitune.errors import VituneError, explain


class OfficialRecipe(BaseModel):
    """How the authors' script trains and scores; the defaults are vitune's own ways.

    Args:
        rate_per: the learning rate is set at each optimiser step, or is constant for an epoch.
        lag_epochs: with "epoch", epochs by which the rate lags.
        cosine_from: the cosine begins after the warm-up, or includes the warm-up in its length.
        least_factor: the rate never falls below this multiple of its peak.
        cooldown_epochs: epochs after the cosine's end, at the least rate, on top of `epochs`.
        restart_epochs: length of the first of many cosines to 0 without warm-up; 0 is one cosine.
        restart_factor: length of a cosine relative to the previous one.
        element_dropout: p of element-wise dropout on both residual branches, rising linearly from
            0 in the first block to p in the last.
        renormalised_drop_path: stochastic depth's mask is divided by its mean over the batch.
        train_on: images of the final runs, "trainval" (training and validation) or "train".
        score_every: epochs between scorings of the test split; the last epoch is always scored.
        skip_epochs: epochs at the start that the maximum ignores.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    rate_per: Literal["step", "epoch"] = "step"
    lag_epochs: int = Field(0, ge=0)
    cosine_from: Literal["warmup", "start"] = "warmup"
    least_factor: float = Field(0.0, ge=0, lt=1)
    cooldown_epochs: int = Field(0, ge=0)
    restart_epochs: int = Field(0, ge=0)
    restart_factor: int = Field(1, ge=1)
    element_dropout: float = Field(0.0, ge=0, lt=1)
    renormalised_drop_path: bool = False
    train_on: Literal["trainval", "train"] = "trainval"
    score_every: int = Field(1, ge=1)
    skip_epochs: int = Field(0, ge=0)

    @classmethod
    def make(cls, values: Mapping[str, Any]) -> OfficialRecipe:
        """The recipe from plain values.

        Raises:
            VituneError: an unknown key (the nearest is named) or a value out of range.
        """
        try:
            return cls(**values)
        except ValidationError as error:
            raise VituneError(f"recipe: {explain(error, cls.model_fields)}") from None
