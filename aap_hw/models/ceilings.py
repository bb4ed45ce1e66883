"""Upper limits of the whole numbers that a network takes, such as indices into an embedding, found by trying."""

from __future__ import annotations

import torch

from aap_hw.graph.program.outputs import output_tensors
from aap_hw.inputs import Input
from aap_hw.models.origin import Origin

TRIED = (1000, 100, 10, 2)


@torch.no_grad()
def ceilings(origin: Origin) -> tuple[int, ...]:
    """For each input, the largest of `TRIED` for which the network takes all smaller numbers, other inputs being zero.

    1 if the network takes none of them but 0. Floating-point inputs and truth values are not tried.
    """
    inputs = origin.inputs
    module = None if all(one.is_float or one.dtype == "bool" for one in inputs.each) else origin.build()

    def is_taken(place: int, value: int) -> bool:
        tensors = list(inputs.zeros())
        tensors[place] = torch.full_like(tensors[place], value)
        assert module is not None
        try:
            outputs = output_tensors(origin.call(module, tuple(tensors)))
        except Exception:  # its code may raise anything for an index that is too large
            return False
        return all(bool(output.isfinite().all()) for output in outputs)

    def ceiling(place: int, one: Input) -> int:
        if one.is_float or one.dtype == "bool":
            return 2
        fit = [most for most in TRIED if most - 1 <= torch.iinfo(one.tensor_type).max]
        return next((most for most in fit if is_taken(place, most - 1)), 1)

    return tuple(ceiling(place, one) for place, one in enumerate(inputs.each))
