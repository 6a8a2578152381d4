"""What every method is built on: layers, injection into PEFT, roles, the registry."""

__all__ = [
    "adapter_tensors",
    "base_layers",
    "block_hooks",
    "bottleneck",
    "combination",
    "coverage",
    "default_settings",
    "delta_noise",
    "head_only",
    "in_place",
    "in_projection",
    "layer",
    "linear_layers",
    "method_config",
    "peft_options",
    "peft_targets",
    "plugins",
    "registry",
    "roles",
    "scale_shift",
    "solved",
    "token_checks",
    "value_checks",
    "wrapper",
]
"""The files that other rooms may import from."""
