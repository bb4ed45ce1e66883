"""What is checked of a whole program before it is partitioned: inputs, outputs, sizes, randomness, nested graphs.

An operator without a kernel is no error here: it is found when its turn comes, and goes to the slow path.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch.fx import GraphModule, Node

from aap_hw.compile.front.program import NoKernel, is_random
from aap_hw.compile.front.rules.slow import TYPES
from aap_hw.errors import UserError
from aap_hw.graph.program.call import Call, is_tensor, shape_of
from aap_hw.graph.program.source import op_name, quoted


def ends(nodes: Sequence[Node], state: Collection[str]) -> tuple[list[Node], list[Node]]:
    """The network's inputs, which are the placeholders outside the model's ``state``, and its outputs.

    Raises
    ------
    UserError : it returns no tensor, or takes one of a type or rank that cannot be compiled.
    """
    inputs = [node for node in nodes if node.op == "placeholder" and node.name not in state]
    returned = next(node for node in nodes if node.op == "output").args[0]
    assert isinstance(returned, tuple | list)
    outputs = [each for each in returned if isinstance(each, Node)]
    if not outputs:
        raise UserError("the network returns no tensor, so that there is nothing to compute")
    for node in inputs:
        value = node.meta["val"]
        if value.dtype not in TYPES or value.dim() < (2 if len(inputs) == 1 else 1):
            raise UserError(
                f"the network's input {node.name} is {value.dim()}-D {value.dtype}, and only float32 or whole "
                "numbers with a batch axis, such as images (N, C, H, W), can be compiled so far; convert the model "
                "with .float()"
            )
    return inputs, outputs


def check_sizes(nodes: Sequence[Node]) -> None:
    """Refuse tensors whose shape depends on the values of the input, as that of ``nonzero`` does."""
    for node in nodes:
        if is_tensor(node) and any(isinstance(extent, torch.SymInt) for extent in node.meta["val"].shape):
            problem = f"the size of what {op_name(node)} makes depends on the values of the input"
            raise NoKernel.of(node, problem, "return what it is made from, and do this behind the network")


def check_random(nodes: Sequence[Node]) -> None:
    """Refuse operators that draw random numbers, as dropout does that stays on in evaluation."""
    for node in filter(is_random, nodes):
        problem = f"{op_name(node)} draws random numbers, and a compiled network makes the same of the same input"
        drops = any(Call(node).get(name) is not None for name in ("train", "training", "dropout_p"))
        advice = "let it do so in training only (self.training)"
        raise NoKernel.of(node, problem, advice if drops else "pass them in as an input, or keep them in a buffer")


def check_calls(nodes: Sequence[Node], module: GraphModule) -> None:
    """Refuse calls of nested graphs, such as ``torch.cond``, and convolutions of inputs without a batch axis."""
    for node in nodes:
        call = Call(node)
        read, weight = call.get("input"), call.get("weight")
        if call.name.startswith("conv") and isinstance(read, Node) and read.op == "placeholder":
            shape = shape_of(read)
            if isinstance(weight, Node) and len(shape) < len(shape_of(weight)):
                advice = f"give each sample an axis of channels: --input {'x'.join(map(str, (1, *shape[1:])))}"
                raise NoKernel.of(node, f"{op_name(node)} takes the batch for channels", advice)
        if node.target is torch.ops.higher_order.wrap_with_autocast:
            name = str(node.args[1]).removeprefix("torch.")
            function = node.args[4]
            assert isinstance(function, Node)
            inside = module.get_submodule(str(function.target))
            assert isinstance(inside, GraphModule)
            first = next((n for n in inside.graph.nodes if quoted(n)), node)
            problem = f"torch.autocast computes in {name}, and only float32 can be compiled so far"
            raise NoKernel.of(first, problem, "leave it out of the model")
        if isinstance(node.target, torch._ops.HigherOrderOperator):
            raise NoKernel.of(node, f"{op_name(node)} has no kernel here", "leave that part out of the model")
