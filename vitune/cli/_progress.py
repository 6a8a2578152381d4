"""Progress output: bars on a terminal, plain lines in a log."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from vitune.training.observer import Observer

if TYPE_CHECKING:
    from vitune.runs import RunSummary
    from vitune.training.observer import Running


class _PlainConsole(Console):
    """Prints text as it is: paths and class names may hold [brackets] or :words:."""

    def print(self, *objects: Any, soft_wrap: bool | None = None, **options: Any) -> None:
        """With `soft_wrap` a line stays whole in a file or a pipe, or if a word, such as a path, is
        wider than the terminal; else a terminal breaks it at words."""
        is_too_wide = any(len(word) > self.width for one in objects for word in str(one).split())
        is_whole = bool(soft_wrap) and (is_too_wide or not self.is_terminal)
        super().print(*objects, soft_wrap=is_whole, **options)


def plain_console(*, stderr: bool = False) -> Console:
    """The console of the commands."""
    return _PlainConsole(stderr=stderr, highlight=False, markup=False, emoji=False)


console = plain_console()

NAMES_SHOWN = 3


def count(number: float) -> str:
    """1234567 as '1.23 M', 24320 as '24,320'."""
    return f"{number / 1e6:.2f} M" if number >= 1e6 else f"{number:,.0f}"


def percent(share: float | None) -> str:
    """0.8312 as '83.1 %', None as '-'."""
    return "-" if share is None else f"{100 * share:.1f} %"


def _head_rate(facts: RunSummary) -> str:
    """The classifier's own learning rate, if it has one."""
    if facts.head_lr is None:
        return ""
    origin = ", from the solved probe" if facts.start == "probe" else ""
    return f" (classifier {facts.head_lr:g}{origin})"


def print_named(
    text: str, names: Sequence[str], total: int | None = None, *, to_stderr: bool = False
) -> None:
    """Print a remark and the first names it concerns."""
    shown = ", ".join(names[:NAMES_SHOWN])
    left = (len(names) if total is None else total) - NAMES_SHOWN
    more = f" and {left:,} more" if left > 0 else ""
    to = plain_console(stderr=True) if to_stderr else console
    to.print(f"{text}: {shown}{more}", style="yellow", soft_wrap=True)


class Counting:
    """A bar for work with a known number of steps: use as `on_progress(done, total)`."""

    def __init__(self, title: str) -> None:
        self.title, self.bar = title, None
        self._progress: Progress | None = None
        self._task: TaskID | None = None

    def __call__(self, done: int, total: int) -> None:
        if not console.is_terminal or total < 1:
            return
        if self._progress is None:
            self._progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(None),
                TextColumn("{task.completed:,.0f}/{task.total:,.0f}"),
                TimeRemainingColumn(),
                console=console,
                transient=True,
            )
            self._progress.start()
            self._task = self._progress.add_task(self.title, total=total)
        assert self._task is not None
        self._progress.update(self._task, completed=done, total=total)
        if done >= total:
            self.close()

    def close(self) -> None:
        """Remove the bar."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


class TrainingProgress(Observer):
    """One bar over all epochs with loss, validation accuracy, images/s and time left."""

    def __init__(self) -> None:
        self.decoding = Counting("reading images")
        self.val_accuracy: float | None = None
        self.epochs = self.steps = 0
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._epoch_started = 0.0
        self._loop: Running | None = None

    def prepared(self, stage: str, done: int, total: int) -> None:
        self.decoding(done, total)

    def described(self, facts: RunSummary) -> None:
        self.decoding.close()
        if facts.backbone_notice:
            console.print(facts.backbone_notice, style="yellow", soft_wrap=True)
        trained = facts.num_trainable_without_head or 0
        share = trained / (facts.num_total or 1)
        held_out = f" (validation: {facts.held_out})" if facts.held_out else ""
        console.print(
            Text.assemble(
                (facts.method_title or facts.method, "bold"),
                f" on {facts.backbone}: {count(trained)} parameters ({percent(share)}) "
                f"+ head {count(facts.num_head or 0)}",
            ),
            soft_wrap=True,
        )
        console.print(
            f"{facts.num_train:,} training, {facts.num_val:,} validation images of "
            f"{facts.num_classes or 0:,} classes{held_out}",
            soft_wrap=True,
        )
        if facts.lr is None:
            console.print(
                f"solved on frozen features, {facts.precision} on {facts.device}", soft_wrap=True
            )
        else:
            console.print(
                f"lr {facts.lr:g}{_head_rate(facts)}, weight decay {facts.weight_decay:g}, "
                f"{facts.precision} on {facts.device}, speed {facts.speed}, tokens {facts.tokens}",
                soft_wrap=True,
            )
        for notice in (facts.notice, facts.scarcity_notice):
            if notice:
                console.print(notice, style="yellow", soft_wrap=True)
        for remark in facts.remarks:
            print_named(remark.text, remark.names, remark.num)

    def started(self, loop: Running) -> None:
        self._loop, self.epochs = loop, loop.config.epochs
        if loop.progress.epoch:
            console.print(f"continuing after epoch {loop.progress.epoch}")
        self._epoch_started = time.perf_counter()
        if not console.is_terminal:
            return
        self._bar = Progress(
            TextColumn("epoch {task.fields[epoch]}/{task.fields[epochs]}"),
            BarColumn(None),
            TextColumn("loss {task.fields[loss]}  val {task.fields[val]}  {task.fields[rate]}"),
            TimeRemainingColumn(compact=True),
            console=console,
        )
        self._bar.start()
        self._task = self._bar.add_task(
            "",
            total=loop.steps_per_epoch * self.epochs,
            completed=loop.progress.step,
            epoch=loop.progress.epoch + 1,
            epochs=self.epochs,
            loss="-",
            val="-",
            rate="",
        )

    def stepped(self, step: int, loss: float, num_images: int) -> None:
        if self._bar is None or self._task is None or self._loop is None:
            return
        rate = num_images / (time.perf_counter() - self._epoch_started)
        self._bar.update(
            self._task,
            completed=step,
            epoch=self._loop.progress.epoch + 1,
            loss=f"{loss:.3f}",
            rate=f"{rate:,.0f} img/s",
        )

    def epoch_ended(self, row: dict[str, Any]) -> None:
        self.val_accuracy = row["val_accuracy"]
        self._epoch_started = time.perf_counter()
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=row["step"], val=percent(self.val_accuracy))
            return
        console.print(
            f"epoch {row['epoch']}/{self.epochs}  loss {row['train_loss']:.4f}  "
            f"val {percent(self.val_accuracy)}  {row['images_per_s']:,.0f} img/s"
        )

    def close(self) -> None:
        """Leave the terminal as it was, whatever happened."""
        self.decoding.close()
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
