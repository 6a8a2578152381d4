"""The course of a run's validation accuracy, from the events of training."""

from __future__ import annotations

from typing import Any

from vitune.training import Observer, Running


class Course(Observer):
    """Records a run's accuracy over time."""

    def __init__(self) -> None:
        self.curve: list[tuple[float, float, float | None]] = []

    def started(self, loop: Running) -> None:
        self.curve.clear()  # of a start that ran out of memory

    def epoch_ended(self, row: dict[str, Any]) -> None:
        wall, cpu, _ = self.curve[-1] if self.curve else (0.0, 0.0, None)
        wall, cpu = wall + row["train_seconds"], cpu + row["train_cpu_seconds"]
        self.curve.append((wall, cpu, row["val_accuracy"]))
