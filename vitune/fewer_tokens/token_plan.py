"""The plan in `--tokens`: all tokens, fewer in training, or merged ones; needs no PyTorch."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from vitune.errors import VituneError

SYNTAX = "keep, drop:SHARE or merge:SHARE[@BLOCKS][:train]"
TOKENS_HELP = (
    "fewer tokens: keep; drop:0.5 leaves out half of the patches in training; merge:0.5 merges "
    "half of them in the middle block, merge:0.5@all a few after every block, merge:0.5@3,7 "
    "after blocks 3 and 7 (the first is 0), all in training and inference; merge:0.5:train in "
    "training only"
)
HALF, ROUNDING = 0.5, 1e-9
"""A merging step pairs patches, so it removes at most half of them."""

_FORM = re.compile(
    r"(?P<kind>drop|merge):(?P<share>\d*\.?\d+)(?:@(?P<blocks>all|\d+(?:,\d+)*))?(?P<train>:train)?"
)


@dataclass(frozen=True)
class TokenPlan:
    """How many patches go, where, and when; class and register tokens always stay.

    Args:
        kind: "drop" leaves random patches out of a training step, chosen per image; "merge"
            averages similar ones.
        share: of the patches that is gone in the end.
        blocks: merge after these, counted from 0; "middle" merges once, after the first half of the
            blocks, "all" after every block but the last.
        training_only: whether inference sees every token.
    """

    kind: Literal["keep", "drop", "merge"] = "keep"
    share: float = 0.0
    blocks: tuple[int, ...] | Literal["middle", "all"] = "middle"
    training_only: bool = True

    @classmethod
    def parse(cls, text: str) -> TokenPlan:
        """Parse the plan from the syntax of `--tokens`.

        Raises:
            VituneError: another syntax, a share outside [0, 1), or blocks that do not increase.
        """
        given = str(text).strip().lower()
        if given == "keep":
            return cls()
        found = _FORM.fullmatch(given)
        if found is None or (found["kind"] == "drop" and (found["blocks"] or found["train"])):
            raise VituneError(
                f"--tokens: got {text!r}, expected {SYNTAX}, e.g. drop:0.5, merge:0.5 or "
                "merge:0.5@3,7:train."
            )
        share = float(found["share"])
        if not share < 1:
            raise VituneError(f"--tokens: got {text!r}, expected a share below 1, e.g. 0.5.")
        if found["kind"] == "drop":
            return cls("drop", share)
        named, training_only = found["blocks"], bool(found["train"])
        if named in (None, "all"):
            return cls("merge", share, "all" if named else "middle", training_only)
        blocks = tuple(map(int, named.split(",")))
        if list(blocks) != sorted(set(blocks)):
            raise VituneError(f"--tokens: got {text!r}, expected increasing block numbers.")
        return cls("merge", share, blocks, training_only)

    def __str__(self) -> str:
        if self.kind != "merge":
            return self.kind if self.kind == "keep" else f"drop:{self.share:g}"
        named = self.blocks if isinstance(self.blocks, str) else ",".join(map(str, self.blocks))
        where = "" if named == "middle" else f"@{named}"
        return f"merge:{self.share:g}{where}{':train' if self.training_only else ''}"

    @property
    def in_training(self) -> bool:
        """Whether a training step sees fewer tokens."""
        return self.kind != "keep"

    @property
    def in_inference(self) -> bool:
        """Whether evaluation and prediction do."""
        return self.kind == "merge" and not self.training_only

    def places(self, depth: int) -> tuple[int, ...]:
        """The blocks, of `depth`, after which tokens are merged.

        Raises:
            VituneError: the network has no such block, or no block after it.
        """
        if self.kind != "merge":
            return ()
        if self.blocks == "all":
            found = tuple(range(depth - 1))
        elif isinstance(self.blocks, str):
            found = (depth // 2 - 1,)
        else:
            found = self.blocks
        if not found or found[0] < 0 or found[-1] > depth - 2:
            raise VituneError(
                f"--tokens: got '{self}' on {depth} blocks, expected some of the blocks 0 to "
                f"{depth - 2}: after the last one there is nothing to save."
            )
        return found

    def removals(self, depth: int, num_patches: int) -> dict[int, int]:
        """By block, how many patches the merging after it removes: the same fraction each time.

        Raises:
            VituneError: that fraction would be more than half.
        """
        places = self.places(depth)
        if not places:
            return {}
        stays = (1 - self.share) ** (1 / len(places))
        if stays < HALF - ROUNDING:
            most = 1 - HALF ** len(places)
            raise VituneError(
                f"--tokens: got '{self}', expected a share of at most {most:g}: each merging "
                f"removes at most half of the patches, and there are {len(places)}. Merge after "
                "more blocks (@all), or use a smaller share."
            )
        removed, left = {}, num_patches
        for number, place in enumerate(places, start=1):
            removed[place] = min(left // 2, left - round(num_patches * stays**number))
            left -= removed[place]
        return removed
