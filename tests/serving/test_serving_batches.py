"""Which images run together, what is refused, and that nothing accepted is lost."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Any

import pytest
from torch import nn

from vitune.serving import BusyError, StoppedError
from vitune.serving.batching import Batcher, Waiting
from vitune.serving.runner import Runner
from vitune.serving.weight_cache import WeightCache


class Recorder:
    """Runs nothing; keeps what was to run together, and may be held up."""

    def __init__(self) -> None:
        self.batches: list[tuple[str, list[int]]] = []
        self.may_run = threading.Event()
        self.may_run.set()

    def __call__(self, key: str, batch: Sequence[Waiting[int]]) -> list[int]:
        self.batches.append((key, [one.item for one in batch]))
        assert self.may_run.wait(10)
        if key == "broken":
            raise ZeroDivisionError("as told")
        return [10 * one.item for one in batch]


def batcher(run: Recorder, **settings: Any) -> Batcher[int, int]:
    return Batcher(run, **{"max_batch": 3, "max_wait_s": 0.05, "max_queue": 20, **settings})


def test_a_batch_holds_one_key_and_no_more_than_its_size() -> None:
    run = Recorder()
    queue = batcher(run)
    futures = queue.submit("a", [1, 2]) + queue.submit("b", [3]) + queue.submit("a", [4, 5])
    assert [future.result(5) for future in futures] == [10, 20, 30, 40, 50]
    queue.close()
    assert all(len(items) <= 3 for _, items in run.batches)
    assert ("a", [1, 2, 4]) in run.batches and ("b", [3]) in run.batches


def test_a_full_batch_does_not_wait_and_one_alone_waits_for_the_deadline() -> None:
    queue = batcher(Recorder(), max_wait_s=0.3)
    started = time.perf_counter()
    [future.result(5) for future in queue.submit("a", [1, 2, 3])]
    full = time.perf_counter() - started
    queue.submit("a", [1])[0].result(5)
    alone = time.perf_counter() - started - full
    queue.close()
    assert full < 0.25 and alone > 0.29


def test_the_oldest_group_runs_first_though_others_are_full() -> None:
    run = Recorder()
    queue = batcher(run, max_wait_s=0)
    run.may_run.clear()
    futures = queue.submit("first", [0])
    while not run.batches:
        time.sleep(0.001)
    futures += queue.submit("old", [1]) + queue.submit("full", [2, 3, 4])
    run.may_run.set()
    [future.result(5) for future in futures]
    queue.close()
    assert [key for key, _ in run.batches] == ["first", "old", "full"]


def test_a_request_is_accepted_whole_or_refused_whole() -> None:
    run = Recorder()
    queue = batcher(run, max_queue=4, max_wait_s=0.01)
    run.may_run.clear()
    first = queue.submit("a", [1])
    while not run.batches:
        time.sleep(0.001)
    second = queue.submit("a", [2, 3])
    with pytest.raises(BusyError, match="got 3 images with 2 waiting, expected at most 4"):
        queue.submit("a", [4, 5, 6])
    run.may_run.set()
    assert [future.result(5) for future in first + second] == [10, 20, 30]
    queue.close()


def test_closing_answers_what_was_accepted_and_accepts_no_more() -> None:
    run = Recorder()
    queue = batcher(run, max_wait_s=60)
    futures = queue.submit("a", [1]) + queue.submit("b", [2])
    queue.close()
    assert [future.result(0) for future in futures] == [10, 20]
    with pytest.raises(StoppedError, match="shutting down"):
        queue.submit("a", [3])


def test_an_error_reaches_its_own_batch_alone_and_a_cancelled_image_is_left_out() -> None:
    run = Recorder()
    queue = batcher(run)
    broken, gone, fine = queue.submit("broken", [1]) + queue.submit("a", [2, 3])
    assert gone.cancel()
    with pytest.raises(ZeroDivisionError, match="as told"):
        broken.result(5)
    assert fine.result(5) == 30
    queue.close()
    assert ("a", [3]) in run.batches


class TestWeightCache:
    """What is kept merged, under the cap."""

    @staticmethod
    def get(cache: WeightCache, key: str, size: int = 40) -> bool:
        """Whether the key runs merged."""
        return cache.get(key, size, lambda: (Runner(nn.Identity()), size)) is not None

    def test_it_keeps_the_latest_and_never_more_than_its_capacity(self) -> None:
        cache = WeightCache(100)
        for key in ("a", "b", "a", "c", "c", "a", "b", "b", "d", "d", "d"):
            self.get(cache, key)
            assert cache.used == 40 * len(cache) <= 100
        assert "d" in cache and "b" in cache and "a" not in cache
        assert (cache.hits, cache.evictions) == (3, 3)

    def test_what_is_asked_for_once_drives_nothing_out(self) -> None:
        cache = WeightCache(100)
        assert self.get(cache, "a") and self.get(cache, "b")
        assert not any(self.get(cache, f"once-{n}") for n in range(50))
        assert "a" in cache and "b" in cache
        assert self.get(cache, "once-49") and "a" not in cache

    def test_nothing_fits_into_no_room_and_what_is_dropped_makes_some(self) -> None:
        assert not self.get(WeightCache(0), "a") and not self.get(WeightCache(39), "a")
        cache = WeightCache(50)
        assert self.get(cache, "a")
        cache.drop("a")
        cache.drop("never there")
        assert cache.used == 0 and self.get(cache, "b")

    def test_more_than_was_foretold_still_fits_or_is_not_kept(self) -> None:
        cache = WeightCache(100)
        for key, foretold, taken in (("a", 40, 60), ("b", 30, 60), ("c", 0, 101)):
            cache.get(key, foretold, lambda taken=taken: (Runner(nn.Identity()), taken))
            assert cache.used <= 100
        assert "c" not in cache

    def test_what_cannot_be_merged_is_not_kept(self) -> None:
        cache = WeightCache(100)
        assert cache.get("a", 10, lambda: None) is None and len(cache) == 0
