"""Serving: many adapters over one backbone, behind HTTP."""

from vitune.serving.batching import BusyError, StoppedError
from vitune.serving.collection import UnknownAdapterError, content_fingerprint
from vitune.serving.engine import Answer, Engine, Upload
from vitune.serving.settings import EngineSettings

__all__ = [
    "Answer",
    "BusyError",
    "Engine",
    "EngineSettings",
    "StoppedError",
    "UnknownAdapterError",
    "Upload",
    "content_fingerprint",
]
