"""Quantisation after training: ranges of values are measured on images, and nothing is learned."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from aap_hw.activity import doing
from aap_hw.errors import Fault, UserError
from aap_hw.graph.program.call import Call
from aap_hw.graph.program.copying import copied
from aap_hw.graph.program.exporting import traced
from aap_hw.graph.program.inputs import Batch, Tensors, tensors_of
from aap_hw.graph.program.outputs import output_tensors
from aap_hw.quantize.pt2e import converted, prepare_pt2e
from aap_hw.quantize.quantizer import KernelQuantizer
from aap_hw.quantize.ranges import choose_ranges

# Samples on which ways to choose ranges are compared: their noise is seen on fewer than it takes to find extremes.
TRIED = 32


def quantise(model: nn.Module, batches: Iterable[Batch], floats: Collection[str] = ()) -> GraphModule:
    """A copy of a model whose weights and values are rounded as int8 kernels round them.

    Parameters
    ----------
    model
        Any model that `torch.export` accepts. It is read in evaluation mode, and stays as it was.
    batches
        What the ranges of values are measured on, such as a few hundred images, in batches of one shape. The quantised
        model takes batches of that shape.
    floats
        Names of layers whose weights stay in float32.

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
    module = exported(model, inputs)
    with doing("measuring the ranges of values"), torch.no_grad():
        expected = module(*_fresh(inputs))
        prepared = prepare_pt2e(module, KernelQuantizer(inputs, floats))
        _require_same(prepared(*_fresh(inputs)), expected)  # which only watches so far
        few = [inputs]
        for batch in several:
            tensors = tensors_of(batch)
            prepared(*_fresh(tensors))
            if len(few) * len(inputs[0]) < TRIED:
                few.append(tensors)
    with doing("choosing the ranges of values"):
        choose_ranges(prepared, few)
    return converted(prepared)


def folded(model: nn.Module, inputs: Tensors) -> GraphModule:
    """The float program that `quantise` rounds: batch normalisation is folded into the weights, and nothing rounded.

    It takes batches of the shape of ``inputs``. Its values and weights are called as in any other batch.
    """
    prepared = prepare_pt2e(exported(model, inputs), KernelQuantizer(inputs, how=None))
    return GraphModule(prepared, prepared.graph)


def exported(model: nn.Module, inputs: Tensors) -> GraphModule:
    """A copy of a model as a program for batches of the shape of ``inputs``, as torchao takes it."""
    module = traced(copied(model), inputs).module(check_guards=False)
    _keep_apart(module)
    return module


def _fresh(inputs: Tensors) -> Tensors:
    """Copies, as a network may write into what it takes."""
    return tuple(each.clone() for each in inputs)


def _keep_apart(module: GraphModule) -> None:
    """Put something between a layer and a batch norm that it must not be folded into.

    torchao folds without a look at what else reads the layer's result or its weight, and along the wrong axis of the
    weights (C_in, C_out / groups, ...) of a grouped transposed convolution.
    """
    for node in list(module.graph.nodes):
        if node.op != "call_function" or Call(node).name != "batch_norm":
            continue
        layer = Call(node)["input"]
        weight = Call(layer).get("weight") if layer.op == "call_function" else None
        is_grouped = weight is not None and "transpose" in Call(layer).name and Call(layer)["groups"] > 1
        if len(layer.users) > 1 or is_grouped or (isinstance(weight, Node) and len(weight.users) > 1):
            with module.graph.inserting_before(node):
                between = module.graph.call_function(torch.ops.aten.alias.default, (layer,))
            between.meta.update(layer.meta)
            node.replace_input_with(layer, between)
    module.recompile()


def _require_same(found: Any, expected: Any) -> None:
    pairs = zip(*([each.double() for each in output_tensors(given)] for given in (found, expected)), strict=True)

    def is_same(one: Tensor, other: Tensor) -> bool:
        scale = float(other.abs().max()) if other.numel() else 0.0
        return torch.allclose(one, other, rtol=1e-3, atol=1e-3 * scale, equal_nan=True)

    if not all(is_same(*pair) for pair in pairs):
        raise Fault("torchao changed what the network computes before it quantised anything; please report it")
