"""The correction of a temperature that was fitted to a few hundred validation images."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from vitune.inference import load_run
from vitune.methods import SAMPLE_RATIO, HeadProblem, Labelled, get_method
from vitune.ops import fit_temperature, temperature_pulls
from vitune.runs import RunFolder
from vitune.training import fit
from vitune.training.starting import kept_probe
from vitune.training.verdict import calibration


def test_cross_validation_tells_how_hard_the_validation_images_are() -> None:
    """Known answer: the temperature over 5,000 more images, six times, with 60 of 620 held out."""
    rng = np.random.default_rng(1)
    config = get_method("linear").configure(torch.nn.Linear(1, 1), {})
    plain, corrected = [], []
    for seed in range(6):
        features = rng.normal(size=(5_620, 8)).astype(np.float32)
        scores = features @ rng.normal(size=(8, 3)) + 2 * rng.gumbel(size=(5_620, 3))
        labels = scores.argmax(1)
        train, val, more = (
            Labelled(features[part], labels[part])
            for part in (slice(560), slice(560, 620), slice(620, None))
        )
        head = config.solve(HeadProblem(train, val, 3, None, seed))
        found, truth = (
            fit_temperature(head.logits(part.features), torch.from_numpy(part.labels))
            for part in (val, more)
        )
        plain.append(np.log(found / truth))
        corrected.append(np.log(found * head.chosen[SAMPLE_RATIO] / truth))
    assert np.sqrt(np.mean(np.square(corrected))) < 0.7 * np.sqrt(np.mean(np.square(plain)))


def test_a_pull_is_how_far_an_image_moves_the_temperature() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(50, 4, generator=generator)
    labels = (logits + 3 * torch.randn(50, 4, generator=generator)).argmax(1)
    fitted = fit_temperature(logits, labels)
    pulls = temperature_pulls(logits, labels, fitted)
    assert pulls.mean().abs() < 1e-6
    many = torch.arange(50).repeat(40)  # one image more of 2,000 is a small step
    for index in (pulls.argmin(), pulls.argmax()):
        more = torch.cat([many, index[None]])
        all_but_one = fit_temperature(logits[many], labels[many])
        moved = math.log(fit_temperature(logits[more], labels[more]) / all_but_one)
        assert moved == pytest.approx(pulls[index].item() / 2001, rel=0.15)


def test_the_stored_temperature_is_corrected_as_far_as_the_network_is_the_probe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vitune.methods.linear.FEWEST_IMAGES", 80)
    trained = fit(data="demo:digits?train=100", epochs=1, choose_best=False, out=tmp_path / "run")
    assert trained.summary.probe is not None and trained.seen is not None
    ratio, fitted = trained.summary.probe.chosen[SAMPLE_RATIO], fit_temperature(*trained.seen)
    stored = load_run(tmp_path / "run").card.temperature
    assert 0 < math.log(stored / fitted) / math.log(ratio) <= 1
    own = trained.summary.probe.temperature
    assert load_run(tmp_path / "run" / "probe").card.temperature == pytest.approx(own * ratio)
    probe = kept_probe(RunFolder(tmp_path / "run"))
    assert calibration(trained.seen, probe=probe).temperature == pytest.approx(stored, rel=1e-4)
    assert calibration(trained.seen).temperature == pytest.approx(fitted)
    opposite = replace(probe, pulls=-probe.pulls)
    assert calibration(trained.seen, probe=opposite).temperature == pytest.approx(fitted)
