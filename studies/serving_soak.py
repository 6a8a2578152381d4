"""Mixed load with adapters coming and going: no wrong answer, no lost request, memory flat.

    python studies/serving_soak.py --minutes 10              # one process
    python studies/serving_soak.py --minutes 10 --ray        # two replicas; one is killed a minute

Clients ask adapters of four methods over the bundled backbone; 5 % of the requests are malformed.
Meanwhile one adapter comes and goes, another is replaced by other weights and back, and a broken
one appears. Every answer is compared with the probabilities of the merged model of exactly the
adapter whose fingerprint it carries (`vitune.inference.load_run`, computed beforehand).

An adapter that has just gone may answer 404, and a full queue 503: neither was accepted. Any other
failure of a good request fails the soak. So does memory that grows: the median of the last fifth
may be 5 % above that of the second, plus 20 MiB.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
import torch

sys.path.insert(0, str(Path(__file__).parent))
from serving_adapters import BUNDLED, photo, write_adapters
from serving_load import NUM_PHOTOS, drive
from serving_process import Running, serving

from vitune.backbones import logits_of
from vitune.data import Decoding, decode_bytes, normalise
from vitune.inference import load_run
from vitune.serving import content_fingerprint

METHODS = {"rlrr": 4, "lora": 2, "ssf": 2, "vpt_deep": 1}
TOLERANCE = 1e-4
SLACK_MIB = 20.0


@torch.inference_mode()
def expected(folder: Path) -> list[dict[str, float]]:
    """Probabilities by class name of each photo, from the merged model."""
    run = load_run(folder, device="cpu")
    decoding = Decoding(run.card.preprocessing)
    pixels = [decode_bytes(photo(n), decoding, "photo") for n in range(NUM_PHOTOS)]
    images = torch.stack([torch.tensor(one) for one in pixels]).permute(0, 3, 1, 2)
    logits = logits_of(run.model(normalise(images, run.card.preprocessing)))
    shares = (logits / run.card.temperature).softmax(-1)
    return [dict(zip(run.classes, one.tolist(), strict=True)) for one in shares]


class Truth:
    """What every version of every adapter answers, by fingerprint."""

    def __init__(self, folders: list[Path]) -> None:
        self.by_fingerprint = {content_fingerprint(f): expected(f) for f in folders}
        self.checked = 0

    def __call__(self, name: str, index: int, answer: Mapping[str, Any]) -> str | None:
        known = self.by_fingerprint.get(answer["fingerprint"])
        if known is None or answer["adapter"] != name:
            return f"{name}: answered by {answer['adapter']} {answer['fingerprint']}"
        self.checked += 1
        for pair in answer["predictions"][0]["top"]:
            if abs(known[index][pair["name"]] - pair["probability"]) > TOLERANCE:
                return f"{name}: {pair}, expected {known[index][pair['name']]}"
        return None


async def churn(folder: Path, spare: Path, urls: dict[str, str], url: str, seconds: float) -> int:
    """Adapters come, change and go; how many changes there were."""
    end, changes = time.monotonic() + seconds, 0
    guest, changing = "rlrr-guest", "rlrr-changing"
    versions = [spare / "rlrr-0000", spare / "rlrr-0001"]
    while time.monotonic() < end - 8:
        for version in versions:
            shutil.copytree(spare / "rlrr-0002", folder / guest)
            broken = folder / "broken"
            broken.mkdir()
            (broken / "vitune.json").write_text("{")
            aside = folder / f".{changing}"
            shutil.copytree(version, aside)
            if (folder / changing).exists():
                (folder / changing).rename(folder / f".{changing}.old")
            aside.rename(folder / changing)
            shutil.rmtree(folder / f".{changing}.old", ignore_errors=True)
            await asyncio.sleep(3)
            urls[guest] = urls[changing] = url
            await asyncio.sleep(1)
            urls.pop(guest)
            shutil.rmtree(broken)
            shutil.rmtree(folder / guest)
            changes += 4
            await asyncio.sleep(3)
    return changes


async def kill_replicas(server: Running, seconds: float, every_s: float) -> int:
    """Kill one replica in a while; how many were."""
    end, killed = time.monotonic() + seconds, 0
    while time.monotonic() + every_s < end:
        await asyncio.sleep(every_s)
        replicas = [
            process
            for process in psutil.process_iter(["cmdline"])
            if any("ServeReplica:vitune" in part for part in process.info["cmdline"] or ())
            and any(parent.pid == server.process.pid for parent in process.parents())
        ]
        if len(replicas) > 1:
            os.kill(replicas[killed % len(replicas)].pid, signal.SIGKILL)
            killed += 1
    return killed


async def watch_memory(server: Running, seconds: float, found: list[float]) -> None:
    """Resident memory, once a second."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found.append(server.resident_mib())
        await asyncio.sleep(1)


async def soak(server: Running, folder: Path, spare: Path, given: Any, truth: Truth) -> bool:
    """Everything at once; whether it went well."""
    seconds = 60 * given.minutes
    urls = dict.fromkeys((path.name for path in folder.iterdir()), server.url)
    memory: list[float] = []
    tasks = [
        drive(urls, clients=given.clients, seconds=seconds, malformed=given.malformed, check=truth),
        churn(folder, spare, urls, server.url, seconds),
        watch_memory(server, seconds, memory),
    ]
    if given.ray:
        tasks.append(kill_replicas(server, seconds, given.kill_every_s))
    result, changes, _, *killed = await asyncio.gather(*tasks)
    fifth = max(1, len(memory) // 5)
    early, late = statistics.median(memory[fifth : 2 * fifth]), statistics.median(memory[-fifth:])
    print(result.line())
    print(f"{truth.checked:,} answers compared, {len(result.wrong)} wrong: {result.wrong[:3]}")
    print(f"{changes} changes of the folder, {sum(killed)} replicas killed")
    print(f"memory: {early:,.0f} MiB in the second fifth, {late:,.0f} MiB in the last")
    unforeseen = set(result.statuses) - {200, 404, 503}
    accepted_malformed = [status for status in result.malformed if not 400 <= status < 500]
    is_flat = given.ray or late <= 1.05 * early + SLACK_MIB
    good = not (result.wrong or unforeseen or accepted_malformed) and is_flat and truth.checked > 0
    print("passed" if good else f"FAILED {unforeseen} {accepted_malformed}")
    return good


def main() -> int:
    """Write adapters, start a server, soak it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--malformed", type=float, default=0.05)
    parser.add_argument("--cache-mib", default="24", help="small, so that networks are evicted")
    parser.add_argument("--ray", action="store_true", help="two replicas; they are killed")
    parser.add_argument("--kill-every-s", type=float, default=60)
    given = parser.parse_args()
    out = Path(tempfile.mkdtemp())
    folder, spare = out / "adapters", out / "spare"
    for method, number in METHODS.items():
        write_adapters(folder, BUNDLED, number, method)
    write_adapters(spare, BUNDLED, 8, "rlrr", num_classes=7)
    truth = Truth([*folder.iterdir(), *spare.iterdir()])
    options = ["--cache-mib", given.cache_mib, "--watch-seconds", "0.5", "--device", "cpu"]
    if given.ray:
        options += ["--ray", "local", "--replicas", "2"]
    with serving(folder, *options) as server:
        good = asyncio.run(soak(server, folder, spare, given, truth))
    print("".join(server.lines[-1:]).strip())
    shutil.rmtree(out)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
