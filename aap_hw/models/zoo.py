"""The networks that can be asked for by name, and their weights.

Four of torchvision and five for small images, all untrained but for ResNet-20, which also comes trained. How a
checkpoint of the user's is read is in `aap_hw.models.weights`; nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import nn

from aap_hw.errors import UserError, closest
from aap_hw.foreign import reason
from aap_hw.models.cifar_nets import CifarVGG, mobilenet_v2, shufflenet_v2
from aap_hw.models.cifar_resnet import CifarResNet
from aap_hw.models.initialise import calibrate_batch_norm, initialise

SEED = 0


@dataclass(frozen=True)
class ZooModel:
    """A network ready to use, in eval mode: images of (N, *input_shape) to logits of (N, classes)."""

    name: str
    module: nn.Module
    input_shape: tuple[int, int, int]
    classes: int


@dataclass(frozen=True)
class ZooEntry:
    """What a name stands for: `make` gives the network for some classes, without weights; the rest is usual for it."""

    make: Callable[[int], nn.Module]
    input_shape: tuple[int, int, int]
    classes: int
    embedded: str | None = None


def _torchvision(name: str) -> Callable[[int], nn.Module]:
    def make(classes: int) -> nn.Module:
        import torchvision  # takes a second, which the ResNets for small images do without

        module: nn.Module = torchvision.models.get_model(name, weights=None, num_classes=classes)
        return module

    return make


_LARGE, _SMALL = (3, 224, 224), (3, 32, 32)
_ENTRIES = {
    "mobilenetv2_cifar": ZooEntry(mobilenet_v2, _SMALL, 10),
    "mobilenetv2": ZooEntry(_torchvision("mobilenet_v2"), _LARGE, 1000),
    "resnet18": ZooEntry(_torchvision("resnet18"), _LARGE, 1000),
    "resnet20": ZooEntry(lambda classes: CifarResNet(3, classes), _SMALL, 10, "resnet20_fashion_mnist.safetensors"),
    "resnet50": ZooEntry(_torchvision("resnet50"), _LARGE, 1000),
    "resnet56": ZooEntry(lambda classes: CifarResNet(9, classes), _SMALL, 10),
    "shufflenetv2_cifar": ZooEntry(shufflenet_v2, _SMALL, 10),
    "vgg16_bn": ZooEntry(_torchvision("vgg16_bn"), _LARGE, 1000),
    "vgg19_cifar": ZooEntry(CifarVGG, _SMALL, 10),
}

OF_TORCHVISION = {"mobilenet_v2": "mobilenetv2", "resnet18": "resnet18", "resnet50": "resnet50", "vgg16_bn": "vgg16_bn"}
"""What torchvision calls some of them, and what they are called here."""


def names() -> tuple[str, ...]:
    """All names that `build` accepts, sorted."""
    return tuple(sorted(_ENTRIES))


def entry(name: str, weights: str | None = None, classes: int | None = None) -> ZooEntry:
    """Look a network up without building it; refuses what `build` would refuse.

    Raises
    ------
    UserError : there is no such network, or it has no such weights for so many classes.
    """
    found = _ENTRIES.get(name)
    if found is None:
        raise UserError(f"there is no model named '{name}' (known: {', '.join(names())}){closest(name, _ENTRIES)}")
    if weights not in (None, "embedded"):
        raise UserError(f"there are no weights named '{weights}' for {name}; give 'embedded' or none")
    if weights and found.embedded is None:
        with_weights = ", ".join(n for n, e in sorted(_ENTRIES.items()) if e.embedded)
        raise UserError(f"{name} has no embedded weights; those that have: {with_weights}")
    if weights and classes not in (None, found.classes):
        raise UserError(
            f"the embedded weights of {name} tell {found.classes} classes apart, not {classes}; leave --classes out, "
            "or give other weights"
        )
    return found


def build(name: str, weights: str | None = None, classes: int | None = None) -> ZooModel:
    """Make a network of the zoo; the same call gives the same weights each time.

    Parameters
    ----------
    name
        One of `names()`.
    weights
        None: untrained, with batch norm statistics of one seeded batch. ``"embedded"``: as trained on the
        images that ship with the package, for ``resnet20`` (inputs as `LabelledImages.tensors` makes them).
    classes
        Length of the output; None: what is usual for the network.

    Raises
    ------
    UserError : there is no such network, it has no such weights, or the embedded file is missing or damaged.
    """
    found = entry(name, weights, classes)
    classes = classes or found.classes
    # On the meta device torch skips its own initialisation, which takes seconds for VGG-16.
    with torch.device("meta"):
        module = found.make(classes)
    module.to_empty(device="cpu")
    if weights and found.embedded is not None:
        _load_embedded(module, found.embedded)
    else:
        initialise(module, seed=SEED)
        channels, height, width = found.input_shape
        calibrate_batch_norm(module, (channels, min(height, 112), min(width, 112)), seed=SEED)
    return ZooModel(name, module.eval(), found.input_shape, classes)


def _load_embedded(module: nn.Module, file: str) -> None:
    source = resources.files("aap_hw").joinpath("data", file)
    try:
        module.load_state_dict(safetensors.torch.load(source.read_bytes()))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise UserError(
            f"cannot read the embedded weights {source}: {reason(error)}; install the package again"
        ) from error
