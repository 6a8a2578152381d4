"""What a type checker sees of vitune: every config by name, and no other."""

from __future__ import annotations

from pathlib import Path

from mypy import api

import vitune
from vitune.methods import OWN

CONFIGS = sorted(method.config_class.__name__ for method in OWN.values())


def errors_in(code: str, folder: Path) -> list[str]:
    """What mypy finds in `code`, which is read with vitune's door and nothing behind it."""
    file = folder / "user.py"
    file.write_text(code)
    options = ["--follow-imports", "skip", "--ignore-missing-imports", "--no-error-summary"]
    options += ["--config-file", "", "--cache-dir", str(folder)]
    report, complaint, _ = api.run([*options, str(file), str(vitune.__file__)])
    assert not complaint, complaint
    return [line.partition("error: ")[2] for line in report.splitlines() if str(file) in line]


def test_every_config_has_a_type_and_a_misspelt_one_is_an_error(tmp_path: Path) -> None:
    assert len(CONFIGS) == 29
    known = "".join(f"vitune.{name}()\n" for name in CONFIGS)
    assert errors_in(f"import vitune\n\n{known}", tmp_path) == []
    found = errors_in("import vitune\n\nvitune.RLRConfig()\n", tmp_path)
    assert found == ['Module has no attribute "RLRConfig"  [attr-defined]']


def test_a_misspelt_config_is_an_error_at_run_time_too() -> None:
    for name in CONFIGS:
        assert getattr(vitune, name).__name__ == name
    assert not hasattr(vitune, "RLRConfig")
