"""The generated page is in step, the tutorial's code runs, and rows say what adapters are."""

from __future__ import annotations

import json
import re
import runpy
from pathlib import Path

import pytest
from timm.models.swin_transformer import SwinTransformer

from vitune.methods import METHODS, OWN
from vitune.methods.catalogue import method_rows, methods_page

DOCS = Path(__file__).resolve().parents[3] / "docs"
EXAMPLES = DOCS.parent / "examples" / "my-method" / "my_method"


def test_methods_page_is_in_step() -> None:
    assert (DOCS / "methods.md").read_text() == methods_page()


@pytest.mark.usefixtures("tables")
def test_tutorial_shows_the_examples_and_its_trial_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / "adding-a-method.md").read_text(), re.S)
    examples = [EXAMPLES / f"{name}.py" for name in ("magnitude", "svfit")]
    assert blocks[:-1] == [path.read_text() for path in examples]
    (tmp_path / "magnitude.py").write_text(blocks[0])
    (tmp_path / "trial.py").write_text(blocks[-1])
    monkeypatch.chdir(tmp_path)
    runpy.run_path("trial.py")
    assert float(capsys.readouterr().out.rpartition(":")[2]) < 1e-5
    for path in examples:
        lines = len(path.read_text().splitlines())
        page = (DOCS / "adding-a-method.md").read_text()
        assert lines <= 40 and re.search(rf"\| `{path.stem}`: .* \| {lines} \| 1 \| 0 \|", page)


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
