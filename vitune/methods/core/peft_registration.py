"""Makes a method known to PEFT: entries in its tables of configs, tuners and prefixes."""

from __future__ import annotations

import sys

from peft.mapping import (
    PEFT_TYPE_TO_CONFIG_MAPPING,
    PEFT_TYPE_TO_PREFIX_MAPPING,
    PEFT_TYPE_TO_TUNER_MAPPING,
)

from vitune.methods.core.method_config import MethodConfig
from vitune.methods.core.peft_options import IMPORT_HINT, PREFIX
from vitune.methods.core.tuner import SiteTuner


def register(config_class: type[MethodConfig]) -> None:
    """Make a method known to PEFT under its upper-case name.

    PEFT's own `register_peft_method` insists on a closed enum; its three mapping tables take plain
    strings. `tests/methods/test_registration.py` fails when a PEFT release changes that.
    """
    peft_type = config_class.method.upper()
    name = f"{config_class.__name__.removesuffix('Config')}Model"
    tuner = type(
        name,
        (SiteTuner,),
        {
            "prefix": PREFIX,
            "uses_shared_state": config_class.shares_parameters,
            "__doc__": f"{config_class.title} in PEFT.",
            "__module__": config_class.__module__,
        },
    )
    setattr(sys.modules[config_class.__module__], name, tuner)  # where pickle looks for it
    PEFT_TYPE_TO_CONFIG_MAPPING[peft_type] = config_class
    PEFT_TYPE_TO_CONFIG_MAPPING[peft_type + IMPORT_HINT] = config_class
    PEFT_TYPE_TO_TUNER_MAPPING[peft_type] = tuner
    PEFT_TYPE_TO_PREFIX_MAPPING[peft_type] = PREFIX
