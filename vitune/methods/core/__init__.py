"""What every method is built on: layers, injection into PEFT, roles, the registry."""

__all__ = [
    "base_layers",
    "bottleneck",
    "combination",
    "coverage",
    "default_settings",
    "delta_noise",
    "in_place",
    "in_projection",
    "linear_layers",
    "peft_options",
    "peft_targets",
    "registry",
    "roles",
    "scale_shift",
    "spectral",
    "token_checks",
    "tuner",
    "value_checks",
    "wrapper",
]
"""The files that other rooms may import from."""
