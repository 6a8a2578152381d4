"""From a batch of decoded images to the network's input: cropped, normalised, mixed."""

from __future__ import annotations

from accelerate import Accelerator
from timm.data import Mixup
from timm.data.random_erasing import RandomErasing
from torch import Tensor
from torch.nn import functional as F

from vitune.data import Augment, FileViews, Split, augmentation, normalise, seeded_generator
from vitune.preprocessing import Preprocessing
from vitune.training.train_config import TrainConfig


class TrainingInputs:
    """Augmentation, normalisation, mixup or cutmix, and random erasing, in this order.

    Args:
        train: the split that batches come from.
        accelerator: its device does everything except reading files.
        augment: the augmentation; None takes the one that `config` names.
    """

    def __init__(
        self,
        train: Split,
        preprocessing: Preprocessing,
        config: TrainConfig,
        accelerator: Accelerator,
        augment: Augment | None = None,
    ) -> None:
        self.preprocessing, self.config, self.accelerator = preprocessing, config, accelerator
        self.augment = augment or augmentation(config.augment, preprocessing.image_size)
        self.views = FileViews(train, preprocessing, self.augment)
        self.mixup = _new_mixup(config, len(train.classes))
        self.erasing = RandomErasing(config.random_erasing, mode="pixel", device=accelerator.device)

    def __call__(self, batch: dict[str, Tensor], index: int, epoch: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets of batch `index` of an epoch, on the device.

        Shapes: inputs (b, 3, h, w) float32; targets (b,), or (b, c) after mixup.
        """
        labels = batch["labels"].to(self.accelerator.device)
        rank = self.accelerator.process_index
        generator = seeded_generator(self.config.seed, epoch, index, rank)
        images = batch["images"]  # (b, 3, h, w)
        if self.augment.from_files:
            images = self.views(batch["indices"].tolist(), generator)
        images = images.to(self.accelerator.device, non_blocking=True)
        images = self.augment(images, generator)
        images = normalise(images, self.preprocessing, device=images.device)
        images, targets = self._mixed(images, labels)
        return self.erasing(images) if self.config.random_erasing else images, targets

    def _mixed(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Mixup needs pairs: an odd batch only gets its labels smoothed."""
        if self.mixup is None:
            return images, labels
        if len(images) % 2 == 0:
            return self.mixup(images, labels)
        classes, smooth = self.mixup.num_classes, self.config.label_smoothing
        return images, F.one_hot(labels, classes) * (1 - smooth) + smooth / classes


def _new_mixup(config: TrainConfig, num_classes: int) -> Mixup | None:
    if not (config.mixup or config.cutmix):
        return None
    return Mixup(
        mixup_alpha=config.mixup,
        cutmix_alpha=config.cutmix,
        label_smoothing=config.label_smoothing,
        num_classes=num_classes,
    )
