"""vitune serve against PEFT's `adapter_names` and against one process per model, over HTTP.

    OMP_NUM_THREADS=2 python studies/serving_compare.py --seconds 30       # on a quiet machine

Four LoRA adapters (rank 8) over one backbone of random weights; clients ask any of them, one image
at a time. All three answer through the same web layer and the same queue:

- vitune: `vitune serve`, images grouped by adapter, merged weights cached.
- adapter_names: one PEFT model; a batch mixes adapters, each layer gathers and scatters.
- processes: one `vitune serve` per adapter, each with a backbone of its own.

Below: a mixed batch of 8 images over 4 adapters against 8 of one, engine alone, all cached.
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent))
from serving_adapters import backbone_file, photo, write_adapters
from serving_load import drive
from serving_process import serving

from vitune.adapters import load_adapter
from vitune.backbones import load_backbone
from vitune.cards import AdapterCard
from vitune.data import Decoding, decode_bytes, normalise
from vitune.serving import Answer, Engine, EngineSettings, Upload
from vitune.serving.batching import Batcher, Waiting

BIG_CACHE = "4096"


class AdapterNames:
    """All adapters in one PEFT model; a batch names an adapter for each image."""

    def __init__(self, folder: Path, max_batch: int, max_wait_ms: float) -> None:
        self.names = sorted(path.name for path in folder.iterdir())
        self.cards = {name: AdapterCard.read(folder / name) for name in self.names}
        first = self.cards[self.names[0]]
        backbone = load_backbone(first.backbone, num_classes=len(first.classes))
        self.model = load_adapter(backbone.model, folder / self.names[0])
        for name in self.names:
            self.model.load_adapter(str(folder / name), adapter_name=name)
        self.model.eval().requires_grad_(False)
        self.preprocessing = first.preprocessing
        self.batcher: Batcher[tuple[str, Any], Answer] = Batcher(
            self._run, max_batch=max_batch, max_wait_s=max_wait_ms / 1000, max_queue=256
        )

    @torch.inference_mode()
    def _run(self, _: str, batch: Sequence[Waiting[tuple[str, Any]]]) -> list[Answer]:
        names = [one.item[0] for one in batch]
        pixels = torch.from_numpy(np.stack([one.item[1] for one in batch])).permute(0, 3, 1, 2)
        inputs = normalise(pixels, self.preprocessing)
        logits = self.model(inputs, adapter_names=names).float()
        return [
            Answer(name, "-", self.cards[name].classes, one, one, len(batch), False, 0.0, 0.0)
            for name, one in zip(names, logits, strict=True)
        ]

    async def predict(self, name: str, uploads: Sequence[Upload]) -> list[Answer]:
        """As `LocalService.predict`."""
        decoding = Decoding(self.preprocessing)
        pixels = [
            await asyncio.to_thread(decode_bytes, one.content, decoding, one.name)
            for one in uploads
        ]
        futures = self.batcher.submit("all", [(name, one) for one in pixels])
        return list(await asyncio.gather(*map(asyncio.wrap_future, futures)))

    async def listing(self) -> dict[str, Any]:
        """Names alone."""
        return {"adapters": [{"name": name, "state": "served"} for name in self.names]}

    async def figures(self) -> list[Any]:
        """None."""
        return []

    def close(self) -> None:
        """Stop."""
        self.batcher.close()


def serve_adapter_names(folder: Path) -> None:
    """Run PEFT's way behind the same web layer; prints its URL."""
    from vitune.serving.app import create_app
    from vitune.serving.server import address_of, listen, make_server
    from vitune.serving.settings import GuardSettings, ServerSettings

    settings = ServerSettings(port=0)
    listening = listen(settings)
    app = create_app(AdapterNames(folder, 8, 5), GuardSettings(rate=0))
    print(address_of(listening), flush=True)
    make_server(app, settings).run(sockets=[listening])


def measure(title: str, urls: dict[str, str], servers: list[Any], given: Any) -> None:
    """One row per number of clients."""
    asyncio.run(drive(urls, clients=8, seconds=given.seconds / 3))  # warm
    for clients in map(int, given.clients.split(",")):
        result = asyncio.run(drive(urls, clients=clients, seconds=given.seconds))
        assert not result.wrong, result.wrong[:3]
        memory = sum(server.resident_mib() for server in servers)
        print(f"{title:14s} {clients:3d} clients {result.line()}   {memory:7,.0f} MiB", flush=True)


def mixed_batch(folder: Path, rounds: int, cpu_time: bool) -> None:
    """8 images of one adapter against 8 over 4 adapters, in turns; medians."""
    settings = EngineSettings(
        cache_mib=float(BIG_CACHE), max_wait_ms=1, watch_s=0, device="cpu", max_batch=8
    )
    engine = Engine(folder, settings)
    names = sorted(engine.collection.served)[:4]
    served = [engine.get(name) for name in names]
    pixels = engine.decode(served[0], [Upload("x.jpg", photo(n)) for n in range(8)])

    clock = time.process_time if cpu_time else time.perf_counter

    def seconds(of: list[int]) -> float:
        started = clock()
        futures = []
        for number in sorted(set(of)):
            chosen = [one for one, which in zip(pixels, of, strict=True) if which == number]
            futures += engine.submit(served[number], chosen)
        for future in futures:
            future.result()
        return clock() - started

    single, mixed = [0] * 8, [0, 1, 2, 3] * 2
    times: dict[str, list[float]] = {"single": [], "mixed": []}
    seconds(mixed)
    for _ in range(rounds):
        times["single"].append(seconds(single))
        times["mixed"].append(seconds(mixed))
    engine.close()
    medians = {key: statistics.median(values) for key, values in times.items()}
    print(
        f"8 images of 1 adapter {1000 * medians['single']:.0f} ms, of 4 adapters "
        f"{1000 * medians['mixed']:.0f} ms: {medians['mixed'] / medians['single']:.2f} x"
    )


def main() -> None:
    """All three, then the mixed batch."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--clients", default="1,8,64")
    parser.add_argument("--model", default="vit_base_patch16_224")
    parser.add_argument("--only", default="vitune,adapter_names,processes,mixed")
    parser.add_argument("--rounds", type=int, default=7, help="of the mixed batch")
    parser.add_argument("--cpu-time", action="store_true", help="of it, for a busy machine")
    parser.add_argument("--serve-adapter-names", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve_adapter_names is not None:
        serve_adapter_names(given.serve_adapter_names)
        return
    out = Path(tempfile.mkdtemp())
    folder = out / "adapters"
    names = write_adapters(folder, backbone_file(out, given.model), 4, "lora")
    only = given.only.split(",")
    options = ("--cache-mib", BIG_CACHE, "--device", "cpu")
    if "vitune" in only:
        with serving(folder, *options) as server:
            measure("vitune", dict.fromkeys(names, server.url), [server], given)
    if "adapter_names" in only:
        command = [sys.executable, __file__, "--serve-adapter-names", str(folder)]
        with serving(folder, command=command) as server:
            measure("adapter_names", dict.fromkeys(names, server.url), [server], given)
    if "processes" in only:
        with ExitStack() as stack:
            servers = []
            for name in names:
                (out / name).mkdir()
                shutil.copytree(folder / name, out / name / name)
                servers.append(stack.enter_context(serving(out / name, *options)))
            urls = {name: server.url for name, server in zip(names, servers, strict=True)}
            measure("processes", urls, servers, given)
    if "mixed" in only:
        shutil.rmtree(folder)
        write_adapters(folder, backbone_file(out, given.model), 4, "rlrr")
        mixed_batch(folder, given.rounds, given.cpu_time)
    shutil.rmtree(out)


if __name__ == "__main__":
    main()
