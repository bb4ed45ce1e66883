"""Quantisation after training: ranges of values are measured on images, and nothing is learned."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn
from torch.fx import GraphModule

from aap_hw.activity import doing
from aap_hw.errors import UserError
from aap_hw.graph.program.copying import copied
from aap_hw.graph.program.exporting import traced
from aap_hw.graph.program.inputs import Batch, tensors_of
from aap_hw.quantize.pt2e import convert_pt2e, prepare_pt2e
from aap_hw.quantize.quantizer import KernelQuantizer


def quantise(model: nn.Module, batches: Iterable[Batch]) -> GraphModule:
    """A copy of a model whose weights and values are rounded as int8 kernels round them.

    Parameters
    ----------
    model
        Any model that `torch.export` accepts. It is read in evaluation mode, and stays as it was.
    batches
        What the ranges of values are measured on, such as a few hundred images, in batches of one shape. The quantised
        model takes batches of that shape.

    Returns
    -------
    GraphModule
        The reference for the compiled network: float32 operators with quantize and dequantize operators between them.

    Raises
    ------
    UserError
        If there is no batch, or the model cannot be exported or compiled.
    """
    several = iter(batches)
    first = next(several, None)
    if first is None:
        raise UserError("quantisation needs images to measure the ranges of values on, and there are none")
    inputs = tensors_of(first)
    program = traced(copied(model), inputs)
    prepared = prepare_pt2e(program.module(check_guards=False), KernelQuantizer(inputs))
    with doing("measuring the ranges of values"), torch.no_grad():
        prepared(*inputs)
        for batch in several:
            prepared(*tensors_of(batch))
    # Weights stay in float32 in front of their quantize operators, so that they keep their names.
    converted: GraphModule = convert_pt2e(prepared, fold_quantize=False)
    return converted
