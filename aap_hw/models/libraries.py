"""Networks of torchvision and timm by their names there, with weights as each library draws them for an untrained one.

No weights are downloaded; published ones are in `aap_hw.models.published`.
"""

from __future__ import annotations

import functools
import importlib.util
import inspect
import warnings
from collections.abc import Callable
from typing import Any

from torch import nn

from aap_hw.errors import UserError, closest

Found = tuple[tuple[int, int, int] | None, Callable[[], nn.Module]]
"""The usual input shape, if there is one, and what makes the network."""


@functools.cache
def torchvision_names() -> frozenset[str]:
    """All names of torchvision's networks that work on floating-point numbers."""
    import torchvision  # takes a second, which the networks of the zoo do without

    return frozenset(name for name in torchvision.models.list_models() if not name.startswith("quantized_"))


def _of_torchvision(name: str, classes: int | None) -> Found:
    if name not in torchvision_names():
        raise UserError(f"torchvision has no model named '{name}'{closest(name, torchvision_names())}")
    import torchvision

    # The size that torchvision's own weights were trained for; of detection and video networks there is none.
    transforms = torchvision.models.get_model_weights(name).DEFAULT.transforms
    crop = getattr(transforms, "keywords", {}).get("crop_size")
    usual = (3, crop, crop) if isinstance(crop, int) else None

    return usual, functools.partial(torchvision_network, name, classes)


def torchvision_network(name: str, classes: int | None, **how: Any) -> nn.Module:
    """A network of torchvision's without trained weights, for so many classes if that is said."""
    import torchvision

    builder = torchvision.models.get_model_builder(name)
    if "weights_backbone" in inspect.signature(builder).parameters:
        how["weights_backbone"] = None  # or those are downloaded
    if classes is not None:
        how["num_classes"] = classes
    with warnings.catch_warnings(action="ignore", category=FutureWarning):
        module: nn.Module = builder(weights=None, **how)
    return module


def _of_timm(name: str, classes: int | None) -> Found:
    if importlib.util.find_spec("timm") is None:
        raise UserError(f"timm:{name} needs the package timm; install it with: pip install 'aap-hw[timm]'")
    import timm

    # Asked first, as timm would take other names for addresses to download from.
    if not timm.is_model(name):
        raise UserError(f"timm has no model named '{name}'{closest(name, timm.list_models())}")
    config = timm.get_pretrained_cfg(name)
    usual = tuple(config.input_size) if config is not None else (3, 224, 224)

    given: dict[str, Any] = {} if classes is None else {"num_classes": classes}

    def make() -> nn.Module:
        module: nn.Module = timm.create_model(name, pretrained=False, **given)
        return module

    return (usual[0], usual[1], usual[2]), make


LOOK_UP: dict[str, Callable[[str, int | None], Found]] = {"torchvision": _of_torchvision, "timm": _of_timm}
