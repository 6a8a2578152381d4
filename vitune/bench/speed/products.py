"""The matrix products of a training step, counted as they run, by number format."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry


class ProductCounter(TorchDispatchMode):
    """Adds up the floating-point operations of matrix products by number format."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            dtype = str(args[0].dtype).removeprefix("torch.")
            self.operations[dtype] += formula(*args, **(kwargs or {}), out_val=result)
        return result


def count_products(step: Callable[[], Any]) -> dict[str, float]:
    """Floating-point operations of the matrix products that `step` does, by number format."""
    with ProductCounter() as counter:
        step()
    return {dtype: float(operations) for dtype, operations in counter.operations.items()}


def formats_text(products: Mapping[str, float]) -> str:
    """The number formats of the products: "products all float32", or the share of each."""
    if len(products) == 1:
        return f"products all {next(iter(products))}"
    total = sum(products.values())
    shares = sorted(products.items(), key=lambda item: -item[1])
    return "products " + ", ".join(f"{100 * n / total:.0f} % {name}" for name, n in shares)
