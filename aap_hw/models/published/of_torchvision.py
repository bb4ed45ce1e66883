"""Weights that torchvision publishes: one file each in PyTorch's cache, and a description in code."""

from __future__ import annotations

import functools
import importlib.util
import re
from pathlib import Path
from typing import Any

from torch import nn

from aap_hw.errors import UserError, closest
from aap_hw.models import libraries
from aap_hw.models.published import DEFAULT, Published
from aap_hw.models.published.caches import fetched_url
from aap_hw.train.data import Normalisation
from aap_hw.train.preparation import Preparation

# Files of 2017 have a point in names where the network has none.
_OF_DENSENET = re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.(?=[12]\.)")


def find(model: str, name: str, text: str) -> Published:
    """The weights ``text`` for torchvision's network ``name``. Raises UserError if there are none."""
    members = _members(name)
    key = known(name) if text == DEFAULT else text.rpartition(".")[2]
    if key not in members:
        known_ones = f"; it has {', '.join(members)}" if members else ""
        raise UserError(f"torchvision has no weights '{text}' for {model}{known_ones}{closest(text, members)}")
    weights = members[key]
    categories = tuple(weights.meta.get("categories") or ())
    count = len(categories) or None
    preparation, size = _pictures(weights)
    return Published(
        key,
        size,
        preparation,
        categories,
        count,
        functools.partial(_make, name, count, weights),
        functools.partial(fetched_url, weights.url, f"the weights {key} of {model}"),
        folders=wordnet_numbers() if key.startswith("IMAGENET1K") else (),
        renamed=(lambda each: _OF_DENSENET.sub(r"\1", each)) if name.startswith("densenet") else str,
    )


def known(name: str) -> str | None:
    """The name of torchvision's default weights for a network."""
    members = _members(name)
    return next(iter(members.values())).__class__.DEFAULT.name if members else None


@functools.cache
def wordnet_numbers() -> tuple[str, ...]:
    """WordNet's numbers of ImageNet's 1000 classes, in order, as timm has them; empty if that is not installed."""
    spec = importlib.util.find_spec("timm")  # not imported, which takes seconds
    if spec is None or spec.origin is None:
        return ()
    file = Path(spec.origin).parent / "data" / "_info" / "imagenet_synsets.txt"
    return tuple(file.read_text("utf-8").split()) if file.exists() else ()


def _members(name: str) -> dict[str, Any]:
    import torchvision

    return dict(torchvision.models.get_model_weights(name).__members__)


def _make(name: str, count: int | None, weights: Any) -> nn.Module:
    """The network as torchvision makes it for these weights, without loading any."""
    how: dict[str, Any] = {}
    if name.startswith("vit_"):
        how["image_size"] = weights.meta["min_size"][0]
    if name in ("googlenet", "inception_v3"):
        how |= {"transform_input": True, "init_weights": False}
    return libraries.torchvision_network(name, count, **how)


def _pictures(weights: Any) -> tuple[Preparation | None, tuple[int, int, int] | None]:
    """How pictures are prepared for a classifier of images; of other networks nothing is said that is used here."""
    transforms = weights.transforms()
    if type(transforms).__name__ != "ImageClassification":
        return None, None
    (side,), (shorter,) = transforms.crop_size, transforms.resize_size
    normalisation = Normalisation(tuple(transforms.mean), tuple(transforms.std))
    return Preparation(side, shorter, transforms.interpolation.value, normalisation), (3, side, side)
