"""Networks as exported programs: `.pt2` files that `torch.export.save` wrote.

Each is screened (`aap_hw.models.screening`) before PyTorch loads it. The program is made to follow when it is cut and
trained: grouped convolutions become layers, and batch norms and dropout obey the training flag.

A program may be quantised, as by torchao's PT2E flow. It is then compiled as it is, for one sample, and never cut.
"""

from __future__ import annotations

import importlib
import operator
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule, Node

from aap_hw.errors import UserError
from aap_hw.foreign import reason
from aap_hw.graph.program.call import Call, set_argument, training_argument
from aap_hw.inputs import Input, Inputs
from aap_hw.models.screening import ROUNDING, Archive, screened

# What registers the operators that round with PyTorch.
_REGISTERS_ROUNDING = "torch.ao.quantization.fx._decomposed"
_CONVOLUTIONS: dict[Any, type[nn.Module]] = {
    torch.ops.aten.conv1d.default: nn.Conv1d,
    torch.ops.aten.conv2d.default: nn.Conv2d,
    torch.ops.aten.conv3d.default: nn.Conv3d,
}
# Numbers of the types in a program, and what they are called.
_TYPES = {1: "uint8", 2: "int8", 3: "int16", 4: "int32", 5: "int64", 7: "float32", 12: "bool"}


@dataclass(frozen=True)
class Program:
    """What a file holds, without its being loaded.

    Attributes
    ----------
    inputs : what it was exported for; None if it takes tensors of several sizes.
    is_quantised : whether values or weights are rounded in it.
    """

    inputs: Inputs | None
    is_quantised: bool


def look_at(path: Path) -> Program:
    """Read what a file holds.

    Raises
    ------
    UserError : it is no exported program that is safe to load, takes anything but batches of tensors, or was exported
        for batches of one length only, unless that is 1 and the program is quantised.
    """
    archive = screened(path)
    return Program(_inputs(path, archive), archive.is_quantised)


def is_quantised(module: nn.Module) -> bool:
    """Whether a network is a program that rounds values or weights."""
    nodes = module.graph.nodes if isinstance(module, GraphModule) else ()
    return any(ROUNDING.fullmatch(f"torch.ops.{node.target}") for node in nodes)


def load(path: Path) -> nn.Module:
    """The program as a module that can be cut, trained and exported again, unless it is quantised.

    Raises
    ------
    UserError : as for `look_at`, or PyTorch cannot load it.
    """
    archive = screened(path)
    _inputs(path, archive)
    if archive.is_quantised:
        importlib.import_module(_REGISTERS_ROUNDING)
    try:
        module = torch.export.load(archive.anew()).module(check_guards=False)
    except Exception as error:
        raise UserError(f"PyTorch cannot load {path}: {reason(error)}; export it again with this PyTorch") from error
    graph = module.graph
    # No parameter or buffer, which is what fx warns of, but the flag that train() and eval() set.
    with graph.inserting_before(next(iter(graph.nodes))):
        training = graph.create_node("get_attr", "training")
    for node in list(graph.nodes):
        if node.target in _CONVOLUTIONS and len(node.args) > 6 and node.args[6] != 1:
            _make_layer(module, node)
            continue
        if (argument := training_argument(node)) is not None:
            set_argument(node, argument, training)
        if share := Call(node).get("dropout_p"):
            with graph.inserting_before(node):
                set_argument(node, "dropout_p", graph.call_function(operator.mul, (training, share)))
    if not training.users:
        graph.erase_node(training)
    # PyTorch's own module refuses train() and eval().
    return GraphModule(module, graph, class_name=re.sub(r"\W", "_", path.stem) or "Exported")


def _make_layer(module: GraphModule, node: Node) -> None:
    """Replace a grouped convolution by a layer with its weights, whose number of groups follows when it is cut."""
    arguments: tuple[Any, ...] = node.args
    x, weight, bias, *how, groups = arguments
    path, _, leaf = str(weight.target).rpartition(".")
    if leaf != "weight" or not (bias is None or (isinstance(bias, Node) and bias.target == f"{path}.bias")):
        return
    old: Any = module.get_submodule(path)
    with torch.device("meta"):
        shape = old.weight.shape
        layer: Any = _CONVOLUTIONS[node.target](
            shape[1] * groups, shape[0], tuple(shape[2:]), *how, groups, bias is not None
        )
    layer.weight, layer.bias = old.weight, None if bias is None else old.bias
    module.set_submodule(path, layer)
    with module.graph.inserting_before(node):
        node.replace_all_uses_with(module.graph.call_module(path, (x,)))
    module.graph.erase_node(node)
    for parameter in (weight, bias):
        if isinstance(parameter, Node) and not parameter.users:
            module.graph.erase_node(parameter)


def _inputs(path: Path, archive: Archive) -> Inputs | None:
    graph = archive.program["graph_module"]
    specs = graph["signature"]["input_specs"]
    arguments = [spec["user_input"]["arg"] for spec in specs if "user_input" in spec]
    others = any("constant_input" in spec for spec in specs)
    if others or not arguments or not all("as_tensor" in argument for argument in arguments):
        raise UserError(f"{path} does not take tensors alone, which is all that can be pruned")
    found = []
    for argument in arguments:
        tensor = graph["graph"]["tensor_values"][argument["as_tensor"]["name"]]
        batch, *sizes = tensor["sizes"] or [{"as_int": "no axis at all"}]
        is_compiled_only = archive.is_quantised and batch.get("as_int") == 1
        if "as_expr" not in batch and not is_compiled_only:
            raise UserError(
                f"{path} was exported for batches of exactly {batch['as_int']}; export it for any number of images, "
                "with an example of two and dynamic_shapes=({0: torch.export.Dim('n', min=1)},), one for each input"
            )
        if tensor["dtype"] not in _TYPES:
            raise UserError(f"{path} takes tensors of other types than {', '.join(_TYPES.values())}")
        if not all(size.get("as_int") for size in sizes):
            return None
        found.append(Input(tuple(int(size["as_int"]) for size in sizes), _TYPES[tensor["dtype"]]))
    return Inputs(tuple(found))
