"""What 1,000 RLRR adapters over one ViT-B/16 take beyond the backbone, and how long they load.

    python studies/serving_memory.py [--number 1000] [--out FOLDER] [--cache-mib 0]

Weights and adapters are random. Memory is what the system counts as resident, in a process of its
own: after the backbone is loaded and has run, after all adapters are read, and after each adapter
has answered one image in random order.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

import psutil
import torch

sys.path.insert(0, str(Path(__file__).parent))
from serving_adapters import backbone_file, photo, write_adapters

from vitune.serving import Engine, EngineSettings, Upload


def resident_mib() -> float:
    """Resident memory of this process."""
    return psutil.Process().memory_info().rss / 2**20


def main() -> None:
    """Generate, load, ask, and print one line for each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--number", type=int, default=1000)
    parser.add_argument("--asked", type=int, default=50, help="adapters asked for one image each")
    parser.add_argument("--out", type=Path, default=None, help="kept; else temporary")
    parser.add_argument("--cache-mib", type=float, default=0)
    parser.add_argument("--model", default="vit_base_patch16_224")
    given = parser.parse_args()
    out = given.out or Path(tempfile.mkdtemp())
    backbone = backbone_file(out, given.model)
    folder, aside = out / "adapters", out / "aside"
    if not folder.is_dir():
        write_adapters(folder, backbone, given.number)
    aside.mkdir(exist_ok=True)
    for path in sorted(folder.iterdir())[1:]:
        path.rename(aside / path.name)
    settings = EngineSettings(
        backbone=backbone, cache_mib=given.cache_mib, watch_s=0, max_wait_ms=0, device="cpu"
    )
    engine = Engine(folder, settings)
    image = [Upload("photo.jpg", photo(0))]
    engine.predict("rlrr-0000", image)
    before = resident_mib()
    weights = sum(t.nbytes for t in engine.backbone.model.parameters()) / 2**20
    print(f"one adapter, one image run: {before:,.0f} MiB resident ({weights:,.0f} of weights)")
    for path in sorted(aside.iterdir()):
        path.rename(folder / path.name)
    started = time.perf_counter()
    engine.refresh()
    seconds = time.perf_counter() - started
    number = len(engine.collection.served)
    held = resident_mib() - before
    print(f"{number:,} adapters: {held:,.0f} MiB more, read in {seconds:.0f} s")
    names = random.Random(0).sample(sorted(engine.collection.served), min(given.asked, number))
    for name in names:
        engine.predict(name, image)
    print(
        f"after {len(names)} of them answered one image: {resident_mib() - before:,.0f} MiB more "
        f"(cache {engine.cache.used / 2**20:,.0f} MiB)"
    )
    engine.close()
    if given.out is None:
        shutil.rmtree(out)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
