"""What early exits cost on a ViT-B/16 with random weights: forced shares, nobody, one image.

    OMP_NUM_THREADS=2 python studies/exit_cost.py            # on a quiet machine, about 8 minutes

Images of random pixels, exits after blocks 4, 7 and 10 of 12, heads for 100 classes. "predicted" is
the part of all blocks that is run: 0.575 where .4/.3/.2 of the images leave at the exits. Shares
are rounded to whole images. The subjects take turns, and every figure is the median of the rounds.
"""

from __future__ import annotations

import argparse
import time

import timm
import torch

from vitune.exits import (
    EarlyExit,
    Exit,
    ExitHeads,
    block_share,
    cut_off,
    find_trunk,
    norm_of,
    seconds_per_image,
)
from vitune.exits.exit_cost import Subject

AT, SHARES = (4, 7, 10), (0.4, 0.3, 0.2)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--backbone", default="vit_base_patch16_224")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--cpu-time", action="store_true", help="for a machine that others use")
    given = parser.parse_args()
    torch.manual_seed(0)
    model = timm.create_model(given.backbone, num_classes=100).eval().requires_grad_(False)
    trunk = find_trunk(model)
    heads = ExitHeads(len(AT), trunk.width, 100, rank=32)
    torch.nn.init.normal_(heads.weight, std=0.02)
    norm = norm_of(model, trunk)
    exits = [
        Exit(after, trunk.blocks[after - 1], heads.head(index, trunk, norm))
        for index, after in enumerate(AT)
    ]
    # Asked at every exit, reached at none: what the exits cost where nobody leaves.
    nobody, forced = EarlyExit(model, exits, (1.0,) * len(AT)), EarlyExit(model, exits)
    size = model.patch_embed.img_size
    batch, one = torch.randn(given.batch, 3, *size), torch.randn(1, 3, *size)
    with torch.inference_mode():
        assert int(nobody(batch).left.min()) == len(AT), "nobody may leave"
        left = forced.forced(batch, SHARES).left
    # Whole images leave, so that the shares are not exactly those that were asked for.
    shares = [(left == index).double().mean().item() for index in range(len(AT))]
    predicted = block_share(len(trunk.blocks), AT, shares)
    names = ("full", "nobody leaves", "forced .4/.3/.2/.1", "cut off at 4", "full, one image",
             "one image leaves at 4")  # fmt: skip
    subjects: list[Subject] = [
        (model, [batch]), (nobody, [batch]), (lambda x: forced.forced(x, SHARES), [batch]),
        (cut_off(forced, 0), [batch]), (model, [one] * 4), (cut_off(forced, 0), [one] * 4),
    ]  # fmt: skip
    clock = time.process_time if given.cpu_time else time.perf_counter
    times = seconds_per_image(subjects, rounds=given.rounds, clock=clock)
    print(
        f"{given.backbone}, batch {given.batch}, {torch.get_num_threads()} threads, "
        f"{'CPU time' if given.cpu_time else 'wall-clock'}"
    )
    print("| what | ms per image | of full | predicted | measured / predicted |")
    print("|---|---:|---:|---:|---:|")
    expected = (1.0, 1.0, predicted, AT[0] / len(trunk.blocks), 1.0, AT[0] / len(trunk.blocks))
    for name, taken, share in zip(names, times, expected, strict=True):
        base = times[4] if "one image" in name else times[0]
        print(
            f"| {name} | {1000 * taken:.1f} | {taken / base:.3f} | {share:.3f} | "
            f"{taken / base / share:.3f} |"
        )


if __name__ == "__main__":
    main()
