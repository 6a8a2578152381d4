"""Studies of images that belong together: results know the groups, and intervals count them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vitune.bench.study.cells import CellResult, Scores
from vitune.bench.study.execution import InProcess
from vitune.bench.study.protocol import run_study
from vitune.bench.study.scores import packed, packed_groups, unpacked_groups
from vitune.bench.study.workbench import Workbench
from vitune.bench.tables.study_table import make_table

Make = Callable[..., Any]


def test_groups_survive_packing() -> None:
    groups = np.array([7, 7, -3, 900, 7, 900])
    assert unpacked_groups(packed_groups(groups)).tolist() == [1, 1, 0, 2, 1, 2]
    assert len(packed_groups(np.repeat(np.arange(2000), 5))) < 8000


@pytest.mark.parametrize("given", ["column", "pattern", "both", "nothing"])
def test_results_say_which_images_belong_together(
    given: str, tiny_study: Make, photos: Make, bench: Workbench, tmp_path: Path
) -> None:
    root = photos(splits={"train": 4, "test": 4})
    lines = ["path,label,split" + (",group" if given in ("column", "both") else "")]
    for path in sorted(root.rglob("*.bmp")):
        split, label = path.relative_to(root).parts[:2]
        group = f",{label}{int(path.stem) // 2}" if given in ("column", "both") else ""
        lines.append(f"{path},{label},{split}{group}")
    table = tmp_path / "photos.csv"
    table.write_text("\n".join(lines))
    settings = {"batch_size": 4, **({"groups": r"\d\.bmp"} if given in ("pattern", "both") else {})}
    task = {"name": "photos", "data": str(table)}
    study = tiny_study(tasks=[task], settings=settings, seeds=[0])
    (result,) = run_study(study, tmp_path / "out", executor=InProcess(bench)).results
    assert result.scores is not None, result.error
    found = result.scores.groups
    by_name = [0, 1, 2, 3, 0, 1, 2, 3]
    expected = {"column": [0, 0, 1, 1, 2, 2, 3, 3], "pattern": by_name, "both": by_name}
    assert (None if found is None else unpacked_groups(found).tolist()) == expected.get(given)


def test_a_table_counts_groups_and_not_images(result: Make) -> None:
    """The same eighty answers, each of its own image or ten of each of eight objects."""
    rng = np.random.default_rng(0)
    objects = np.repeat(np.arange(8), 10)

    def widths(groups: Sequence[int] | None) -> float:
        made: list[CellResult] = []
        for label, share in (("a", 0.8), ("b", 0.4)):
            easy = np.random.default_rng(len(label) + int(10 * share)).random(8) < share
            right = easy[objects] ^ (np.random.default_rng(5).random(80) < 0.05)
            text = None if groups is None else packed_groups(np.asarray(groups))
            scores = Scores("test", 80, float(right.mean()), 1.0, 0.1, packed(right), text)
            made.append(result(label, scores=scores))
        (found,) = make_table(made).differences
        assert found.on_these is not None
        return found.on_these.high - found.on_these.low

    alone = widths(None)
    assert widths(rng.permutation(80)) == pytest.approx(alone)  # each in a group of its own
    assert widths(objects) > 2 * alone
