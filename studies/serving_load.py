"""A load generator for `vitune serve`: clients that ask, wait for the answer and ask again.

    python studies/serving_load.py http://127.0.0.1:8000 --clients 1,8,64 --seconds 20

Every client sends one image at a time to an adapter drawn at random among those listed (or those
of --adapters); a share of the requests can be malformed in one of six ways. Printed per number of
clients: requests, images a second, median and 95th percentile of the latency of good requests,
and the statuses. The exit code is 1 where a good request had no good answer.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

sys.path.insert(0, str(Path(__file__).parent))
from serving_adapters import photo

NUM_PHOTOS = 16
Check = Callable[[str, int, Mapping[str, Any]], str | None]
"""(adapter, number of the photo, answer) -> what is wrong with the answer, None for nothing."""


@dataclass
class Result:
    """What came back.

    Args:
        latencies_s: of good requests that were answered with 200.
        statuses: of good requests, by status; 0 is no answer.
        malformed: statuses of malformed requests.
        wrong: what was wrong with answers.
    """

    seconds: float = 0.0
    latencies_s: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    malformed: Counter[int] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    def line(self) -> str:
        """One line for people."""
        good = sorted(self.latencies_s)
        p50 = 1000 * statistics.median(good) if good else float("nan")
        p95 = 1000 * good[int(0.95 * (len(good) - 1))] if good else float("nan")
        return (
            f"{len(good) / self.seconds:8.1f} images/s   p50 {p50:7.0f} ms   p95 {p95:7.0f} ms   "
            f"statuses {dict(self.statuses)}"
            + (f" malformed {dict(self.malformed)}" if self.malformed else "")
        )


async def drive(
    urls: Mapping[str, str],
    *,
    clients: int,
    seconds: float,
    malformed: float = 0.0,
    check: Check = lambda *_: None,
    token: str | None = None,
    seed: int = 0,
) -> Result:
    """Load on servers for a while.

    Args:
        urls: where each adapter is served; a mapping that changes meanwhile is followed.
        malformed: share of requests that no server should accept.
        check: looks at every good answer.
    """
    result, end = Result(), time.monotonic() + seconds
    photos = [photo(number) for number in range(NUM_PHOTOS)]
    headers = {} if token is None else {"authorization": f"Bearer {token}"}
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=clients)
    async with httpx.AsyncClient(headers=headers, timeout=120, limits=limits) as http:

        async def client(number: int) -> None:
            drawn = random.Random(1000 * seed + number)
            while time.monotonic() < end:
                names = list(urls)
                name = drawn.choice(names)
                if drawn.random() < malformed:
                    status = await _malformed(http, urls[name], name, drawn.randrange(6))
                    result.malformed[status] += 1
                    continue
                index = drawn.randrange(NUM_PHOTOS)
                started = time.perf_counter()
                try:
                    answer = await http.post(
                        f"{urls[name]}/v1/predict",
                        data={"adapter": name, "top_k": "10"},
                        files={"images": (f"{index}.jpg", photos[index])},
                    )
                except httpx.HTTPError as error:
                    result.statuses[0] += 1
                    result.wrong.append(f"{name}: {type(error).__name__} {error}")
                    continue
                result.statuses[answer.status_code] += 1
                if answer.status_code == 200:
                    result.latencies_s.append(time.perf_counter() - started)
                    fault = check(name, index, answer.json())
                    if fault is not None:
                        result.wrong.append(fault)
                else:
                    await asyncio.sleep(0.05)

        started = time.monotonic()
        await asyncio.gather(*(client(number) for number in range(clients)))
        result.seconds = time.monotonic() - started
    return result


async def _malformed(http: httpx.AsyncClient, url: str, name: str, kind: int) -> int:
    """The status of a request that is wrong in one of six ways."""
    place = f"{url}/v1/predict"
    whole = {"images": ("x.jpg", photo(0))}
    requests: Sequence[dict[str, Any]] = (
        {"data": {"adapter": name}, "files": {"images": ("x.jpg", photo(0)[:500])}},
        {"data": {"adapter": name}, "files": {"images": ("x.jpg", b"no image at all")}},
        {"data": {"adapter": "../" + name}, "files": whole},
        {"data": {"adapter": name, "top_k": "-1"}, "files": whole},
        {"data": {}, "files": whole},
        {"content": b"--x\r\nbroken", "headers": {"content-type": "multipart/form-data"}},
    )
    try:
        return (await http.post(place, **requests[kind])).status_code
    except httpx.HTTPError:
        return 0


def main() -> int:
    """Drive a server that is running."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("--clients", default="1,8,64")
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--adapters", default=None, help="names, separated by commas")
    parser.add_argument("--malformed", type=float, default=0.0)
    parser.add_argument("--token", default=None)
    given = parser.parse_args()
    headers = {} if given.token is None else {"authorization": f"Bearer {given.token}"}
    listed = httpx.get(f"{given.url}/v1/adapters", headers=headers, timeout=60).json()
    served = [one["name"] for one in listed["adapters"] if one["state"] == "served"]
    names = given.adapters.split(",") if given.adapters else served
    failed = False
    for clients in map(int, given.clients.split(",")):
        result = asyncio.run(
            drive(
                dict.fromkeys(names, given.url),
                clients=clients,
                seconds=given.seconds,
                malformed=given.malformed,
                token=given.token,
            )
        )
        print(f"{clients:3d} clients {result.line()}", flush=True)
        failed |= bool(result.wrong) or set(result.statuses) != {200}
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
