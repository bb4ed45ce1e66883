"""A quantised program as it is passed on: weights as the int8 numbers that they are rounded to."""

from __future__ import annotations

import copy

from torch.fx import GraphModule

from aap_hw.quantize.quantizer import name_of
from aap_hw.quantize.reading import is_constant, operator_of, value_of


def with_stored_weights(module: GraphModule) -> GraphModule:
    """A copy of a quantised program in which weights that were rounded when it ran are held as numbers.

    It computes the same. The program itself stays as it is.
    """
    stored = GraphModule(module, copy.deepcopy(module.graph))
    for node in list(stored.graph.nodes):
        if operator_of(node).startswith("quantize_per_") and is_constant(node.args[0]):
            name = f"{name_of(node.args[0]).replace('.', '_')}_{node.name}"
            stored.register_buffer(name, value_of(node, stored))
            with stored.graph.inserting_before(node):
                node.replace_all_uses_with(stored.graph.get_attr(name))
    stored.graph.eliminate_dead_code()
    return GraphModule(stored, stored.graph)
