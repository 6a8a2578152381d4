"""Backbones of transformers: `hf:ORG/NAME` or `hf:FOLDER`, classifiers and bare vision towers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vitune.backbones.backbone import (
    Backbone,
    Request,
    check_image_size,
)
from vitune.backbones.heads import head_names, num_outputs, zero_heads
from vitune.backbones.hf_resize import at_image_size
from vitune.backbones.pixels import hf_preprocessing, model_image_size
from vitune.backbones.tower import TowerClassifier
from vitune.backbones.wording import cannot_fetch, one_line
from vitune.errors import BackboneError, listed

PREFIX = "hf:"
_TIMM_TYPE = "timm_wrapper"
_MAE_TYPE = "vit_mae"


def load_hf(name: str, request: Request) -> Backbone:
    """A transformers image classifier, or a vision tower with a linear head on its pooled output.

    Checkpoints of a masked autoencoder become a plain ViT, which masks nothing.

    Raises:
        BackboneError: not found or not downloaded, not a vision model, missing tensors, or an
            unsupported option.
    """
    location = _location(name)
    with _quiet():
        config = _config(name, location)
        _set_drop_path(name, config, request.drop_path)
        if _is_classifier(config):
            model = _classifier(name, location, config, request)
        else:
            tower = _tower(name, location, config, request)
            model = TowerClassifier(tower, _new_head(tower, request.num_classes))
        preprocessing, notices = hf_preprocessing(location, config, request.image_size)
        size = preprocessing.image_size
        if model_image_size(config) not in (None, size):
            model = at_image_size(model, size, name)
            check_image_size(model, size, name)
    if request.num_classes is not None:
        zero_heads(model)
    return Backbone(
        model=model.eval(),
        name=name,
        preprocessing=preprocessing,
        num_classes=num_outputs(model),
        source=f"transformers weights of {location}" if request.pretrained else "random weights",
        notices=notices,
    )


def _location(name: str) -> str:
    """The part after `hf:`; a folder must exist."""
    location = name.removeprefix(PREFIX)
    if location.startswith((".", "/", "~")):
        folder = Path(location).expanduser()
        if not (folder / "config.json").is_file():
            raise BackboneError(
                f"backbone: got {name!r}, expected a folder with config.json and weights, as "
                f"transformers' save_pretrained writes it."
            )
        return str(folder)
    if location.count("/") > 1 or not location:
        raise BackboneError(
            f"backbone: got {name!r}, expected hf:ORG/NAME or hf:/path/to/folder. "
            f"A relative folder starts with ./"
        )
    return location


@contextmanager
def _answers_told(name: str, expected: str) -> Iterator[None]:
    """Within: what transformers raises becomes a BackboneError that repeats it."""
    try:
        yield
    except OSError as error:
        raise cannot_fetch(name, error) from error
    except Exception as error:
        raise BackboneError(
            f"backbone: got {name!r}, expected {expected}. It answered: {one_line(error)}"
        ) from error


def _config(name: str, location: str) -> Any:
    from transformers import AutoConfig

    with _answers_told(name, "a model that transformers knows"):
        config = AutoConfig.from_pretrained(location)
    if config.model_type == _TIMM_TYPE:
        raise BackboneError(
            f"backbone: got {name!r}, expected its timm name: "
            f"{location.rpartition('/')[2]} without the hf: prefix."
        )
    return config


def _set_drop_path(name: str, config: Any, rate: float) -> None:
    if not rate:
        return
    if not hasattr(config, "drop_path_rate"):
        raise BackboneError(
            f"drop_path: got {rate} for {name}, expected 0: its transformers model "
            f"({config.model_type}) has no stochastic depth. timm's model of it has."
        )
    config.drop_path_rate = rate


def _is_classifier(config: Any) -> bool:
    """Whether transformers has a classifier that we use for it; CLIP's omits the last norm."""
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES as CLASSIFIERS,
    )

    if config.model_type == _MAE_TYPE:
        return True
    fine_tuned = _has_trained_head(config)
    return config.model_type in CLASSIFIERS and (fine_tuned or not hasattr(config, "vision_config"))


def _has_trained_head(config: Any) -> bool:
    return any("ForImageClassification" in name for name in config.architectures or ())


def _classifier(name: str, location: str, config: Any, request: Request) -> nn.Module:
    from transformers import AutoModelForImageClassification, ViTConfig

    if request.num_classes is not None:
        config.num_labels = request.num_classes
    elif not _has_trained_head(config):
        config.num_labels = 0
    if config.model_type == _MAE_TYPE:
        known = ViTConfig().to_dict()
        shared = {key: value for key, value in config.to_dict().items() if key in known}
        shared.pop("model_type", None)
        config = ViTConfig(**shared)
    return _loaded(AutoModelForImageClassification, name, location, config, request)


def _tower(name: str, location: str, config: Any, request: Request) -> nn.Module:
    from transformers import AutoModel
    from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES as TOWERS

    vision = getattr(config, "vision_config", config)
    if vision.model_type not in TOWERS:
        raise _not_a_vision_model(name, vision)
    return _loaded(AutoModel, name, location, vision, request)


def _loaded(auto: Any, name: str, location: str, config: Any, request: Request) -> nn.Module:
    """The model with its weights in float32; only the head may be new."""
    with _answers_told(name, "weights that transformers can load"):
        if request.pretrained:
            model, info = auto.from_pretrained(
                location,
                config=config,
                dtype=torch.float32,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
        else:
            model, info = auto.from_config(config), {}
    if model.main_input_name != "pixel_values":
        raise _not_a_vision_model(name, config)
    heads = tuple(f"{head}." for head in head_names(model))
    missing = [key for key in info.get("missing_keys", ()) if not key.startswith(heads)]
    reshaped = [key[0] for key in info.get("mismatched_keys", ()) if not key[0].startswith(heads)]
    if missing or reshaped:
        raise BackboneError(
            f"backbone: got {name!r}, expected all tensors of {type(model).__name__}. "
            f"Missing: {listed(sorted(missing)) or 'none'}; "
            f"wrong shape: {listed(sorted(reshaped)) or 'none'}."
        )
    network: nn.Module = model
    return network


def _not_a_vision_model(name: str, config: Any) -> BackboneError:
    return BackboneError(
        f"backbone: got {name!r} of type {config.model_type!r}, expected an image classifier or "
        f"a vision tower."
    )


def _new_head(tower: nn.Module, num_classes: int | None) -> nn.Module:
    if num_classes is None:
        return nn.Identity()
    config: Any = tower.config
    width = getattr(config, "hidden_size", None) or config.hidden_sizes[-1]
    return nn.Linear(width, num_classes)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' progress bars and remarks on new heads, which we check ourselves."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
