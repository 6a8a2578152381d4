"""Arguments of another type than their field's are refused in one line, whatever the method."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftConfig, get_peft_model
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from vitune.errors import OutOfMemoryError, VituneError
from vitune.methods import OWN, get_method
from vitune.methods.authoring import MethodConfig
from vitune.methods.core.peft_options import WHERE

OWN_FIELDS = sorted(
    (method, field.name)
    for method in OWN
    for field in dataclasses.fields(get_method(method).config_class)
    if field.name not in WHERE
)


def network() -> nn.Module:
    return VisionTransformer(
        img_size=32, patch_size=16, embed_dim=12, depth=2, num_heads=2, num_classes=3
    )


@pytest.mark.parametrize(("method", "name"), OWN_FIELDS)
@pytest.mark.parametrize("value", [{}, float("nan"), object(), [None]])
def test_no_field_takes_anything(method: str, name: str, value: Any) -> None:
    with pytest.raises(VituneError, match=f"^{name}: got .*, expected [^\n]*$"):
        get_method(method).config_class(**{name: value})


@pytest.mark.parametrize(
    ("method", "arguments", "text"),
    [
        ("fact_tt", {"scale": "x"}, "scale: got 'x', expected a finite number."),
        ("adaptformer", {"scale": float("inf")}, "scale: got inf, expected a finite number."),
        ("moppa", {"entropy_scale": None}, "entropy_scale: got None, expected a finite number."),
        ("met", {"exits": 2.5}, "exits: got 2.5, expected integers or None."),
        ("met", {"exits": [1, "2"]}, "exits: got [1, '2'], expected integers or None."),
        ("met", {"graph": None}, "graph: got None, expected a finite number."),
        ("apla", {"seed": 2.5}, "seed: got 2.5, expected an integer."),
        ("hta", {"rank": True}, "rank: got True, expected an integer."),
        ("rlrr", {"rank": 2**63}, f"rank: got {2**63}, expected an integer."),
        ("rlrr", {"roles": 3}, "roles: got (3,), expected names."),
        ("rlrr", {"target_modules": [1]}, "target_modules: got (1,), expected names."),
        ("rlrr", {"exclude_modules": [None]}, "exclude_modules: got (None,), expected names."),
        ("rlrr", {"modules_to_save": 2.5}, "modules_to_save: got [2.5], expected names."),
        ("rlrr", {"blocks": True}, "blocks: got (True,), expected whole numbers."),
    ],
)
def test_the_type_is_named(method: str, arguments: dict[str, Any], text: str) -> None:
    with pytest.raises(VituneError) as refused:
        get_method(method).config_class(**arguments)
    assert str(refused.value) == text


def test_numbers_of_other_libraries_become_pythons() -> None:
    config = get_method("met").config_class(
        rank=np.int64(4), exits=np.array([1]), graph=np.float64(0.5), exit_weight=torch.tensor(2.0)
    )
    assert (config.rank, config.exits, config.graph, config.exit_weight) == (4, (1,), 0.5, 2.0)
    assert {type(config.rank), type(config.exits[0])} == {int}
    json.dumps(config.to_dict())
    assert get_method("met").config_class(exits=1).exits == (1,)


def test_what_json_makes_of_a_config_is_read_again(tmp_path: Path) -> None:
    written = get_method("met").config_class(exits=(1, 2), graph=1, roles=None)
    written.save_pretrained(str(tmp_path))
    assert PeftConfig.from_pretrained(str(tmp_path)).exits == (1, 2)


def test_a_type_that_is_not_known_takes_anything() -> None:
    @dataclasses.dataclass
    class Config(MethodConfig):
        table: dict[str, float] | None = None
        shape: tuple[int, str] = (1, "x")
        method = "of_the_test"

    assert Config(table={"a": 1.0}).table == {"a": 1.0}
    assert Config(shape=(2, "y")).shape == (2, "y")


def test_an_adapter_too_large_for_memory_is_one_line() -> None:
    with pytest.raises(OutOfMemoryError, match=r"^memory: got a FacT-TT adapter .* Lower the arg"):
        get_peft_model(network(), get_method("fact_tt").config_class(rank=2**45))


def test_a_seed_may_have_64_bits() -> None:
    get_peft_model(network(), get_method("apla").config_class(seed=2**62))


def test_no_groups_are_refused() -> None:
    with pytest.raises(VituneError, match="num_groups: got 0, expected a divisor of 12"):
        get_peft_model(network(), get_method("moppa").config_class(num_groups=0))


@pytest.mark.parametrize("text", ["1e-3", "0.001", "1.0e-3", " 1E-3 "])
def test_a_number_is_written_as_one_likes(text: str) -> None:
    assert get_method("fact_tt").configure(network(), {"scale": text}).scale == 0.001
