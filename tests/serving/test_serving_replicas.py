"""Replicas that die: a request is sent again, a mistake is not."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from typing import Any

import pytest

from vitune.errors import DataError, VituneError
from vitune.serving import EngineSettings, Upload
from vitune.serving import replicas as room
from vitune.serving.replicas import ReplicatedService, start_replicas


class DiedError(Exception):
    """What Ray raises when a replica is gone."""


class CrossedError(Exception):
    """What Ray raises when a replica raised `cause`."""

    def __init__(self, cause: Exception) -> None:
        super().__init__("a traceback of many lines")
        self.cause = cause


def service(*happens: Any) -> ReplicatedService:
    """A service whose replicas answer or raise one after the other."""
    left = list(happens)

    async def predict(name: str, uploads: Sequence[Upload]) -> Any:
        next_one = left.pop(0)
        if isinstance(next_one, Exception):
            raise next_one
        return next_one

    async def listing() -> dict[str, Any]:
        return {"adapters": []}

    return ReplicatedService(predict, listing, lost=(DiedError,), stop=lambda: left.clear())


def test_a_request_outlives_its_replicas() -> None:
    replicated = service(DiedError(), DiedError(), ["answer"])
    assert asyncio.run(replicated.predict("rocks", [])) == ["answer"]
    (figure,) = asyncio.run(replicated.figures())
    assert (figure.name, figure.value) == ("requests_resent", 2)


def test_a_mistake_is_told_as_it_was_and_not_sent_again() -> None:
    replicated = service(CrossedError(DataError("image 'x': got nothing")), ["never"])
    with pytest.raises(DataError, match=r"^image 'x': got nothing$"):
        asyncio.run(replicated.predict("rocks", []))
    with pytest.raises(CrossedError, match="traceback"):
        asyncio.run(service(CrossedError(KeyError("a defect"))).predict("rocks", []))
    assert replicated.num_resent == 0


def test_replicas_that_never_come_back_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "PAUSE_S", 0.0)
    with pytest.raises(VituneError, match="got no living replica in 60 attempts"):
        asyncio.run(service(*[DiedError()] * 60).predict("rocks", []))


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    settings = EngineSettings(device="cpu")
    with pytest.raises(VituneError, match=r"pip install 'vitune\[serve,ray\]'"):
        start_replicas("folder", settings, address="local", num_replicas=1)
    with pytest.raises(VituneError, match=r"--replicas: got 0, expected at least 1"):
        start_replicas("folder", settings, address="local", num_replicas=0)
