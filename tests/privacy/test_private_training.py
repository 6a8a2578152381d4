"""Training with differential privacy: gradients per image, the budget, resuming, refusals."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from opacus.accountants import RDPAccountant
from peft import PeftModel
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from vitune import extras, fit
from vitune.adapters import inject
from vitune.cli import main
from vitune.data import Split
from vitune.errors import TrainingError, VituneError
from vitune.fewer_tokens import TokenPlan, reduce_tokens
from vitune.methods import get_method
from vitune.privacy.dp import (
    Budget,
    PerSampleGradients,
    PoissonBatches,
    PrivateStep,
    require_opacus,
)
from vitune.runs import RunFolder
from vitune.training import class_tail, lean_training
from vitune.training.loop import Loop

CLOSED = (
    ("rlrr", {}),
    ("rlrr", {"rank": "2"}),
    ("rlrr", {"sides": "out", "residual": "false"}),
    ("rlrr", {"roles": "q,v,fc1"}),
    ("ssf", {}),
    ("bitfit", {}),
    ("lora", {}),
    ("linear_sgd", {}),
)
TRACED = (("houlsby", {}), ("vpt_deep", {}), ("full", {}), ("adapter_plus", {}))
DATA = "demo:digits"
SMALL = {"data": DATA, "epochs": 2, "batch_size": 10, "lr": 1e-3, "val_fraction": 0.8}
SMALL |= {"image_size": 16}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def adapted(method: str, arguments: dict[str, str]) -> PeftModel:
    torch.manual_seed(0)
    network = VisionTransformer(
        img_size=8, patch_size=4, embed_dim=12, depth=2, num_heads=2, num_classes=5
    )
    model = inject(network, get_method(method).configure(network, arguments)).double()
    for parameter in model.parameters():
        if parameter.requires_grad:
            with torch.no_grad():
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def batch(size: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(size, 3, 8, 8, generator=generator, dtype=torch.float64)
    return images, torch.arange(size) % 5


def one_by_one(model: PeftModel, images: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """Plain gradients of each image alone."""
    parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
    lines = []
    for image, target in zip(images, targets, strict=True):
        loss = F.cross_entropy(model(image[None]), target[None])
        found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
        pairs = zip(found, parameters.values(), strict=True)
        lines.append([torch.zeros_like(p) if g is None else g for g, p in pairs])
    stacked = [torch.stack(column) for column in zip(*lines, strict=True)]
    return dict(zip(parameters, stacked, strict=True))


@pytest.mark.parametrize(("method", "arguments"), [*CLOSED, *TRACED])
def test_gradients_of_each_image_are_exact(method: str, arguments: dict[str, str]) -> None:
    model = adapted(method, arguments).eval()
    images, targets = batch()
    gradients = PerSampleGradients(model)
    gradients.check((8, 8))
    assert gradients.is_closed == ((method, arguments) in CLOSED)
    with lean_training(class_tail(model)) if gradients.is_closed else nullcontext():
        loss = gradients(images, targets)
    wanted = one_by_one(model.eval(), images, targets)
    for name, parameter in gradients.parameters.items():
        assert parameter.requires_grad and parameter.grad is None
        torch.testing.assert_close(parameter.grad_sample, wanted[name], rtol=1e-6, atol=1e-9)
    assert loss == pytest.approx(F.cross_entropy(model(images), targets).item(), rel=1e-9)


@pytest.mark.parametrize("method", ["rlrr", "houlsby"])
def test_merged_tokens_keep_images_apart(method: str) -> None:
    """In closed form and under torch.func: an image's tokens merge among themselves alone."""
    model = adapted(method, {}).eval()
    reduce_tokens(model, TokenPlan.parse("merge:0.5@0"))
    gradients = PerSampleGradients(model)
    gradients.check((8, 8))
    assert gradients.is_closed == (method == "rlrr")
    gradients(*batch())
    wanted = one_by_one(model, *batch())
    for name, parameter in gradients.parameters.items():
        torch.testing.assert_close(parameter.grad_sample, wanted[name], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(("method", "arguments"), [("rlrr", {"rank": "2"}), ("ssf", {})])
def test_the_closed_form_is_functorchs(method: str, arguments: dict[str, str]) -> None:
    model = adapted(method, arguments).eval()
    gradients = PerSampleGradients(model)
    gradients(*batch())
    closed = {name: p.grad_sample for name, p in gradients.parameters.items()}
    gradients.is_closed = False
    gradients(*batch())
    for name, parameter in gradients.parameters.items():
        torch.testing.assert_close(closed[name], parameter.grad_sample, rtol=1e-6, atol=1e-9)


def test_a_step_is_the_clipped_sum_without_noise() -> None:
    model = adapted("rlrr", {}).eval()
    budget = Budget(5.0, 1e-5, 0.5, 0.1, 10)
    parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
    optimiser = torch.optim.SGD(parameters.values(), lr=1.0)
    step = PrivateStep(model, optimiser, budget, expected_batch=4)
    step.optimiser.noise_multiplier = 0.0
    images, targets = batch()
    each = one_by_one(model, images, targets)
    norms = torch.stack([v.flatten(1).norm(dim=1) for v in each.values()]).norm(dim=0)
    factors = (0.5 / norms).clamp(max=1)
    before = {name: value.detach().clone() for name, value in parameters.items()}
    step(images, targets)
    for name, value in parameters.items():
        moved = torch.einsum("b,b...->...", factors, each[name]) / 4
        torch.testing.assert_close(before[name] - value, moved, rtol=1e-4, atol=1e-6)
    after = {name: value.detach().clone() for name, value in parameters.items()}
    assert step(images[:0], targets[:0]) == 0.0
    assert all(torch.equal(after[name], value) for name, value in parameters.items())
    assert budget.steps_spent == 2


def test_an_empty_batch_still_gets_noise_and_no_seed_repeats_it() -> None:
    moves = []
    for _ in range(2):
        torch.manual_seed(7)
        model = adapted("linear_sgd", {}).eval()
        head = [p for p in model.parameters() if p.requires_grad]
        step = PrivateStep(model, torch.optim.SGD(head, lr=1.0), Budget(1.0, 1e-5, 1.0, 0.1, 10), 4)
        before = head[0].detach().clone()
        step(*(part[:0] for part in batch()))
        moves.append(head[0].detach() - before)
    wanted = step.budget.noise_multiplier / 4
    assert moves[0].std() == pytest.approx(wanted, rel=0.4)
    assert not torch.equal(*moves)


def test_epsilon_is_the_accountants() -> None:
    budget = Budget(3.0, 1e-5, 1.0, 0.05, 200)
    for _ in range(200):
        budget.step()
    accountant = RDPAccountant()
    accountant.history = [(budget.noise_multiplier, 0.05, 200)]
    assert budget.epsilon_spent == pytest.approx(accountant.get_epsilon(1e-5), rel=1e-12)
    assert 2.95 < budget.epsilon_spent <= 3.0
    assert Budget(3.0, 1e-5, 1.0, 0.05, 200).epsilon_spent == 0


def test_an_epsilon_that_no_noise_reaches_is_named() -> None:
    with pytest.raises(VituneError, match=r"--dp-epsilon: got 0.01, expected more than 0\.\d+"):
        Budget(0.01, 1e-5, 1.0, 1.0, 10)


def test_poisson_batches_have_the_rate_they_say() -> None:
    split = Split(
        "train",
        torch.zeros(50, 2, 2, 3, dtype=torch.uint8).numpy(),
        torch.zeros(50, dtype=torch.int64).numpy(),
        tuple(map(str, range(50))),
        ("a",),
    )
    drawn = [len(one["labels"]) for one in PoissonBatches(split, 0.1, 2000)]
    assert abs(sum(drawn) / 2000 - 5) < 0.2 and min(drawn) == 0 and max(drawn) > 8


def test_a_batch_norm_in_training_mode_is_refused() -> None:
    model = adapted("linear_sgd", {}).eval()
    model.base_model.model.norm_pre = nn.BatchNorm1d(5).eval()
    gradients = PerSampleGradients(model)
    gradients.check_norms()
    model.train()
    with pytest.raises(VituneError, match="got a batch norm in training mode"):
        gradients.check_norms()


def test_a_layer_that_mixes_images_is_refused() -> None:
    model = adapted("vpt_deep", {}).eval()
    network = model.base_model.model
    network.norm = nn.Sequential(network.norm, _Sorting())
    gradients = PerSampleGradients(model)
    with pytest.raises(VituneError, match="got a method without gradients per image"):
        gradients(*batch())


def test_a_closed_form_is_kept_only_where_it_holds() -> None:
    """Lily weighs its experts by a mean over the batch: one image would show in all gradients."""
    for method, stays in (("rlrr", True), ("lora", True), ("lily", False)):
        model = adapted(method, {}).eval()
        before = {name: value.clone() for name, value in model.state_dict().items()}
        gradients = PerSampleGradients(model)
        assert gradients.is_closed
        gradients.check((8, 8))
        assert gradients.is_closed == stays
        assert all(torch.equal(value, before[n]) for n, value in model.state_dict().items())
        gradients(*batch())
        wanted = one_by_one(model, *batch())
        if not stays:
            for name, parameter in gradients.parameters.items():
                torch.testing.assert_close(parameter.grad_sample, wanted[name])


@pytest.mark.parametrize("method", ["osf", "tinylora"])
def test_gradients_that_are_not_those_of_one_image_are_refused(method: str) -> None:
    """OSF changes gradients by hooks; TinyLoRA holds a parameter in places torch.func parts."""
    torch.manual_seed(0)
    network = VisionTransformer(
        img_size=8, patch_size=4, embed_dim=12, depth=2, num_heads=2, num_classes=5
    )
    model = inject(network, get_method(method).configure(network, {}))
    with pytest.raises(VituneError, match=r"per image \(they differ from those of one image\)"):
        PerSampleGradients(model).check((8, 8))


class _Sorting(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if float(x.sum()) > 0 else -x


def test_missing_opacus_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extras, "find_spec", lambda name: None)
    with pytest.raises(VituneError, match=r"pip install 'vitune\[privacy\]'"):
        require_opacus()


def test_a_stopped_run_goes_on_with_its_accountant_and_says_what_it_spent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, whole = tmp_path / "run", Loop._epoch

    def stops(loop: Loop, epoch: int) -> dict[str, object]:
        if epoch == 1:
            raise KeyboardInterrupt
        return whole(loop, epoch)

    monkeypatch.setattr(Loop, "_epoch", stops)
    with pytest.raises(KeyboardInterrupt):
        fit(out=run, dp_epsilon=4.0, dp_clip=0.5, method="rlrr", **SMALL)
    monkeypatch.undo()
    assert accountant_of(run)[0][2] == 4
    summary = fit(out=run, resume=True).summary
    assert summary.probe is None and summary.verdict is None and not (run / "probe").exists()
    spent = summary.privacy
    assert spent is not None and spent.steps == summary.steps == 8
    assert 3.9 < spent.epsilon <= 4.0 and spent.sample_rate == pytest.approx(1 / 4)
    assert accountant_of(run) == [[spent.noise_multiplier, spent.sample_rate, 8]]
    assert "Differential privacy" in (run / "report.html").read_text()
    assert RunFolder(run).read_summary() == summary
    with pytest.raises(VituneError, match="--epochs: got 3 for a private run"):
        fit(out=run, resume=True, epochs=3)


def test_a_private_run_that_diverges_is_stopped(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"loss: got .* expected a finite number"):
        fit(out=tmp_path / "run", dp_epsilon=4.0, method="rlrr", **{**SMALL, "lr": 1e30})


def accountant_of(run: Path) -> list[list[float]]:
    """What a checkpoint says was spent."""
    state = json.loads((run / "checkpoint" / "state.json").read_text())
    return list(state["accountant"])


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--mixup", "0.8"], "--mixup: got 0.8 with --dp-epsilon"),
        (["--cutmix", "1"], "--cutmix: got 1.0 with --dp-epsilon"),
        (["--objective", "pace"], "--objective: got 'pace' with --dp-epsilon"),
        (["--accumulation-steps", "2"], "--accumulation-steps: got 2"),
        (["--clip-grad", "1"], "--clip-grad: got 1.0"),
        (["--checkpointing"], "--checkpointing: got True"),
        (["--precision", "bf16"], "--precision: got 'bf16' with --dp-epsilon"),
        (["--method", "linear"], "which is solved from all images at once, expected one that"),
        (["--start", "probe"], "--start: got 'probe' with --dp-epsilon, expected 'plain'"),
        (["--choose-best"], "--choose-best: got True with --dp-epsilon"),
        (["--tune", "1m"], "--tune: got it together with --dp-epsilon"),
        (["--method", "moppa"], "which adds a term to the loss"),
        (["--dp-epsilon", "0.001"], "--dp-epsilon: got 0.001, expected more than"),
    ],
)
def test_what_does_not_go_with_privacy_is_one_line(
    options: list[str], text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = ["train", "--data", DATA, "--out", str(tmp_path / "run"), "--dp-epsilon", "3"]
    with pytest.raises(SystemExit) as stopped:
        main([*told, *options])
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and text in error and error.count("\n") == 1
    assert not (tmp_path / "run").exists()
