"""Where a training step of a small network goes: shares of the step by kind of work.

    OMP_NUM_THREADS=1 python studies/small_step.py --method rlrr
    OMP_NUM_THREADS=1 python studies/small_step.py --method lora --speed fast

Trains on the bundled backbone and profiles some steps with torch.profiler after a few that warm
up. Each operation's own time goes to one kind, and so does the time that Python spends between
operations. A backward operation belongs to the part of the forward pass that it differentiates.
Matrix products, attention, LayerNorm and GELU count as such wherever they run; "method" is
everything else inside the adapter's layers. Profiling makes small operations look dearer than
they are, so read shares, not milliseconds. Shares change little while other work runs.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from peft.tuners.tuners_utils import BaseTunerLayer
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile, record_function

from vitune.fewer_tokens.reducing import TokenReducer
from vitune.training import Observer, Running, TrainConfig, fit

STEP, METHOD, MERGING = "study: step", "study: method", "study: merging"
PRODUCTS = {"aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::mkldnn_linear"}
CHEAP = ("gelu", "layer_norm", "layernorm")
KINDS = (
    "matrix products", "attention", "method", "merging tokens", "LayerNorm and GELU",
    "optimiser", "data", "other operations", "Python between operations",
)  # fmt: skip


class Profiled(Observer):
    """Profiles the steps after the first `warm` ones, each inside a range of its own."""

    def __init__(self, warm: int, number: int) -> None:
        self.warm, self.number, self.seen = warm, number, 0
        self.profiler = profile(activities=[ProfilerActivity.CPU])
        self.range: Any = None

    def started(self, loop: Running) -> None:
        for module in loop.model.modules():
            if isinstance(module, BaseTunerLayer):
                in_range(module, "forward", METHOD)

    def stepped(self, step: int, loss: float, num_images: int) -> None:
        if self.range is not None:
            self.range.__exit__(None, None, None)
            self.range = None
        self.seen += 1
        if self.seen == self.warm:
            self.profiler.start()
        if self.seen == self.warm + self.number:
            self.profiler.stop()
        if self.warm <= self.seen < self.warm + self.number:
            self.range = record_function(STEP)
            self.range.__enter__()


def in_range(owner: Any, name: str, title: str) -> None:
    """Let the profiler see the calls of `owner.name` as `title`."""
    function: Callable[..., Any] = getattr(owner, name)

    def ranged(*args: Any, **kwargs: Any) -> Any:
        with record_function(title):
            return function(*args, **kwargs)

    setattr(owner, name, ranged)


def shares(events: Sequence[FunctionEvent]) -> Counter[str]:
    """Microseconds inside the steps by kind."""
    forward = [e for e in events if e.sequence_nr >= 0 and not any(map(is_backward, ancestors(e)))]
    # Operations that need no gradient carry the number of the next one that does: the last is it.
    ahead = {e.sequence_nr: e for e in sorted(forward, key=lambda e: e.time_range.start)}
    found: Counter[str] = Counter()
    for event in events:
        line = list(ancestors(event))
        if any(parent.name == STEP for parent in line):
            found[kind_of(event, line, ahead)] += event.self_cpu_time_total
    return found


def kind_of(
    event: FunctionEvent, line: Sequence[FunctionEvent], ahead: dict[int, FunctionEvent]
) -> str:
    """The kind of one event; `line` is itself and everything around it."""
    names = {parent.name for parent in line}
    for parent in line:
        if is_backward(parent) and parent.sequence_nr in ahead:
            names |= {origin.name for origin in ancestors(ahead[parent.sequence_nr])}
            break
    inside = partial(has, names)
    if inside("Optimizer."):
        return "optimiser"
    if inside("enumerate(DataLoader)"):
        return "data"
    if inside("scaled_dot_product", "_Attention"):
        return "attention"
    if event.name in PRODUCTS:
        return "matrix products"
    if has({event.name}, *CHEAP):
        return "LayerNorm and GELU"
    if MERGING in names:
        return "merging tokens"
    if METHOD in names:
        return "method"
    return "Python between operations" if event.name == STEP else "other operations"


def has(names: set[str], *parts: str) -> bool:
    """Whether a name contains one of the parts."""
    return any(part in name for name in names for part in parts)


def is_backward(event: FunctionEvent) -> bool:
    return event.name.startswith("autograd::engine::evaluate_function")


def ancestors(event: FunctionEvent | None) -> Iterator[FunctionEvent]:
    """The event, what called it, and so on."""
    while event is not None:
        yield event
        event = event.cpu_parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="demo:digits?train=400")
    parser.add_argument("--method", default="rlrr")
    parser.add_argument("--speed", default="exact")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--warm", type=int, default=3)
    parser.add_argument("--steps", type=int, default=5)
    given = parser.parse_args()
    in_range(TokenReducer, "_merged", MERGING)
    observer = Profiled(given.warm, given.steps)
    asked = {name: getattr(given, name) for name in ("data", "method", "speed", "batch_size")}
    if given.speed == "exact":
        asked["precision"] = given.precision
    trained = fit(TrainConfig.make({**asked, "epochs": 1}), observer=observer)
    found = shares(list(observer.profiler.events() or ()))
    total, summary = found.total(), trained.summary
    how = f"{given.method}, {given.speed}, {summary.precision}, tokens {summary.tokens}"
    print(f"{how}: {total / 1e3 / given.steps:.0f} ms per profiled step\n")
    print("| part of a step | share, % |\n|---|---:|")
    for kind in KINDS:
        print(f"| {kind} | {100 * found[kind] / total:.1f} |")
    print(f"| total | {100 * sum(found[kind] for kind in KINDS) / total:.1f} |")


if __name__ == "__main__":
    main()
