"""Weights that are published under a name: for which network and pictures they are, and where their file comes from.

======================  ==============================================================================
``pretrained``          what the network's library takes by default
``IMAGENET1K_V2``       a name of torchvision's, for a network of torchvision's
``timm:NAME.TAG``       a name of timm's, for its network NAME
``hf-hub:ORG/NAME``     a repository of the Hugging Face Hub, for any network whose checkpoint it holds
======================  ==============================================================================

A file is fetched by the library that published it, into that library's cache, and read without running anything in it.
What a description says is not stored with a run: it is looked up by the name again. A user's own checkpoints are in
`aap_hw.models.weights`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from aap_hw import ranks
from aap_hw.errors import UserError
from aap_hw.inputs import Inputs
from aap_hw.models import zoo
from aap_hw.models.weights import WeightsFile
from aap_hw.train.preparation import Preparation

DEFAULT = "pretrained"
TIMM, HUB = "timm:", "hf-hub:"
# torchvision's names, alone or behind the class that they are of.
_OF_TORCHVISION = re.compile(r"(\w+_Weights\.)?[A-Z][A-Z0-9]*(_[A-Z0-9]+)+")


@dataclass(frozen=True)
class Published:
    """Weights by name. Nothing is fetched before ``fetch`` is called.

    Attributes
    ----------
    name : what finds them again.
    size : the input, (C, H, W), that they were evaluated with; None if that is not said.
    preparation : how a picture becomes that input; None if that is not said.
    at_test : how it becomes the larger input that they were tested with, if there is one.
    classes : what the network's outputs are called, in order; empty if that is not said.
    folders : for each class what folders of its pictures are usually called, such as WordNet's numbers; empty if
        unknown.
    count : how many classes the network tells apart; None if that is not said.
    make : makes the network that they are for, with any weights; None if that is as usual.
    fetch : the file in the library's cache, fetched if it is not there.
    filled : makes the network and puts a file's tensors into it where only the library knows how; None if names and
        shapes are the network's own.
    renamed : the network's name of a tensor of the file.
    """

    name: str
    size: tuple[int, int, int] | None
    preparation: Preparation | None
    classes: tuple[str, ...]
    count: int | None
    make: Callable[[], nn.Module] | None
    fetch: Callable[[], Path]
    folders: tuple[str, ...] = ()
    at_test: Preparation | None = None
    filled: Callable[[Mapping[str, Tensor]], nn.Module] | None = None
    renamed: Callable[[str], str] = str

    def prepared(self, inputs: Inputs) -> Preparation | None:
        """How pictures become such an input."""
        if inputs.image is not None and self.at_test is not None and inputs.image[1] == self.at_test.side:
            return self.at_test
        return self.preparation

    def require_classes(self, wanted: int | None, model: str) -> None:
        """Refuse to tell other classes apart than those that the weights know."""
        if wanted is not None and self.count is not None and wanted != self.count:
            raise UserError(
                f"the weights {self.name} of {model} tell {self.count} classes apart, not {wanted}; train the network "
                "for yours first and give its checkpoint, or leave --classes out"
            )


def is_name(text: str) -> bool:
    """Whether a text can only be a name of published weights, and not a file."""
    return text == DEFAULT or text.startswith((TIMM, HUB)) or _OF_TORCHVISION.fullmatch(text) is not None


def find(model: str, text: str) -> Published:
    """The weights that a name means for a network, given by its canonical text.

    Raises
    ------
    UserError : there are no such weights, or a library or a description that is needed is not there.
    """
    library, name = _library_of(model)
    if text.startswith(HUB):
        from aap_hw.models.published import of_hub

        return of_hub.find(name if library == "timm" else None, text.removeprefix(HUB))
    if text.startswith(TIMM) and library != "timm":
        raise UserError(f"the weights {text} are for networks of timm, and {model} is none; give --model timm:NAME too")
    if library == "timm":
        from aap_hw.models.published import of_timm

        return of_timm.find(name, text)
    if library == "torchvision":
        from aap_hw.models.published import of_torchvision

        return of_torchvision.find(model, name, text)
    own = "'embedded' or " if model in zoo.names() and zoo.entry(model).embedded else ""
    raise UserError(f"nobody publishes weights of {model} by name; give {own}a checkpoint's path")


def file_of(model: str, text: str, classes: int | None = None) -> WeightsFile:
    """The file of weights that a name means for a network of so many classes, fetched if it is not in its cache.

    Raises
    ------
    UserError : as for `find`, or the weights are for other classes, or the file cannot be fetched.
    """
    weights = find(model, text)
    weights.require_classes(classes, model)
    return WeightsFile.at(ranks.found_by_first(weights.fetch), weights.name)


def known(model: str) -> str | None:
    """The name of the weights that a network's library publishes for it; None if there are none."""
    library, name = _library_of(model)
    if library == "timm":
        from aap_hw.models.published import of_timm

        return of_timm.known(name)
    if library == "torchvision":
        from aap_hw.models.published import of_torchvision

        return of_torchvision.known(name)
    return None


def _library_of(model: str) -> tuple[str, str]:
    """The library that a network is of, and its name there; both empty if it is of none."""
    for theirs, ours in zoo.OF_TORCHVISION.items():
        if model == ours:
            return "torchvision", theirs
    library, _, name = model.partition(":")
    return (library, name) if library in ("torchvision", "timm") else ("", "")
