"""Run a trained network elsewhere: ONNX, PyTorch's own archive, OpenVINO, each verified there."""

from vitune.export.exporting import TARGETS, export_run, find_target

__all__ = ["TARGETS", "export_run", "find_target"]
