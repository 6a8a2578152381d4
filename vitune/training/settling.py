"""Settings in force: those asked for, with what the data decides filled in."""

from __future__ import annotations

from vitune.errors import DataError
from vitune.training.config import TrainConfig


def with_fitting_batch(config: TrainConfig, num_images: int) -> TrainConfig:
    """The settings, whose default batch is all images where they are fewer; one asked for stays.

    Raises:
        DataError: a batch that was asked for is larger than the training split.
    """
    if config.batch_size <= num_images:
        return config
    if "batch_size" in config.model_fields_set:
        raise DataError(
            f"--batch-size: got {config.batch_size}, expected at most the {num_images} "
            "training images."
        )
    return config.model_copy(update={"batch_size": num_images})
