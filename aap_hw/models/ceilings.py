"""Below what whole numbers must lie that a network takes, found by trying: indices into tables of unknown length."""

from __future__ import annotations

import torch

from aap_hw.graph.inputs import TYPES, Input
from aap_hw.graph.outputs import output_tensors
from aap_hw.models.origin import Origin

TRIED = (1000, 100, 10, 2)


@torch.no_grad()
def ceilings(origin: Origin) -> tuple[int, ...]:
    """For each input, the largest of `TRIED` below which all its values are taken, the other inputs being zero.

    1, for zeros alone, where none is; real numbers and truth values are not tried.
    """
    inputs = origin.inputs
    module = None if all(one.is_float or one.dtype == "bool" for one in inputs.each) else origin.build()

    def is_taken(place: int, value: int) -> bool:
        tensors = list(inputs.zeros())
        tensors[place] = torch.full_like(tensors[place], value)
        assert module is not None
        try:
            outputs = output_tensors(origin.call(module, tuple(tensors)))
        except Exception:  # whatever the network's code raises for what it cannot look up
            return False
        return all(bool(output.isfinite().all()) for output in outputs)

    def ceiling(place: int, one: Input) -> int:
        if one.is_float or one.dtype == "bool":
            return 2
        fit = [most for most in TRIED if most - 1 <= torch.iinfo(TYPES[one.dtype]).max]
        return next((most for most in fit if is_taken(place, most - 1)), 1)

    return tuple(ceiling(place, one) for place, one in enumerate(inputs.each))
