"""The generated page is in step, the tutorial's code runs, and rows say what adapters are."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from peft import get_peft_model
from peft.mapping import (
    PEFT_TYPE_TO_CONFIG_MAPPING,
    PEFT_TYPE_TO_PREFIX_MAPPING,
    PEFT_TYPE_TO_TUNER_MAPPING,
)
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer

from vitune.backbones import find_sites
from vitune.methods import METHODS, OWN
from vitune.methods.catalogue import method_rows, methods_page

DOCS = Path(__file__).resolve().parents[3] / "docs"


def test_methods_page_is_in_step() -> None:
    assert (DOCS / "methods.md").read_text() == methods_page()


def _load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def tutorial(tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """The page's two blocks of code as files; what they register is forgotten again."""
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / "adding-a-method.md").read_text(), re.S)
    assert len(blocks) == 2
    paths = tmp_path / "input_scale.py", tmp_path / "trial.py"
    for path, code in zip(paths, blocks, strict=True):
        path.write_text(code)
    yield paths
    for table in (
        PEFT_TYPE_TO_CONFIG_MAPPING,
        PEFT_TYPE_TO_TUNER_MAPPING,
        PEFT_TYPE_TO_PREFIX_MAPPING,
    ):
        for name in [key for key in table if key.startswith("INPUT_SCALE")]:
            del table[name]
    for name in ("input_scale", "trial"):
        sys.modules.pop(name, None)


def test_tutorial_is_a_complete_method(
    tutorial: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    method, trial = tutorial
    config_class = _load(method).InputScaleConfig
    _load(trial)
    printed = capsys.readouterr().out
    assert float(printed.rpartition(":")[2]) < 1e-5
    network = VisionTransformer(img_size=16, patch_size=8, embed_dim=32, depth=2, num_heads=2)
    config = config_class()
    expected = config.num_parameters(network, config.choose(find_sites(network)))
    x = torch.randn(2, 3, 16, 16)
    before = network.eval()(x)
    model = get_peft_model(network, config).eval()
    torch.testing.assert_close(model(x), before)
    trained = [n for n, p in model.named_parameters() if p.requires_grad and "head" not in n]
    assert sum(model.get_parameter(n).numel() for n in trained) == expected == 2 * (32 + 128)
    assert 50 <= len(method.read_text().splitlines()) <= 80


def test_rows_of_a_small_swin_count_or_refuse() -> None:
    model = SwinTransformer(
        img_size=32, patch_size=4, embed_dim=16, depths=(1, 1), num_heads=(2, 2), window_size=4
    )
    rows = method_rows(model, (32, 32), [*OWN.values(), METHODS["lora"], METHODS["c3a"]])
    assert len(rows) == len(OWN) + 2
    by_name = {row.name: row for row in rows}
    assert not any(parameter.is_meta for parameter in model.parameters())
    assert "attends in windows" in by_name["vpt_deep"].refusal
    assert by_name["vpt_deep"].num_parameters is None
    assert by_name["c3a"].refusal.startswith("PEFT: The block size")
    assert by_name["ssf"].roles[:2] == ("patch_embed", "norm1")
    for row in rows:
        if not row.refusal:
            assert row.num_parameters is not None and row.extra_gflops is not None
            assert row.megabytes is not None
            assert row.megabytes * 1e6 > 4 * row.num_parameters - 1
            replaces_head = row.roles == ("head",)  # and may cost less than the classifier did
            assert row.extra_gflops >= -1e-9 or replaces_head
        assert json.loads(json.dumps(row.as_dict()))["name"] == row.name
    assert by_name["lora"].mergeable is None
