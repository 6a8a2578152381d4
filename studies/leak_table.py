"""The table of docs/privacy.md: method x batch x attack, on the bundled backbone and on ViT-B/16.

    python studies/leak_table.py tiny_imagenet_32/ --out leak-table.json

The first argument is a folder of 32 px images with one subfolder per class. Rows are added as they
are measured; a run that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

from vitune.privacy import LeakSettings, MatchSettings, audit_leak

METHODS: dict[str, dict[str, object]] = {
    "linear": {},
    "bitfit": {},
    "ssf": {},
    "rlrr": {},
    "lora": {},
    "houlsby": {"rank": 64},
    "full": {},
}
PREPARED = ("malicious", "head")
HONEST = ("labels", "honest")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data")
    parser.add_argument("--out", default="leak-table.json")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--iterations", type=int, default=300)
    parser.add_argument("--batches", default="1,8,32")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--only", choices=("prepared", "honest"))
    given = parser.parse_args()
    out = Path(given.out)
    rows = json.loads(out.read_text()) if out.is_file() else []
    done = {(row["backbone"], row["method"], row["attack"], row["batch"]) for row in rows}
    vit = {"backbone": "vit_base_patch16_224", "image_size": 32, "pretrained": False}
    plans = [("ViT-B/16, 32 px", vit, PREPARED), ("bundled", {}, (*PREPARED, *HONEST))]
    if given.only:
        wanted = PREPARED if given.only == "prepared" else HONEST
        plans = [(name, told, tuple(set(wanted) & set(attacks))) for name, told, attacks in plans]
    for batch in map(int, given.batches.split(",")):
        for method in given.methods.split(","):
            arguments = METHODS[method]
            for name, told, attacks in plans:
                left = [a for a in attacks if (name, method, a, batch) not in done]
                if not left:
                    continue
                settings = LeakSettings(
                    given.data, method, arguments, batches=(batch,), attacks=tuple(left),
                    seeds=tuple(range(given.seeds)), match=MatchSettings(given.iterations), **told,
                )  # fmt: skip
                found, _ = audit_leak(settings)
                rows += [{"backbone": name, "method": method, **row.as_dict()} for row in found]
                out.write_text(json.dumps(rows))
                print(name, method, batch, "done", flush=True)
    print(table(rows))


def table(rows: list[dict]) -> str:
    """Means over seeds as Markdown."""
    keys = list(dict.fromkeys((r["backbone"], r["attack"], r["method"], r["batch"]) for r in rows))
    lines = [
        "| backbone | attack | method | batch | numbers per image | PSNR, dB | without |"
        " found by features | patches | grouped | labels |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for key in sorted(keys):
        mine = [r for r in rows if (r["backbone"], r["attack"], r["method"], r["batch"]) == key]
        cells = [*map(str, key), f"{mine[0]['numbers_per_image']:,.0f}"]
        for part, name, digits in (
            ("found", "psnr", 1), ("without", "psnr", 1), ("found", "found_by_features", 2),
            ("found", "patches", 2),
        ):  # fmt: skip
            values = [r[part][name] for r in mine if r[part] is not None]
            cells.append(f"{statistics.mean(values):.{digits}f}" if values else "-")
        for name in ("clustered", "labels"):
            values = [r[name] for r in mine if r[name] is not None]
            cells.append(f"{statistics.mean(values):.2f}" if values else "-")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
