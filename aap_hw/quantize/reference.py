"""A network in int8 as PyTorch computes it: its float program with roundings, the reference of the compiled network.

``rounded`` puts the roundings in; ``Program`` is called as the model that a program was made of. Where the scales come
from is in `aap_hw.quantize.form`.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from aap_hw.compile.front.quantisation import Quantisation
from aap_hw.graph.program.calling import Names
from aap_hw.graph.program.inputs import in_batches
from aap_hw.graph.program.outputs import output_tensors
from aap_hw.quantize.quantizer import WEIGHTS, name_of


def rounded(floating: GraphModule, quantisation: Quantisation) -> GraphModule:
    """A float program with the roundings of a quantisation: the reference of the compiled network."""
    module = GraphModule(floating, copy.deepcopy(floating.graph))
    decomposed = torch.ops.quantized_decomposed
    for node in list(module.graph.nodes):
        name = name_of(node)
        if node.op == "get_attr" and name in quantisation.weights:
            scales = torch.from_numpy(quantisation.weights[name])
            held = [
                held_behind(module, node, what, each)
                for what, each in (("scales", scales), ("zero_points", torch.zeros(len(scales), dtype=torch.int64)))
            ]
            axis = quantisation.axes.get(name, 0)
            rest = (*held, axis, WEIGHTS.quant_min, WEIGHTS.quant_max, torch.int8)
            _round(
                module, node, decomposed.quantize_per_channel.default, decomposed.dequantize_per_channel.default, rest
            )
        elif node.op != "get_attr" and (scale := quantisation.values.get(name)) is not None:
            rest = (scale.scale, scale.zero_point, 0, 255, torch.uint8)
            _round(module, node, decomposed.quantize_per_tensor.default, decomposed.dequantize_per_tensor.default, rest)
    module.recompile()
    return module


def held_behind(module: GraphModule, node: Node, what: str, tensor: Tensor) -> Node:
    """A node behind another that reads a tensor, which becomes a buffer of the program with a name of its own."""
    name = f"{node.name}_{what}"
    while hasattr(module, name):
        name += "_"
    module.register_buffer(name, tensor)
    with module.graph.inserting_after(node):
        return module.graph.get_attr(name)


def _round(module: GraphModule, node: Node, there: Any, back: Any, rest: tuple[Any, ...]) -> None:
    last = max((node, *(each for each in rest if isinstance(each, Node))), key=_place_in(module))
    with module.graph.inserting_after(last):
        stored = module.graph.call_function(there, (node, *rest))
    with module.graph.inserting_after(stored):
        again = module.graph.call_function(back, (stored, *rest))
    node.replace_all_uses_with(again, delete_user_cb=lambda user: user is not stored)


def _place_in(module: GraphModule) -> Any:
    places = {node: place for place, node in enumerate(module.graph.nodes)}
    return places.__getitem__


class Program(nn.Module):
    """A program for batches of one size, called as the model that it was made of, with batches of any size.

    It returns one tensor, alone or packed, with one row for each sample, and has no other mode than the one that it was
    made in.
    """

    def __init__(self, program: GraphModule, names: Names, size: int) -> None:
        super().__init__()
        _without_views(program)
        self.program, self._names, self._size = program, names, size

    def train(self, mode: bool = True) -> Program:
        """Only noted."""
        self.training = mode
        return self

    def forward(self, *by_place: Tensor, **by_name: Tensor) -> Tensor:
        """The tensor that the model returns for a batch."""
        places = iter(by_place)
        given = tuple(next(places) if name is None else by_name[name] for name in self._names or [None] * len(by_place))
        made = []
        for part in in_batches(given, self._size):
            count = len(part[0])
            if missing := self._size - count:
                part = tuple(torch.cat([each, each[-1:].expand(missing, *each.shape[1:])]) for each in part)
            (output,) = output_tensors(self.program(*part))
            made.append(output[:count])
        return made[0] if len(made) == 1 else torch.cat(made)


def _without_views(program: GraphModule) -> None:
    """Let values be reshaped where they were viewed: filled batches and rounded values may lie in another layout."""
    for node in program.graph.nodes:
        if node.target is torch.ops.aten.view.default:
            node.target = torch.ops.aten.reshape.default
    program.recompile()
