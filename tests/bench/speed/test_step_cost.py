"""What a step costs: live memory, products by number format, figures from a fresh process."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vitune.bench.speed.products import ProductCounter, count_products, formats_text
from vitune.bench.speed.step_memory import Question, ask, live_peak_bytes
from vitune.bench.speed.subject import Contestant, Subject
from vitune.errors import VituneError

BACKBONE = "vitune/vit_micro_patch4_32"
CPU = torch.device("cpu")


def test_memory_of_a_known_case() -> None:
    def work() -> None:
        first = torch.empty(1000, 250)  # 1 MB
        second = first + 1  # 2 MB
        del first
        third = second * 2  # 2 MB
        del second
        assert len(third) == 1000

    assert live_peak_bytes(work) == pytest.approx(2_000_000, rel=0.01)


def test_memory_kept_for_the_gradient_is_counted() -> None:
    x = torch.randn(1000, 250, requires_grad=True)

    def work() -> None:
        x.exp().exp().sum()  # both results are kept

    assert live_peak_bytes(work) == pytest.approx(2_000_000, rel=0.01)


def test_products_are_counted_by_format() -> None:
    a: Tensor = torch.ones(4, 5)
    with ProductCounter() as counter:
        a @ torch.ones(5, 6)
        a.bfloat16() @ torch.ones(5, 6).bfloat16()
    assert counter.operations == {"float32": 2 * 4 * 5 * 6, "bfloat16": 2 * 4 * 5 * 6}


def test_a_step_s_products_are_those_of_its_linears() -> None:
    subject = Subject(Contestant.parse("rlrr+exact=true"), BACKBONE, CPU)
    images, labels = subject.images(2)
    products = count_products(lambda: subject.step(images, labels, "fp32"))
    tokens, width, blocks = 2 * 65, 128, 6
    of_linears = 3 * 2 * tokens * 12 * width**2 * blocks  # y, dx and dW' of six linears
    assert 0.9 * of_linears < sum(products.values()) < 1.3 * of_linears
    assert formats_text(products) == "products all float32"
    assert formats_text({"float32": 1.0, "bfloat16": 3.0}) == "products 75 % bfloat16, 25 % float32"


def test_a_fresh_process_tells_memory() -> None:
    found = ask(Question(BACKBONE, "rlrr", 2, "fp32", "cpu"))
    assert found.peak_mib > 1
    assert found.resident_mib is None or found.resident_mib > found.peak_mib


def test_a_failed_process_is_told_in_one_line() -> None:
    with pytest.raises(VituneError, match=r"expected figures\. Try a smaller --batch") as caught:
        ask(Question("no_such_backbone", "rlrr", 1, "fp32", "cpu"))
    assert "\n" not in str(caught.value)
