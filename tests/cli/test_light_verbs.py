"""Verbs that read files or architectures answer without loading what they do not need."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from vitune.cards import AdapterCard
from vitune.cli import run
from vitune.preprocessing import Preprocessing

HEAVY = ("torch", "timm", "peft", "transformers", "torchvision", "sklearn", "matplotlib", "pandas")


def write_adapter(folder: Path) -> Path:
    """An adapter as far as its card goes."""
    folder.mkdir()
    card = AdapterCard(
        method="rlrr",
        method_args={},
        backbone="vitune/vit_micro_patch4_32",
        backbone_args={},
        preprocessing=Preprocessing((32, 32), (0.5,) * 3, (0.5,) * 3),
        classes=("cat", "dog"),
        fingerprint="v1-0123456789abcdef",
    )
    card.write(folder)
    return folder


def light(*arguments: str) -> str:
    """Standard output of a command that must load none of the heavy libraries."""
    code = (
        "import sys\n"
        "from vitune.cli import run\n"
        f"assert run({list(arguments)!r}) == 0\n"
        f"loaded = [name for name in {HEAVY!r} if name in sys.modules]\n"
        "assert not loaded, loaded"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_info_reads_json_and_loads_no_framework(tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "adapter")
    assert json.loads(light("info", str(adapter), "--json"))["classes"] == ["cat", "dog"]


def test_version_names_the_libraries_that_decide_results() -> None:
    shown = light("--version")
    assert shown.startswith("vitune ") and shown.count("\n") == 1
    for name in ("python", "torch", "timm", "peft", "transformers"):
        assert f"{name} " in shown


def test_python_m_vitune_is_the_command_line_too() -> None:
    module = [sys.executable, "-X", "importtime", "-m", "vitune", "--version"]
    done = subprocess.run(module, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "vitune 0" in done.stdout
    assert "| torch\n" not in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        pytest.param(("--help",), marks=pytest.mark.slow),
        pytest.param(("bench", "run", "--help"), marks=pytest.mark.slow),
        ("nonsense",),
    ],
)
def test_both_ways_to_call_it_behave_the_same(arguments: tuple[str, ...]) -> None:
    script = Path(sys.executable).with_name("vitune")
    if not script.is_file():
        pytest.skip("vitune is not installed as a command beside this Python")
    by_module, by_script = (
        subprocess.run([*call, *arguments], capture_output=True, text=True, check=False)
        for call in ([sys.executable, "-m", "vitune"], [str(script)])
    )
    assert (by_module.returncode, by_module.stdout, by_module.stderr) == (
        by_script.returncode,
        by_script.stdout,
        by_script.stderr,
    )


UNCOLLECTED = """
import atexit, gc, sys, types
from vitune.cli import run
from vitune.errors import VituneError

collecting = []

def stopped(*args, **kwargs):
    assert not collecting[0] and gc.isenabled() and gc.get_freeze_count() > 1000
    raise VituneError("got here")

class Heavy(types.ModuleType):
    def __getattr__(self, name):  # first asked for a name while it is imported
        if name.startswith("__"):
            raise AttributeError(name)
        collecting.append(gc.isenabled())
        return stopped

atexit.register(lambda: print(gc.get_freeze_count()))
for name in {modules!r}:
    sys.modules[name] = Heavy(name)
assert run({arguments!r}) == 2
"""


@pytest.mark.parametrize(
    ("modules", "arguments"),
    [
        (["vitune.training.fitting"], ["train", "--data", "photos", "--out", "run"]),
        pytest.param(["vitune.inference"], ["evaluate", "run"], marks=pytest.mark.slow),
        pytest.param(
            ["vitune.inference", "vitune.data"],
            ["predict", "run", "photos"],
            marks=pytest.mark.slow,
        ),
    ],
    ids=["train", "evaluate", "predict"],
)
def test_libraries_are_loaded_without_garbage_collection(
    modules: list[str], arguments: list[str], tmp_path: Path
) -> None:
    """Collected again when the process ends: some libraries report leaks otherwise."""
    code = UNCOLLECTED.format(modules=modules, arguments=arguments)
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "vitune: error: got here\n"), done.stderr
    assert done.stdout == "0\n"


REGISTERED = (
    "from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING as known; "
    "assert any('RLRR' in str(config) for config in known.values())"
)


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("vitune", f"import vitune; assert 'torch' not in sys.modules; {REGISTERED}"),
        pytest.param(
            "-m",
            f"import vitune; assert 'torch' not in sys.modules; {REGISTERED}",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "other",
            f"import vitune.methods.core.layer, vitune.adapters; {REGISTERED}",
            marks=pytest.mark.slow,
        ),
        pytest.param(  # as nearly every file of tests imports them
            "vitune",
            f"import peft.tuners, vitune; vitune.methods.OWN['rlrr']; {REGISTERED}",
            marks=pytest.mark.slow,
        ),
    ],
    ids=["before", "module", "inside", "after"],
)
def test_methods_are_registered_whatever_the_program_is_called(name: str, code: str) -> None:
    """Importing vitune alone is light; once PEFT is there too, its verbs know the methods."""
    program = f"import sys; sys.argv = [{name!r}]; {code}"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_methods_count_flops_only_when_asked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from vitune.methods import catalogue

    counted: list[int] = []
    real = catalogue._flops
    monkeypatch.setattr(
        catalogue,
        "_flops",
        lambda *given: counted.append(1) or real(*given),  # type: ignore[func-returns-value]
    )
    monkeypatch.setattr("vitune.methods.OWN", {"rlrr": catalogue.METHODS["rlrr"]})
    assert run(["methods"]) == 0
    assert "GFLOPs" not in capsys.readouterr().out and not counted
    assert run(["methods", "--flops"]) == 0
    assert "GFLOPs" in capsys.readouterr().out and len(counted) == 2
    assert run(["methods", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["extra_gflops"] is None and len(counted) == 2
    assert run(["methods", "--json", "--flops"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["extra_gflops"] is not None
