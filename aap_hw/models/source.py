"""Where a network comes from, as one text: what `--model` takes and what tables and saved networks remember.

=============================  ==========================================================================
``resnet20``                   a name of the zoo, or any other name of torchvision's
``torchvision:densenet121``    a name of torchvision's
``timm:ghostnet_100``          a name of timm's, if that is installed
``nets/mine.py:make``          a function or class in a Python file, which is run: only name files you trust
``package.module:make``        the same in a module that Python can import
``mine.pt2``                   a program that `torch.export.save` wrote, which may be quantised
=============================  ==========================================================================

Looking a text up is cheap and runs no code of the user's; weights from a file are not covered here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from aap_hw.errors import UserError, closest
from aap_hw.inputs import Inputs
from aap_hw.models import zoo


@dataclass(frozen=True)
class Source:
    """A network that can be made.

    Parameters
    ----------
    text
        Its canonical text: two texts of one network have the same.
    short
        What a folder that is about this network may be called.
    inputs
        What it usually takes; None if that is not known.
    make
        Makes the network, with the weights that it comes with.
    is_quantised
        Whether it computes with rounded values already.
    """

    text: str
    short: str
    inputs: Inputs | None
    make: Callable[[], nn.Module]
    is_quantised: bool = False


def find(text: str, classes: int | None = None) -> Source:
    """Look up what a text means.

    Parameters
    ----------
    classes
        Length of the output; None: as usual for the network. Only what has a name can be asked for another.

    Raises
    ------
    UserError : it means nothing: no such name or file, or a library that is not installed; or it is a file's or a
        module's network, which decides itself how many classes it has.
    """
    if classes is not None and is_own(text):
        raise UserError(f"{text} decides itself how many classes it has, so it cannot be made for {classes}")
    place, colon, name = text.rpartition(":")
    if not colon:
        return _exported(text) if text.endswith(".pt2") else _named(text, classes)
    if not place or not name:
        raise UserError(f"'{text}' is not a model: something is missing beside the colon; write FILE.py:FUNCTION")
    if place in ("torchvision", "timm"):
        return _of_library(place, name, classes)
    from aap_hw.models import python_source

    if place.endswith(".py"):
        return python_source.of_file(place, name)
    return python_source.of_module(place, name)


def is_own(text: str) -> bool:
    """Whether a network is made by a file or a module of the user's, which decides its classes and weights itself."""
    return text.endswith(".pt2") or runs_code(text)


def runs_code(text: str) -> bool:
    """Whether making the network runs Python code that the text names, with all the rights of this process."""
    return ":" in text.removeprefix("torchvision:").removeprefix("timm:")


def _named(name: str, classes: int | None) -> Source:
    if name in zoo.names():
        return Source(
            name, name, Inputs.of(zoo.entry(name).input_shape), lambda: zoo.build(name, classes=classes).module
        )
    if name.endswith(".py"):
        raise UserError(f"{name} may define many things: name the function that makes the network, as in {name}:make")
    from aap_hw.models import libraries

    if name in libraries.torchvision_names():
        return _of_library("torchvision", name, classes)
    raise UserError(
        f"there is no model named '{name}' (known: {', '.join(zoo.names())}, and all of torchvision's)"
        f"{closest(name, [*zoo.names(), *libraries.torchvision_names()])}"
    )


def _of_library(library: str, name: str, classes: int | None) -> Source:
    if library == "torchvision" and name in zoo.OF_TORCHVISION:
        return _named(zoo.OF_TORCHVISION[name], classes)
    from aap_hw.models import libraries

    usual, make = libraries.LOOK_UP[library](name, classes)
    return Source(f"{library}:{name}", name, None if usual is None else Inputs.of(usual), make)


def _exported(path: str) -> Source:
    from aap_hw.models import exported, python_source

    found = python_source.existing(path)
    program = exported.look_at(found.path)
    return Source(found.text, found.path.stem, program.inputs, lambda: exported.load(found.path), program.is_quantised)
