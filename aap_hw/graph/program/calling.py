"""Calling a network with its inputs: those with a name as keyword arguments, the others by position."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from aap_hw.errors import UserError, closest
from aap_hw.inputs import Inputs

Names = Sequence[str | None]
"""The parameter that each tensor is passed as; None passes it by position, and no names pass all by position."""


_MARKS: dict[Any, str] = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
_BY_PLACE = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def called(model: nn.Module, tensors: Sequence[Tensor], names: Names = ()) -> Any:
    """What a network returns for a batch, one tensor (N, ...) for each input."""
    by_place, by_name = arguments(tensors, names)
    return model(*by_place, **by_name)


class ByPlace(nn.Module):
    """A network that takes all its inputs by position."""

    def __init__(self, network: nn.Module, names: Names) -> None:
        super().__init__()
        self.network, self._names = network, names

    def forward(self, *tensors: Tensor) -> Any:
        """What the network returns."""
        return called(self.network, tensors, self._names)


def arguments(values: Sequence[Any], names: Names = ()) -> tuple[list[Any], dict[str, Any]]:
    """Values for a call, by position and by keyword."""
    paired = list(zip(names or [None] * len(values), values, strict=True))
    return [value for name, value in paired if name is None], {name: value for name, value in paired if name}


def check_call(model: nn.Module, inputs: Inputs, what: str) -> None:
    """Refuse a network, called ``what`` in the sentence, whose ``forward`` takes other inputs.

    Raises
    ------
    UserError
        If it takes more or fewer inputs, or has no parameter of a given name.
    """
    try:
        signature = inspect.signature(model.forward)
    except (TypeError, ValueError):  # no signature; calling the network will show
        return
    parameters = signature.parameters
    takes = _listed(list(parameters.values()))
    takes_any = any(each.kind is each.VAR_KEYWORD for each in parameters.values())
    for name in inputs.names:
        if name is not None and name not in parameters and not takes_any:
            raise UserError(f"{what} has no input '{name}': its forward takes {takes}{closest(name, parameters)}")
    by_place, by_name = arguments(inputs.each, inputs.names)
    try:
        signature.bind(*by_place, **by_name)
    except TypeError as problem:
        given = f"{len(inputs.each)} input{'s' * (len(inputs.each) > 1)}"
        raise UserError(
            f"{what} cannot be called with {given} ({inputs.text}): its forward takes {takes}; "
            "give --input for each that has no default, with commas between, as in 3x96x96,ids:int64:128"
        ) from problem


def input_names(model: nn.Module, inputs: Inputs) -> list[str]:
    """A unique name for each input: its own, ``image`` if one image is all, or else its parameter of ``forward``."""
    if inputs.image is not None and inputs.names == (None,):
        return ["image"]
    found = [name or f"input_{place}" for place, name in enumerate(inputs.names)]
    parameters = [each for each in inspect.signature(model.forward).parameters.values() if each.kind in _BY_PLACE]
    for place, (name, parameter) in enumerate(zip(inputs.names, parameters, strict=False)):
        if name is None and parameter.name not in inputs.names:
            found[place] = parameter.name
    return found


def _listed(parameters: list[inspect.Parameter]) -> str:
    shown = [
        f"{_MARKS.get(each.kind, '')}{each.name}{'' if each.default is each.empty else ' (which has a default)'}"
        for each in parameters
    ]
    return " and ".join(filter(None, (", ".join(shown[:-1]), *shown[-1:]))) or "nothing"
