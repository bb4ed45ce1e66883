"""Branches of whole modules, such as attention and an MLP behind a norm, and what must be replaced so that they add 0.

A module whose result is as large as what it reads is replaced by zeros of that size; a layer that is followed by
nothing but element-wise operators may be smaller or larger. What stands behind the last of them, a factor for each
channel, an activation or another order of axes, must make zeros of zeros.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

from torch import nn
from torch.fx import Node

from aap_hw.graph.program.call import Call, is_tensor, shape_of

# Layers in whose place zeros can stand, whatever their widths, where only element-wise operators come between them.
REPLACEABLE = (nn.modules.conv._ConvNd, nn.Linear, nn.modules.batchnorm._NormBase)
# Operators that make zeros of zeros, whatever else they read.
_ZERO_OF_ZERO = {
    *("relu", "relu6", "silu", "gelu", "tanh", "hardswish", "leaky_relu", "elu", "selu", "celu", "mish", "softsign"),
    *("neg", "mul", "dropout", "feature_dropout", "contiguous", "clone", "alias", "detach", "to", "_to_copy"),
    *("permute", "transpose", "view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "slice", "roll"),
}


def keeps_zero(node: Node) -> bool:
    """Whether an operator makes zeros of zeros."""
    return node.op == "call_function" and Call(node).name in _ZERO_OF_ZERO


def replaced_modules(
    nodes: Sequence[Node],
    members: set[Node],
    branch: Node,
    parameters: Mapping[str, str],
    module_of: Callable[[str], nn.Module | None],
    stay: Collection[str],
) -> tuple[str, ...] | None:
    """Paths of the modules that zeros can stand for, so that a branch is zero; None if there are none such.

    Parameters
    ----------
    members
        The nodes of the branch, of which ``branch`` is the last.
    parameters
        Names of the parameters and buffers that placeholders stand for.
    stay
        Paths of modules in whose place no zeros can stand.
    """
    inside = _inside(nodes, members)
    paths: dict[str, set[Node]] = {}
    left: set[Node] = set()
    for node in sorted(members):
        names = [source for source in node.all_input_nodes if source.name in parameters]
        if not names:
            continue
        candidates = [path for path in _paths(node) if path in inside and path not in stay]
        candidates = [path for path in candidates if module_of(path) is not None]
        path = next((each for each in candidates if _keeps_size(inside[each], parameters)), None)
        if path is None and candidates and isinstance(module_of(candidates[-1]), REPLACEABLE) and _is_level(node):
            path = candidates[-1]
        if path is None:
            left.add(node)
        elif not all(set(source.users) <= inside[path] for source in names):
            return None
        else:
            paths[path] = inside[path]
    behind = _behind(branch, members, paths, parameters)
    return tuple(paths) if behind is not None and left <= behind else None


def _inside(nodes: Sequence[Node], members: set[Node]) -> dict[str, set[Node]]:
    """The nodes of each module of which all are in the branch."""
    found: dict[str, set[Node]] = {}
    for node in nodes:
        if node.op == "call_function":
            for path in _paths(node):
                found.setdefault(path, set()).add(node)
    return {path: own for path, own in found.items() if path and own <= members}


def _paths(node: Node) -> list[str]:
    """Paths of the modules in whose code a node is, outermost first."""
    return [str(path) for path, _ in (node.meta.get("nn_module_stack") or {}).values()]


def _keeps_size(own: set[Node], parameters: Mapping[str, str]) -> bool:
    """Whether a module reads one value and makes one, of the same shape."""
    read = {source for node in own for source in node.all_input_nodes if source not in own}
    read = {source for source in read if source.name not in parameters and is_tensor(source)}
    made = [node for node in own if set(node.users) - own]
    if len(read) != 1 or len(made) != 1 or not is_tensor(made[0]):
        return False
    (source,) = read
    return source.op in ("call_function", "placeholder") and shape_of(source) == shape_of(made[0])


def _is_level(node: Node) -> bool:
    """Whether a layer makes an image of the size that it reads."""
    return shape_of(node)[2:] == shape_of(Call(node).first)[2:] or len(shape_of(node)) < 4


def _behind(
    branch: Node, members: set[Node], paths: Mapping[str, set[Node]], parameters: Mapping[str, str]
) -> set[Node] | None:
    """The nodes behind the last replaced module, if they make zeros of its zeros; None if they may make more."""
    constant: set[Node] = set()
    for each in sorted(members):
        if all(source in constant or source.name in parameters for source in each.all_input_nodes):
            constant.add(each)
    behind, node = set(constant), branch
    while not any(node in own for own in paths.values()):
        sources = [source for source in node.all_input_nodes if source in members - constant]
        if len(sources) != 1 or not keeps_zero(node):
            return None
        behind.add(node)
        (node,) = sources
    return behind
