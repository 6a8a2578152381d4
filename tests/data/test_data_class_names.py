"""Class names that look alike: told apart in errors and remarks."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from PIL import Image

from vitune.data import inspect_images, open_source
from vitune.errors import DataError

ONE, TWO = "caf\u00e9", "cafe\u0301"
"""The same word, with one character for the last letter and with two, as macOS writes it."""


def paint(folder: Path, *names: str) -> str:
    for shade, name in enumerate(names):
        (folder / name).mkdir(parents=True)
        for index in range(2):
            Image.new("RGB", (8, 8), (40 * shade, 60 * index, 9)).save(
                folder / name / f"{index}.png"
            )
    return str(folder)


def test_a_class_that_looks_like_the_model_s_is_spelt_out(tmp_path: Path) -> None:
    listed = open_source(paint(tmp_path / "photos", TWO, "tea"))
    with pytest.raises(DataError) as caught:
        listed.relabelled((ONE, "tea"))
    told = str(caught.value)
    assert r"got 'cafe\u0301', expected" in told and r"looks like 'caf\xe9' but has other" in told
    shutil.rmtree(tmp_path / "photos" / TWO)
    with pytest.raises(DataError, match=r"got 'coffee', .* Did you mean"):
        open_source(paint(tmp_path / "photos", "coffee")).relabelled((ONE, "toffee"))


def test_classes_that_look_alike_are_spelt_out_in_a_remark(tmp_path: Path) -> None:
    (found,) = (
        remark
        for remark in inspect_images(paint(tmp_path / "photos", ONE, TWO, "tea ", "Tea")).remarks
        if remark.kind == "alike_classes"
    )
    assert any(r"'caf\xe9' (2 images)" in n and r"'cafe\u0301' (2" in n for n in found.names)
    assert any("'Tea' (2 images), 'tea ' (2 images)" in name for name in found.names)
