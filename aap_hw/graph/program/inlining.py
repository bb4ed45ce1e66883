"""Regions of a model that run without gradients or with autocast switched off, as plain calls among the others.

`torch.export` keeps what is computed under ``with torch.no_grad()`` or ``with torch.autocast(..., enabled=False)`` as a
graph of its own behind one call. In evaluation neither changes a value, so the calls inside take the place of that one.
A region that switches autocast on computes in another type and stays as it is.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx
from torch.export import ExportedProgram
from torch.export.graph_signature import TensorArgument
from torch.fx import Node


def inline_regions(program: ExportedProgram) -> None:
    """Put what is inside of such regions into the program's graph, in place."""
    renamed: dict[str, str] = {}
    _inline(program.graph_module, renamed)
    for output in program.graph_signature.output_specs:
        if isinstance(output.arg, TensorArgument):
            output.arg.name = renamed.get(output.arg.name, output.arg.name)


def _inline(module: fx.GraphModule, renamed: dict[str, str]) -> None:
    graph = module.graph
    for node in list(graph.nodes):
        region = _region(node)
        if region is None:
            continue
        function, inputs = region
        inside = module.get_submodule(str(function.target))
        assert isinstance(inside, fx.GraphModule)
        _inline(inside, {})
        if inside.graph.find_nodes(op="get_attr"):
            continue  # a region that stays is inside, whose graph is known by this name only here
        values: dict[Node, Any] = dict(zip(inside.graph.find_nodes(op="placeholder"), inputs, strict=True))
        with graph.inserting_before(node):
            results: Any = graph.graph_copy(inside.graph, values)
        for user in list(node.users):
            assert user.target is operator.getitem
            result = results[user.args[1]]
            user.replace_all_uses_with(result)
            renamed[user.name] = result.name
            graph.erase_node(user)
        graph.erase_node(node)
        if not function.users:
            graph.erase_node(function)
    graph.lint()
    module.recompile()


def _region(node: Node) -> tuple[Node, list[Any]] | None:
    """The node of the graph behind a call and what goes in, if the call changes no value."""
    operators = torch.ops.higher_order
    if node.target is operators.wrap_with_set_grad_enabled:
        _, function, *inputs = node.args
    elif node.target is operators.wrap_with_autocast and not node.args[2]:
        _, _, _, _, function, *inputs = node.args
    else:
        return None
    assert isinstance(function, Node)
    return function, inputs
