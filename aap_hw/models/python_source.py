"""Networks that a function of the user's makes, in a Python file or in a module that can be imported.

Making one runs the user's code with all the rights of this process; nothing is run before.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from torch import nn

from aap_hw.errors import UserError
from aap_hw.models.source import Source
from aap_hw.users_code import loaded, named_in, place_of, told


@dataclass(frozen=True)
class ExistingFile:
    """A file that is there, and its canonical text: relative below the working folder, else absolute."""

    text: str
    path: Path


def existing(path: str) -> ExistingFile:
    """Check that a file is there.

    Raises
    ------
    UserError : it is not.
    """
    absolute = Path(path).absolute()
    if not absolute.is_file():
        what = "it is a folder" if absolute.is_dir() else "there is no such file"
        raise UserError(f"cannot read the model {path}: {what}; a relative path starts from {Path.cwd()}")
    text = Path(os.path.normpath(absolute))
    here = Path.cwd()
    return ExistingFile((text.relative_to(here) if text.is_relative_to(here) else text).as_posix(), absolute)


def of_file(path: str, factory: str) -> Source:
    """The network that the function or class `factory` of a Python file makes."""
    file = existing(path)
    text = f"{file.text}:{factory}"

    def make() -> nn.Module:
        with loaded(str(file.path), f"cannot run {file.text} for the model") as module:
            return _made(text, factory, module)

    return Source(text, f"{file.path.stem}-{factory}", None, make)


def of_module(module: str, factory: str) -> Source:
    """The network that the function or class `factory` of an importable module makes."""
    text = f"{module}:{factory}"

    def make() -> nn.Module:
        with loaded(module, f"cannot import {module} for the model {text}", ("torchvision", "timm")) as imported:
            return _made(text, factory, imported)

    if not all(part.isidentifier() for part in module.split(".")):
        raise UserError(
            f"'{text}' is not a model: write torchvision:NAME, timm:NAME, FILE.py:FUNCTION or PACKAGE.MODULE:FUNCTION"
        )
    return Source(text, f"{module.rpartition('.')[2]}-{factory}", None, make)


def text_of(factory: type) -> str:
    """The source that a class is, where it can be found again.

    Raises
    ------
    UserError : it is defined in the program that runs.
    """
    module = factory.__module__
    if module == "__main__":
        raise UserError(
            f"{factory.__name__} is defined in the program itself; say where with source='FILE.py:FUNCTION'"
        )
    return f"{place_of(module)}:{factory.__qualname__}"


def _made(text: str, factory: str, module: ModuleType) -> nn.Module:
    """Call the factory, which may be nested in a class, and check what it returns."""
    found = named_in(module, factory, text.rpartition(":")[0])
    if isinstance(found, nn.Module) or not callable(found):
        raise UserError(f"{text} is no function or class; name one that takes no arguments and returns the network")
    with told(f"{text} failed", "it is called without arguments"):
        network = found()
    if not isinstance(network, nn.Module):
        raise UserError(f"{text} returned {_a(type(network).__name__)}; it must return a torch.nn.Module")
    return network


def _a(name: str) -> str:
    return "nothing" if name == "NoneType" else f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}"
