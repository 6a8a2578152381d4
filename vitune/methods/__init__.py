"""One file a method, one line here; importing this registers them all with PEFT."""

from __future__ import annotations

from vitune.errors import VituneError, nearest
from vitune.methods._registry import Method as Method
from vitune.methods._registry import own_method, peft_methods
from vitune.methods._tuner import MethodConfig as MethodConfig
from vitune.methods._tuner import MethodLayer as MethodLayer
from vitune.methods.bitfit import BitFitConfig
from vitune.methods.full import FullConfig
from vitune.methods.linear import LinearProbeConfig
from vitune.methods.rlrr import RLRRConfig

OWN = {
    method.name: method
    for method in (
        own_method(LinearProbeConfig),
        own_method(FullConfig),
        own_method(BitFitConfig),
        own_method(RLRRConfig),
    )
}
"""vitune's methods by name."""

METHODS = {**peft_methods(), **OWN}
"""Everything that `--method` takes."""


def get_method(name: str) -> Method:
    """The method called `name`.

    Raises:
        VituneError: there is none; the nearest names are given.
    """
    if name not in METHODS:
        raise VituneError(
            f"method: got {name!r}, expected a known method. {nearest(name, METHODS)} "
            "'vitune methods' lists all."
        )
    return METHODS[name]
