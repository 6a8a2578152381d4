"""A method from outside the package, and tables that are put back after a test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from peft.mapping import (
    PEFT_TYPE_TO_CONFIG_MAPPING,
    PEFT_TYPE_TO_PREFIX_MAPPING,
    PEFT_TYPE_TO_TUNER_MAPPING,
)

from vitune.methods import METHODS, OUTSIDE
from vitune.methods.core import plugins

FILE = '''"""Scaled inputs."""
from dataclasses import dataclass

import torch

from vitune.methods.authoring import LinearLayer, MethodConfig, linear_shape, require_linear


@dataclass
class MineConfig(MethodConfig):
    method = "{name}"
    title = "Mine"
    source = "a test"
    default_roles = ("mlp",)

    def layer_class(self, site, module):
        require_linear(site, module, self.title, roles=self.roles, changes_bias=False)
        return ScaledLinear

    def num_parameters(self, model, sites):
        return sum(linear_shape(model, site)[1] for site in sites)


class ScaledLinear(LinearLayer):
    adapter_layer_names = ("scale",)

    def new_parameters(self, config, shared):
        return {{"scale": torch.zeros(self.num_in)}}

    def adapt(self, tensors, adapter):
        return {{**tensors, "weight": tensors["weight"] * (1 + self.scale[adapter])}}
'''


def write_method(folder: Path, name: str = "mine") -> Path:
    """A file with the method `name`."""
    file = folder / f"{name}.py"
    file.write_text(FILE.format(name=name))
    return file


@pytest.fixture
def tables() -> Iterator[None]:
    """PEFT's tables and vitune's, as they were before the test."""
    kept = [
        (table, dict(table))
        for table in (
            PEFT_TYPE_TO_CONFIG_MAPPING,
            PEFT_TYPE_TO_TUNER_MAPPING,
            PEFT_TYPE_TO_PREFIX_MAPPING,
            METHODS,
            OUTSIDE,
            plugins._files,
        )
    ]
    yield
    for table, before in kept:
        table.clear()
        table.update(before)
