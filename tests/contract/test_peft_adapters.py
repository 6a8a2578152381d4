"""PEFT's verbs for several adapters on one model."""

from vitune.testing.test_peft_verbs import *  # noqa: F403
