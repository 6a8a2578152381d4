"""Serving: many adapters over one backbone, behind HTTP."""

from typing import TYPE_CHECKING

from vitune.late_imports import late_names
from vitune.serving.batching import BusyError, StoppedError
from vitune.serving.collection import Changes, UnknownAdapterError, content_fingerprint
from vitune.serving.engine import Answer, Engine, Upload
from vitune.serving.replicas import start_replicas
from vitune.serving.service import LocalService, Service
from vitune.serving.settings import EngineSettings, GuardSettings, ServerSettings

if TYPE_CHECKING:
    from vitune.serving.app import create_app
    from vitune.serving.server import address_of, listen, make_server

_NEEDING_THE_EXTRA = {
    "app": ("create_app",),
    "server": ("address_of", "listen", "make_server"),
}
"""What needs `vitune[serve]`, imported when first asked for."""

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
    __getattr__ = late_names(__name__, _NEEDING_THE_EXTRA)
