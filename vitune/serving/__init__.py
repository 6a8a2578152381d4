"""Serving: many adapters over one backbone, behind HTTP."""

import importlib
from typing import TYPE_CHECKING, Any

from vitune.serving.batching import BusyError, StoppedError
from vitune.serving.collection import Changes, UnknownAdapterError, content_fingerprint
from vitune.serving.engine import Answer, Engine, Upload
from vitune.serving.replicas import start_replicas
from vitune.serving.service import LocalService, Service
from vitune.serving.settings import EngineSettings, GuardSettings, ServerSettings

if TYPE_CHECKING:
    from vitune.serving.app import create_app
    from vitune.serving.server import address_of, listen, make_server

_NEED_THE_EXTRA = {
    "address_of": "server",
    "create_app": "app",
    "listen": "server",
    "make_server": "server",
}

__all__ = [
    "Answer",
    "BusyError",
    "Changes",
    "Engine",
    "EngineSettings",
    "GuardSettings",
    "LocalService",
    "ServerSettings",
    "Service",
    "StoppedError",
    "UnknownAdapterError",
    "Upload",
    "address_of",
    "content_fingerprint",
    "create_app",
    "listen",
    "make_server",
    "start_replicas",
]


if not TYPE_CHECKING:  # which would let any name pass

    def __getattr__(name: str) -> Any:
        """What needs `vitune[serve]`, loaded at first use."""
        if name in _NEED_THE_EXTRA:
            module = importlib.import_module(f"vitune.serving.{_NEED_THE_EXTRA[name]}")
            return getattr(module, name)
        raise AttributeError(f"module 'vitune.serving' has no attribute {name!r}")
