"""Published scores: whole tables, and which backbones they speak of."""

from __future__ import annotations

import numpy as np
import pytest

from vitune.bench.tables.published import pretraining_of, published_row, published_rows, suite_of


def test_published_tables_are_whole() -> None:
    vtab, fgvc = published_rows("vtab1k"), published_rows("fgvc")
    assert (len(vtab), len(fgvc)) == (16, 14)
    assert all(len(row.accuracies) == 19 for row in vtab)
    assert all(len(row.accuracies) == 5 for row in fgvc)
    for row in (*vtab, *fgvc):
        assert row.mean == pytest.approx(np.mean(list(row.accuracies.values())), abs=0.012)
    row = published_row("vtab1k", "rlrr", "in21k_augreg")
    assert row is not None and row.mean == pytest.approx(0.751)
    assert published_row("vtab1k", "rlrr", None) is None
    assert published_rows("demo") == ()
    assert suite_of(["cub"]) == "fgvc" and suite_of(["digits"]) is None and suite_of([]) is None


AUGREG_FILE = "B_16-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.0-sd_0.0"


@pytest.mark.parametrize(
    ("backbone", "checkpoint", "image_size", "column"),
    [
        ("vit_base_patch16_224.orig_in21k", None, None, "in21k"),
        ("vit_base_patch16_224.orig_in21k", None, 224, "in21k"),
        ("vit_base_patch16_224.orig_in21k", None, 384, None),
        ("vit_base_patch16_224@weights/ViT-B_16.npz", None, None, "in21k"),
        ("vit_base_patch16_224", "weights/ViT-B_16.npz", None, "in21k"),
        ("vit_base_patch16_224", f"{AUGREG_FILE}.npz", None, "in21k_augreg"),
        ("vit_base_patch16_224", f"{AUGREG_FILE}--imagenet2012-steps_20k-lr_0.01.npz", None, None),
        ("vit_base_patch16_224.augreg_in21k", None, None, "in21k_augreg"),
        ("vit_base_patch16_224.augreg_in21k", "my own.pth", None, None),
        ("vit_base_patch16_224.augreg_in21k_ft_in1k", None, None, None),
        ("vit_base_patch16_224_miil.in21k", None, None, None),
        ("vit_base_patch16_224.mae", None, None, None),
        ("vit_large_patch16_224.augreg_in21k", None, None, None),
        ("vit_large_patch16_224", "ViT-B_16.npz", None, None),
        ("vitune/vit_micro_patch4_32", None, None, None),
    ],
)
def test_only_the_papers_own_backbones_have_a_column(
    backbone: str, checkpoint: str | None, image_size: int | None, column: str | None
) -> None:
    config = {"backbone": backbone, "checkpoint": checkpoint, "image_size": image_size}
    assert pretraining_of(config) == column
