"""The report shows what the files say, all of it escaped, and fetches nothing."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from report_files import SUMMARY, THUMBNAIL, Page, epoch_line, evaluation, png

from vitune.errors import VituneError
from vitune.report import write_report
from vitune.run_summary import Calibration, Verdict

Maker = Callable[..., Path]
Parser = Callable[[Path], Page]
SVG = '<svg width="300pt" height="9pt" xmlns="x"><script>alert(1)</script></svg>'
ANIMALS = ["cat", "dog", "owl"]


def test_a_full_run_has_every_section(run_dir: Maker, page_of: Parser) -> None:
    run = run_dir(evaluations=[evaluation(ANIMALS), evaluation(ANIMALS, "val")])
    analysis = run / "analysis"
    analysis.mkdir()
    (analysis / "drift.png").write_bytes(png())
    (analysis / "heat.svg").write_text(SVG)
    (analysis / "captions.json").write_text(json.dumps({"drift.png": "How far <W> moved."}))
    (analysis / "spectrum.json").write_text(
        json.dumps({"runs": {}, "summary": {"run": {"deviation": 0.0712, "intruders": 4}}})
    )
    out = write_report(run)
    assert out == run / "report.html"
    page = page_of(out)
    ids = [attrs["id"] for _, attrs in page.elements if "id" in attrs]
    assert len(ids) == len(set(ids))
    assert {"scores", "training", "parameters", "e0", "e1", "spectrum", "provenance"} <= set(ids)
    links = [href[1:] for href in page.attributes("a", "href")]
    assert set(links) <= set(ids)
    assert page.count("h1") == 1
    assert all(page.attributes("img", "alt"))
    assert len(page.attributes("img", "alt")) == page.count("img")
    pictures = [attrs for tag, attrs in page.elements if tag == "svg"]
    assert pictures and all(attrs["role"] == "img" and attrs["aria-label"] for attrs in pictures)
    assert "How far <W> moved." in page.text
    assert "0.0712" in page.text and "intruders" in page.text
    for kind, content in (("png", png()), ("svg+xml", SVG.encode())):
        embedded = f"data:image/{kind};base64," + base64.b64encode(content).decode()
        assert embedded in page.attributes("img", "src")
    assert "width:400px" in page.attributes("figure", "style")
    assert page.count("script") == 1


def test_shown_values_are_those_of_the_files(run_dir: Maker, page_of: Parser) -> None:
    run = run_dir(evaluations=[evaluation(ANIMALS, per_class=125)])
    text = page_of(write_report(run)).text
    for shown in (
        "RLRR",
        "vit_base_patch16_224",
        "Top-1 accuracy, test 96.8 %",
        "95 % interval 94.5 % to 98.2 %, 375 images",
        "288,768",
        "0.34 % of the model",
        "86,095,114",
        "12 min 14 s",
        "3.33 GiB",
        "1.14 MiB",
        "Trained on 800 images of 3 classes from photos/.",
        "The weights kept are those of epoch 3, the last.",
        "Held out for validation: 20 % of training, stratified.",
        "96.80 %",
        "97.50 %",
        "0.4321",
        "6.25 %",
        "27,648",
        "82,944",
        "2026-07-01 12:34 UTC",
        "method_args",
        "rank=1",
        "On average the model says 85.0 % and is right in 85.0 %",
        "cat → dog 3 2.4 %",
    ):
        assert shown in text, shown


def test_what_validation_says_is_on_the_page(run_dir: Maker, page_of: Parser) -> None:
    """The same sentences that `vitune train` ends with, and no other claim of what is kept."""
    run = run_dir()
    facts = json.loads((run / "summary.json").read_text())
    facts["share"] = 0.5
    facts["verdict"] = asdict(Verdict(0.8, 0.7, 0.1, 0.03, 0.2, 0.01, 200))
    facts["calibration"] = asdict(Calibration(1.5, 0.2, 0.1, 0.07))
    (run / "summary.json").write_text(json.dumps(facts))
    text = page_of(write_report(run)).text
    assert "Kept: weights 50 % of the way from the solved probe to epoch 3" in text
    assert "Adapting helped: 80.0 % against 70.0 % of the solved linear probe" in text
    assert "the probe is in ./probe." in text and "10.0 % with it, 7.0 % by chance alone." in text
    assert "The weights kept are those" not in text and "mixed with those of the probe." in text


def test_every_epoch_is_listed_and_the_kept_one_marked(run_dir: Maker, page_of: Parser) -> None:
    page = page_of(write_report(run_dir()))
    assert _table_line(page, "kept") == "3 75 0.6667 0.8333 75.00 % 0.0003333 412.5 12 s"
    assert page.count("tr", "kept") == 1
    assert page.count("line", "marked") == 3
    titles = [data for tag, data in page.texts if tag == "title"]
    assert "epoch 2, validation: 1.25" in titles
    assert "epoch 2, training: 0.0005" in titles


def _table_line(page: Page, css_class: str) -> str:
    line = re.search(rf'<tr class="{css_class}">(.*?)</tr>', page.html, re.S)
    assert line
    cells = re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", line[1])
    return " ".join(cells).replace("\xa0", " ")


def test_confusion_cells_carry_the_counts(run_dir: Maker, page_of: Parser) -> None:
    page = page_of(write_report(run_dir(evaluations=[evaluation(ANIMALS)])))
    titles = [data for tag, data in page.texts if tag == "title"]
    assert "cat: 16 of 20 recognised (80.0\xa0%)" in titles
    assert "owl: 1 of 20 predicted as dog (5.0\xa0%)" in titles
    assert page.count("g", "wrong") == 6


def test_class_table_sorts_by_the_values_of_the_file(run_dir: Maker, page_of: Parser) -> None:
    found = evaluation(ANIMALS)
    for entry, f1 in zip(found["per_class"], (0.9, 0.2, None), strict=True):
        entry["f1"] = f1
    page = page_of(write_report(run_dir(evaluations=[found])))
    assert page.count("table", "sortable") == 1
    names = [
        attrs["data-value"]
        for tag, attrs in page.elements
        if tag == "th" and "class-name" in attrs.get("class", "")
    ]
    assert names == ["dog", "cat", "owl"]
    values = page.attributes("td", "data-value")
    assert values[:4] == ["20", "0.8", "0.8125", "0.2"]
    assert values[-1] == "-1"


def test_names_from_users_are_escaped(run_dir: Maker, page_of: Parser) -> None:
    nasty = "<script>alert('x')</script>"
    quoted = '"><img src=http://x.example/a onerror=alert(1)>'
    found = evaluation([nasty, quoted, "ok"])
    found["mistakes"][0]["path"] = f"{nasty}/{quoted}.jpg"
    found["name"] = "test"
    found["data"] = nasty
    summary = SUMMARY | {"held_out": nasty, "backbone": quoted, "versions": {nasty: quoted}}
    summary["trained_parts"] = [{"role": nasty, "count": 1, "parameters": 5}]
    run = run_dir(evaluations=[found], summary=summary, config={nasty: quoted, "data": [nasty]})
    page = page_of(write_report(run))
    assert page.count("script") == 1
    assert page.fetched() == []
    assert not [name for _, attrs in page.elements for name in attrs if name.startswith("on")]
    assert nasty in page.text and quoted in page.text


def test_the_page_fetches_nothing_and_allows_only_its_own_script(
    run_dir: Maker, page_of: Parser
) -> None:
    page = page_of(write_report(run_dir(evaluations=[evaluation(ANIMALS)])))
    assert page.fetched() == []
    assert not re.search(r"https?:|@import|url\(", page.html)
    (policy,) = [
        attrs["content"] for _, attrs in page.elements if "Policy" in attrs.get("http-equiv", "")
    ]
    (script,) = re.findall(r"<script>(.*?)</script>", page.html, re.S)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy


@pytest.mark.parametrize("missing", ["metrics.jsonl", "summary.json", "config.yaml", "evaluation"])
def test_absent_files_leave_their_sections_out(
    run_dir: Maker, page_of: Parser, missing: str
) -> None:
    evaluations = [] if missing == "evaluation" else [evaluation(ANIMALS)]
    run = run_dir(evaluations=evaluations)
    (run / missing).unlink(missing_ok=True)
    page = page_of(write_report(run))
    ids = {attrs["id"] for _, attrs in page.elements if "id" in attrs}
    sections = {"metrics.jsonl": "training", "summary.json": "parameters", "evaluation": "scores"}
    for name, section in sections.items():
        assert (section in ids) == (name != missing)
    assert ("settings" in page.text) == (missing != "config.yaml")
    assert "None" not in page.text


def test_a_summary_of_little_more_than_a_method(run_dir: Maker, page_of: Parser) -> None:
    run = run_dir(summary={"method": "linear"}, epochs=[])
    text = page_of(write_report(run)).text
    assert "linear" in text and "Not scored yet" in text
    assert "None" not in text


@pytest.mark.parametrize(
    "gone", ["confusion", "per_class", "calibration", "mistakes", "top5", "nll", "ece", "data"]
)
def test_an_evaluation_may_lack_a_part(run_dir: Maker, page_of: Parser, gone: str) -> None:
    found = evaluation(ANIMALS)
    del found[gone]
    page = page_of(write_report(run_dir(evaluations=[found])))
    assert "80.0 %" in page.text
    assert page.count("svg", "heat") == (gone != "confusion")
    assert page.count("ul", "gallery") == (gone != "mistakes")
    assert ("Calibration" in page.text) == (gone != "calibration")


def test_one_epoch_shows_figures_instead_of_curves(run_dir: Maker, page_of: Parser) -> None:
    page = page_of(write_report(run_dir(epochs=[epoch_line(1)])))
    assert page.count("path", "curve") == 0
    assert "A single epoch gives no curve" in page.text
    assert "412.5" in page.text


def test_gaps_in_validation_leave_gaps_in_the_curve(run_dir: Maker, page_of: Parser) -> None:
    lines = [epoch_line(number) for number in range(1, 6)]
    lines[2] = epoch_line(3, val_loss=None, val_accuracy=None, train_loss=float("nan"))
    page = page_of(write_report(run_dir(epochs=lines)))
    paths = [attrs["d"] for tag, attrs in page.elements if "curve" in attrs.get("class", "")]
    assert [path.count("M") for path in paths] == [2, 2, 2, 1]


def test_a_run_without_summary_is_told_to_be_unfinished(run_dir: Maker, page_of: Parser) -> None:
    text = page_of(write_report(run_dir(summary=None))).text
    assert "not finished" in text
    assert "As of epoch 3; the run has not finished." in text


@pytest.mark.parametrize(("which", "told"), [("best", True), ("last", False)])
def test_a_score_that_chose_the_epoch_is_told_to_be_optimistic(
    run_dir: Maker, page_of: Parser, which: str, told: bool
) -> None:
    summary = SUMMARY | {"reported": {"which": which, "epoch": 2, "val_accuracy": 0.75}}
    text = page_of(write_report(run_dir(summary=summary))).text
    assert "Top-1 accuracy, validation 75.0 %" in text
    assert "95 % interval 68.6 % to 80.5 %, 200 images" in text
    assert ("optimistic" in text) is told
    run = run_dir(summary=summary, evaluations=[evaluation(ANIMALS)])
    assert "optimistic" not in page_of(write_report(run)).text


def test_the_test_split_is_the_headline(run_dir: Maker, page_of: Parser) -> None:
    names = ("val", "photos_test", "test", "garden")
    found = [evaluation(ANIMALS, name, per_class=20 + index) for index, name in enumerate(names)]
    page = page_of(write_report(run_dir(evaluations=found)))
    assert "Top-1 accuracy, test" in page.text
    order = re.findall(r"On (\w+) \d+ images", page.text)
    assert order == ["test", "photos_test", "garden", "val"]
    opened = [attrs for tag, attrs in page.elements if tag == "details" and "open" in attrs]
    assert len(opened) == 1


@pytest.mark.parametrize("num_classes", [2, 12, 21, 41, 320])
def test_any_number_of_classes(run_dir: Maker, page_of: Parser, num_classes: int) -> None:
    classes = [f"class {index}" for index in range(num_classes)]
    page = page_of(write_report(run_dir(evaluations=[evaluation(classes, per_class=9)])))
    assert page.count("svg", "heat") == 1
    assert (page.count("svg", "labelled") == 1) == (num_classes <= 40)
    assert ("each square sums" in page.text) == (num_classes > 150)
    assert page.count("th", "class-name") == num_classes


def test_odd_names_survive(run_dir: Maker, page_of: Parser) -> None:
    odd = ["x" * 300, "日本語の長い名前" * 4, "\udc80 broken"]
    page = page_of(write_report(run_dir(evaluations=[evaluation(odd)])))
    assert "x" * 300 in page.attributes("bdi", "title")
    assert "? broken" in page.text


def test_most_confident_mistakes_come_first_with_pictures(run_dir: Maker, page_of: Parser) -> None:
    found = evaluation(ANIMALS)
    page = page_of(write_report(run_dir(evaluations=[found])))
    shown = re.findall(r"says dog, (\S+) % is cat", page.text)
    assert shown == ["90.3", "90.2", "90.1", "90.0"]
    assert page.attributes("img", "src").count(THUMBNAIL) == 2
    assert page.count("div", "no-picture") == 2
    found["mistakes"] *= 20
    text = page_of(write_report(run_dir(evaluations=[found]))).text
    assert "The 48 most confident of 80." in text


def test_commands_quote_the_folder_and_skip_what_cannot_be(
    tmp_path: Path, run_dir: Maker, page_of: Parser
) -> None:
    summary: dict[str, Any] = SUMMARY | {"mergeable": False, "skipped_images": 2}
    run = run_dir(summary=summary).rename(tmp_path / "my run")
    text = page_of(write_report(run)).text
    assert f"vitune predict '{run}' new_images/ --top-k 3" in text
    assert "vitune merge" not in text and "cannot be merged" in text
    assert "2 unreadable images skipped" in text


def test_out_names_another_file(run_dir: Maker, tmp_path: Path) -> None:
    run = run_dir()
    target = tmp_path / "pages" / "mine.html"
    assert write_report(run, target) == target
    assert target.is_file() and not (run / "report.html").exists()
    with pytest.raises(VituneError, match=r"out: got the folder .* expected a file name"):
        write_report(run, tmp_path)


def test_the_colours_of_text_have_contrast() -> None:
    styles = Path(write_report.__code__.co_filename).with_name("templates") / "styles.css"
    light, dark = re.findall(r":root \{(.*?)\}", styles.read_text(), re.S)
    schemes = [dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", part)) for part in (light, dark)]
    for colours in schemes:
        for text in ("ink", "quiet", "main", "wrong"):
            for ground in ("ground", "surface"):
                assert _contrast(colours[text], colours[ground]) >= 4.5
        assert _contrast(colours["on-main"], colours["main"]) >= 4.5
        assert _contrast(colours["on-wrong"], colours["wrong"]) >= 4.5


def _contrast(one: str, other: str) -> float:
    """WCAG's ratio (lighter + 0.05) / (darker + 0.05) of relative luminances."""
    low, high = sorted((_luminance(one), _luminance(other)))
    return (high + 0.05) / (low + 0.05)


def _luminance(colour: str) -> float:
    parts = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    linear = [
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
