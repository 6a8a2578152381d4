"""Training that starts at the solved probe, is compared with it, stops in time, is calibrated."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from vitune.adapters import AdapterCard
from vitune.cli import run
from vitune.data import load_splits
from vitune.errors import AdapterError, VituneError
from vitune.inference import load_run
from vitune.methods import OWN
from vitune.ops import (
    calibrated_losses,
    calibration_error_by_chance,
    expected_calibration_error,
    paired,
)
from vitune.runs import RunFolder
from vitune.training import Observer, TrainConfig, fit
from vitune.training.loop import Loop
from vitune.training.mixing import SHARES, chosen_share
from vitune.training.optimiser import new_optimiser
from vitune.training.probing import Probe
from vitune.training.starting import kept_probe
from vitune.training.verdict import compare
from vitune.training.watching import Watch

DIGITS = "demo:digits?train=60"
QUICK: dict[str, Any] = {
    "data": DIGITS, "batch_size": 16, "epochs": 2, "lr": 1e-3, "precision": "fp32",
    "start": "probe", "image_size": 16,
}  # fmt: skip


class Starts(Observer):
    """Keeps what the loop is before its first step."""

    def started(self, loop: Loop) -> None:
        self.loop = loop
        assert loop.val is not None
        self.loss, self.accuracy = loop.evaluate(loop.val)


@pytest.mark.parametrize(
    "method", ["rlrr", *(pytest.param(n, marks=pytest.mark.slow) for n in ("ssf", "lora")), "full"]
)
def test_the_first_step_starts_from_the_very_probe(method: str, tmp_path: Path) -> None:
    watcher = Starts()
    trained = fit(
        TrainConfig.make({**QUICK, "epochs": 1, "method": method}),
        out=tmp_path / "run",
        observer=watcher,
    )
    probe = trained.summary.probe
    assert watcher.loss == pytest.approx(probe.val_loss, rel=1e-4)
    assert watcher.accuracy == pytest.approx(probe.val_accuracy, abs=1e-6)
    assert load_run(tmp_path / "run" / "probe", device="cpu").card.method == "linear"
    card = AdapterCard.read(tmp_path / "run" / "adapter")
    assert card.method == method
    assert card.temperature == trained.summary.calibration.temperature != 1.0


def test_every_method_with_an_identity_start_takes_it() -> None:
    for method in OWN.values():
        arguments = method.from_identity({})
        if arguments:
            assert method.configure(torch.nn.Linear(1, 1), arguments).identity_at_init, method.name
    assert OWN["rlrr"].from_identity({"init": "paper"}) == {"init": "paper"}


def test_plain_starts_are_left_alone(tmp_path: Path) -> None:
    plain = fit(TrainConfig.make({**QUICK, "epochs": 1, "start": "plain"}), out=tmp_path / "run")
    assert plain.summary.probe is None and not (tmp_path / "run" / "probe").exists()
    drawn = fit(TrainConfig.make({**QUICK, "epochs": 1, "start": None, "head_init": "linear"}))
    assert drawn.summary.probe is None
    with pytest.raises(VituneError, match=r"--start: got 'probe' with --head-init linear"):
        fit(TrainConfig.make({**QUICK, "start": "probe", "head_init": "linear"}))


def test_features_that_fall_short_are_no_place_to_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """The probe is kept for the comparison, and the run is that of a plain start."""
    by_rule = {**QUICK, "epochs": 1, "start": None, "lr": None}
    monkeypatch.setattr("vitune.training.rates.FALLS_SHORT", 1e9)
    monkeypatch.setattr("vitune.training.rates.FEWEST_STEPS", 0)
    short = fit(TrainConfig.make(by_rule)).summary
    assert short.head_lr is None and short.probe and short.verdict
    assert short.lr == OWN["rlrr"].default_lr("vitune/vit_micro_patch4_32")
    monkeypatch.setattr("vitune.training.rates.FALLS_SHORT", 0.0)
    good = fit(TrainConfig.make(by_rule)).summary
    assert good.head_lr == pytest.approx(good.lr / 10) and good.lr != short.lr


def test_the_head_has_its_own_rate() -> None:
    watcher = Starts()
    fit(TrainConfig.make({**QUICK, "epochs": 1, "head_lr": 5e-5}), observer=watcher)
    groups = new_optimiser(watcher.loop.model, 1e-3, 0.1, head_lr=5e-5).param_groups
    heads = [group for group in groups if group["lr"] == 5e-5]
    assert [sorted(p.numel() for p in group["params"]) for group in heads] == [[1280], [10]]
    whole = new_optimiser(watcher.loop.model, 1e-3, 0.1).param_groups
    assert sum(len(g["params"]) for g in groups) == sum(len(g["params"]) for g in whole)


def test_a_resumed_run_keeps_its_probe_and_its_verdict(tmp_path: Path) -> None:
    class Cut(Observer):
        def epoch_ended(self, row: dict[str, Any]) -> None:
            raise KeyboardInterrupt

    by_rule = TrainConfig.make({**QUICK, "lr": None})
    whole = fit(by_rule, out=tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        fit(by_rule, out=tmp_path / "cut", observer=Cut())
    cut = fit(out=tmp_path / "cut", resume=True)
    assert cut.summary.lr == whole.summary.lr
    assert cut.summary.verdict == whole.summary.verdict
    assert cut.summary.calibration == whole.summary.calibration
    one, two = (
        load_file(tmp_path / run / "adapter" / "adapter_model.safetensors")
        for run in ("whole", "cut")
    )
    assert all(torch.equal(one[name], two[name]) for name in one)


def kept_facts(folder: RunFolder, **changed: Any) -> RunFolder:
    """Write a run's probe.json with some values changed; "absent" leaves one out."""
    probe = replace(Probe.of_nothing(), val_loss=0.5, val_accuracy=0.25, losses=np.ones(4))
    values = {
        **asdict(probe.facts()), "train_loss": 0.1, "right": [True, False, False, False],
        "losses": probe.losses.tolist(), **changed,
    }  # fmt: skip
    folder.probe.mkdir(parents=True)
    kept = {name: value for name, value in values.items() if value != "absent"}
    (folder.probe / "probe.json").write_text(json.dumps(kept))
    return folder


def test_a_kept_probe_is_read_as_it_was_written(tmp_path: Path) -> None:
    written = {"val_loss": None, "mirror_gain": [0.5, 0.25], "chosen": {"strength": 0.1}}
    probe = kept_probe(kept_facts(RunFolder(tmp_path / "run"), **written))
    assert probe is not None
    assert (probe.val_loss, probe.val_accuracy, probe.train_loss) == (None, 0.25, 0.1)
    assert probe.mirror_gain == (0.5, 0.25) and probe.head.chosen == {"strength": 0.1}
    assert probe.right.tolist() == [True, False, False, False] and probe.losses.sum() == 4
    assert probe.pulls.size == 0  # as in runs of earlier releases
    probe = kept_probe(kept_facts(RunFolder(tmp_path / "new"), pulls=[1.0, -1.0]))
    assert probe is not None and probe.pulls.tolist() == [1, -1]


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"how": "absent"}, r"probe\.json: how: got None, expected a value"),
        ({"how": None}, "how: got None, expected a string"),
        ({"copies": 3}, "copies: got 3, expected a string"),
        ({"train_loss": float("nan")}, "train_loss: got nan, expected a finite number"),
        ({"train_loss": None}, "train_loss: got None, expected a value"),
        ({"temperature": True}, "temperature: got True, expected a number"),
        ({"val_loss": 10**400}, "val_loss: got .*, expected a number below 1e308"),
        ({"mirror_gain": "absent"}, "mirror_gain: got None, expected a value"),
        ({"mirror_gain": [float("inf"), 1]}, "got inf, expected a finite number"),
        ({"losses": {}}, "losses: got {}, expected a list"),
        ({"losses": ["x"]}, "could not convert"),
        ({"chosen": [1]}, r"chosen: got \[1\], expected a mapping"),
    ],
)
def test_a_damaged_probe_is_refused(tmp_path: Path, changed: dict[str, Any], told: str) -> None:
    folder = kept_facts(RunFolder(tmp_path / "run"), **changed)
    with pytest.raises(AdapterError, match=rf"damaged file \(.*{told}.*\), expected.*whole copy"):
        kept_probe(folder)


def test_choose_best_saves_the_probe_where_training_did_harm(tmp_path: Path) -> None:
    config = {**QUICK, "lr": 0.3, "head_lr": 0.3, "select": "last", "choose_best": True}
    trained = fit(TrainConfig.make(config), out=tmp_path / "run")
    verdict = trained.summary.verdict
    assert verdict.probe > verdict.adapted and verdict.probe_is_better
    assert trained.summary.chosen == "probe" and not verdict.paid
    assert AdapterCard.read(tmp_path / "run" / "adapter").method == "linear"
    assert AdapterCard.read(tmp_path / "run" / "adapted").method == "rlrr"
    splits = load_splits(DIGITS, trained.backbone.preprocessing, seed=0)
    kept, alone = (
        torch.cat(list(_raw(load_run(path, device="cpu"), splits.val)))
        for path in (tmp_path / "run", tmp_path / "run" / "probe")
    )
    torch.testing.assert_close(kept, alone)
    right = (kept.argmax(1).numpy() == splits.val.labels).mean()
    assert right == pytest.approx(verdict.probe)
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["asked"] == "rlrr"
    logits, labels = trained.seen
    assert (logits.argmax(1) == labels).double().mean().item() == pytest.approx(verdict.probe)
    told = trained.summary.calibration
    assert told.val_ece == expected_calibration_error(logits, labels)
    tempered = expected_calibration_error(logits / told.temperature, labels)
    assert told.val_ece_tempered == pytest.approx(tempered, abs=1e-3)
    chance = calibration_error_by_chance(logits / told.temperature)
    assert told.val_ece_by_chance == pytest.approx(chance, abs=1e-3)


def test_the_probe_s_weights_are_not_the_probe_where_inference_merges_tokens(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Validation may prefer the weights of the probe, but half of the patches are still gone."""
    monkeypatch.setattr("vitune.training.kept_weights.chosen_share", lambda *seen, **_: 0.0)
    config = {**QUICK, "epochs": 1, "tokens": "merge:0.75@0,1", "choose_best": True}
    trained = fit(TrainConfig.make({**config, "select": "auto"}))
    assert trained.summary.share == 0
    verdict, reported = trained.summary.verdict, trained.summary.reported
    assert verdict.adapted < verdict.probe
    assert trained.summary.chosen == "probe" and reported.val_accuracy == verdict.probe


def test_a_probe_kept_instead_of_an_unmergeable_method_can_be_merged() -> None:
    config = {**QUICK, "method": "vpt_deep", "lr": 30.0, "head_lr": 0.3, "select": "last"}
    summary = fit(TrainConfig.make({**config, "choose_best": True})).summary
    assert (summary.chosen, summary.method, summary.asked) == ("probe", "linear", "vpt_deep")
    assert summary.mergeable


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--choose-best", "--start", "plain"], "--choose-best: got it with --start plain"),
        (["--choose-best", "--refit"], "--choose-best: got it with --refit"),
        (["--choose-best", "--method", "linear"], "--choose-best: got it with --method linear"),
        (["--choose-best", "--method", "linear_sgd"], "--choose-best: got it with --method linear"),
        (["--choose-best", "--head-init", "linear"], "--choose-best: got it with --head-init lin"),
        (["--select", "best", "--refit"], "--select: got 'best' with --refit, which leaves no val"),
        (["--patience", "3", "--refit"], "--patience: got 3 with --refit, which leaves no val"),
        (["--speed", "fast", "--method", "linear"], "--speed: got 'fast' with --method linear"),
        (["--start", "probe", "--head-init", "linear"], "--start: got 'probe' with --head-init"),
        (["--method", "linear", "--lr", "0.1"], "--lr: got 0.1 with --method linear"),
        (["--tune", "1s"], "--tune: got 1 s, expected at least"),
        (["--tune", "soon"], "--tune: got 'soon', expected a duration"),
        (["--tune", "5m", "--method-arg", "r=8"], "--tune: got --method-arg without --method"),
        (["--tune", "5m", "--refit"], "--tune: got it together with --refit"),
        (["--tune", "5m", "--method", "linear"], "--tune: got --method linear, which is solved"),
    ],
)
def test_contradictions_are_told_on_one_line(
    options: list[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["train", "--data", DIGITS, "--out", str(tmp_path / "run"), *options]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and told in said
    assert not (tmp_path / "run").exists()


def test_the_temperature_is_applied_where_probabilities_are_given(tmp_path: Path) -> None:
    trained = fit(TrainConfig.make({**QUICK, "epochs": 1}), out=tmp_path / "run")
    splits = load_splits(DIGITS, trained.backbone.preprocessing, seed=0)
    assert splits.val is not None
    found = load_run(tmp_path / "run", device="cpu")
    logits = torch.cat(list(found.logits(splits.val)))
    plain = torch.cat(
        list(load_run(tmp_path / "run", device="cpu", merge=False).logits(splits.val))
    )
    torch.testing.assert_close(logits, plain, atol=1e-4, rtol=1e-4)
    raw = torch.cat([batch for batch in _raw(found, splits.val)])
    temperature = trained.summary.calibration.temperature
    torch.testing.assert_close(logits * temperature, raw, atol=1e-4, rtol=1e-4)


def _raw(found: Any, split: Any) -> Any:
    return replace(found, card=replace(found.card, temperature=1.0)).logits(split)


def test_a_card_with_a_temperature_that_is_none_is_refused(tmp_path: Path) -> None:
    fit(TrainConfig.make({**QUICK, "epochs": 1, "start": "plain"}), out=tmp_path / "run")
    path = tmp_path / "run" / "adapter" / "vitune.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "temperature": 0}))
    with pytest.raises(AdapterError, match=r"damaged card \(temperature: got 0"):
        AdapterCard.read(tmp_path / "run" / "adapter")


def logits_with(
    right: int, sure: float = 3.0, images: int = 200
) -> tuple[torch.Tensor, torch.Tensor]:
    """Two classes; the first `right` images are right, all equally sure."""
    labels = torch.zeros(images, dtype=torch.int64)
    signs = torch.where(torch.arange(images) < right, 1.0, -1.0)
    return torch.stack([sure * signs, torch.zeros(images)], 1), labels


def test_the_watch_stops_where_order_gets_worse_not_where_confidence_grows() -> None:
    surer = Watch.over(10)
    for epoch in range(1, 11):
        surer.saw(epoch, *logits_with(160, sure=1.0 + epoch))
    assert not surer.has_turned and surer.kept_epoch == 10
    worse = Watch.over(10)
    assert worse.saw(0, *logits_with(120))
    assert worse.saw(1, *logits_with(160))
    assert not any(worse.saw(epoch, *logits_with(130)) for epoch in (2, 3))
    assert worse.kept_epoch == 1 and not worse.has_turned
    for epoch in (4, 5, 6):
        assert not worse.has_turned
        worse.saw(epoch, *logits_with(130))
    assert worse.has_turned and worse.best_epoch == 1
    hardly = Watch.over(10)
    for epoch, right in enumerate((160, 159, 159, 159, 159, 159)):
        hardly.saw(epoch, *logits_with(right))
    assert not hardly.has_turned


def test_training_is_kept_as_far_as_it_is_better_by_more_than_chance() -> None:
    generator = torch.Generator().manual_seed(0)
    probe = torch.rand(200, generator=generator) + 1
    noise = torch.randn(200, generator=generator)
    noise -= noise.mean()

    def along(slope: float, bend: float) -> list[torch.Tensor]:
        """Losses at every share: a gain, a loss that grows with its square, an error."""
        return [probe - slope * t + bend * t**2 + 0.4 * t * noise for t in SHARES]

    assert chosen_share(along(0.3, 0.0)) == 1.0
    assert chosen_share(along(0.3, 0.3)) in (0.25, 0.5)
    assert chosen_share(along(0.0, 0.0)) == 0.0, "a tie goes to the probe"
    assert chosen_share(along(-0.2, 0.0)) == 0.0
    assert chosen_share([probe] * len(SHARES)) == 0.0


def test_what_lies_between_is_what_is_saved(tmp_path: Path) -> None:
    """With any share the weights are that far from the probe, and the scores are theirs."""
    config = TrainConfig.make({**QUICK, "epochs": 1, "lr": 3e-3})
    for share in (0.0, 0.5, 1.0):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                "vitune.training.kept_weights.chosen_share", lambda losses, told=share, **_: told
            )
            watcher = Starts()
            found = fit(config, out=tmp_path / str(share), observer=watcher)
        summary = found.summary
        assert summary.share == share and (summary.reported.epoch == 0) == (share == 0)
        assert found.seen is not None and summary.probe is not None
        again = watcher.loop.evaluate(watcher.loop.val)[1]
        assert again == pytest.approx(summary.reported.val_accuracy, abs=1e-6)
        if share == 0:
            assert again == pytest.approx(summary.probe.val_accuracy, abs=1e-6)
    start, half, whole = (
        load_file(tmp_path / share / "adapter" / "adapter_model.safetensors")
        for share in ("0.0", "0.5", "1.0")
    )
    assert any(not torch.equal(start[name], whole[name]) for name in start)
    for name in half:
        torch.testing.assert_close(half[name], (start[name] + whole[name]) / 2)


def test_a_share_that_is_known_holds_without_validation() -> None:
    config = TrainConfig.make({**QUICK, "epochs": 1, "refit": True})
    whole, half = (fit(config, share=share) for share in (1.0, 0.5))
    assert half.summary.share == 0.5 and half.summary.reported.val_accuracy is None
    moved = [
        (one - other).abs().max().item()
        for one, other in zip(whole.model.parameters(), half.model.parameters(), strict=True)
        if one.requires_grad
    ]
    assert max(moved) > 0
    assert fit(config).summary.share is None


def test_paired_differences_have_the_error_of_a_mean() -> None:
    generator = torch.Generator().manual_seed(0)
    means = []
    for _ in range(400):
        first = torch.randn(50, generator=generator) + 0.2
        means.append(paired(first, torch.zeros(50)))
    spread = torch.tensor([mean for mean, _ in means]).std().item()
    assert spread == pytest.approx(sum(error for _, error in means) / 400, rel=0.15)
    assert paired(torch.ones(1), torch.zeros(1))[1] == float("inf")


def test_rounding_is_neither_gain_nor_loss_where_the_probe_was_kept() -> None:
    logits, labels = logits_with(10, images=20)
    probe = replace(
        Probe.of_nothing(),
        right=(logits.argmax(1) == labels).numpy(),
        losses=calibrated_losses(logits, labels).numpy(),
    )
    for rounded in (logits * torch.linspace(0.99, 1.0, 20)[:, None], logits.bfloat16().float()):
        found = compare(probe, rounded, labels, share=0.0)
        assert found is not None and (found.gain, found.loss_gain) == (0, 0)
        assert not found.paid and not found.probe_is_better
    trained = compare(probe, logits * torch.linspace(0.9, 1.0, 20)[:, None], labels, share=1.0)
    assert trained is not None and trained.loss_gain != 0


def test_no_verdict_on_other_images() -> None:
    logits, labels = logits_with(10, images=20)
    assert compare(Probe.of_nothing(), logits, labels) is None
