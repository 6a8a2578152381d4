"""Peak memory of a training step, each figure in a fresh process; nothing is timed.

    python studies/step_memory.py --batch 8 --threads 2

What `vitune bench speed` prints as "peak MiB" and "resident MiB", for RLRR and the references that
docs/performance.md compares it with. Live tensors do not depend on what else runs; the resident
size depends a little on the allocator. Prints one Markdown table.
"""

from __future__ import annotations

import argparse

from vitune.bench.speed.step_memory import Question, ask

METHODS = (
    "rlrr,rlrr+exact=true,rlrr-textbook,rlrr-textbook+fused,rlrr-textbook+fused+lean"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backbone", default="vit_base_patch16_224")
    parser.add_argument("--methods", default=METHODS)
    parser.add_argument("--precision", default="fp32,bf16")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    print("| method | precision | peak MiB | resident MiB |\n|---|---|---|---|")
    for precision in given.precision.split(","):
        for label in given.methods.split(","):
            question = Question(
                given.backbone, label, given.batch, precision, "cpu", num_threads=given.threads
            )
            found = ask(question)
            assert found.resident_mib is not None
            print(f"| {label} | {precision} | {found.peak_mib:,.0f} | {found.resident_mib:,.0f} |",
                  flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
