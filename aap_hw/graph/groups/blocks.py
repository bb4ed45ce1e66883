"""Residual branches that can be removed: x + F(x) becomes x.

A branch is found in the exported program as everything that only one operand of an addition needs, if all of it is made
from the other operand. It can be removed if that is of the same shape and the branch consists of layers that can be
replaced one by one, or of modules that can (`branches`). What removal does to the model is in `surgery`, to the
compiled network in ``aap_hw.compile.front.removal``.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from torch import nn
from torch.fx import Node

from aap_hw.graph.groups.branches import REPLACEABLE, replaced_modules
from aap_hw.graph.groups.groups import ChannelGroup
from aap_hw.graph.groups.widths import WidthExpr
from aap_hw.graph.program.call import Call, is_static, is_tensor, shape_of


@dataclass(frozen=True)
class Block:
    """A residual branch that can be removed.

    Attributes
    ----------
    groups : names of the channel groups within the branch: removed together, by the width 0.
    modules : paths of the branch's layers, or of modules that hold them.
    nodes : names of the program's nodes that only the branch needs.
    branch, shortcut : names of the nodes whose values are added.
    """

    groups: tuple[str, ...]
    modules: tuple[str, ...]
    nodes: frozenset[str]
    branch: str
    shortcut: str

    @property
    def name(self) -> str:
        """The first of its groups."""
        return self.groups[0]


def find_blocks(
    nodes: Sequence[Node],
    groups: Sequence[ChannelGroup],
    parameters: dict[str, str],
    width_of: Callable[[str, int], WidthExpr],
    module_of: Callable[[str], nn.Module | None],
    stay: Collection[str] = (),
) -> tuple[Block, ...]:
    """The removable branches of a program, no group in two of them; of nested ones the inner.

    Parameters
    ----------
    parameters
        Names of the parameters and buffers that placeholders stand for.
    width_of, module_of
        Width of a node along an axis, by its name; a module by its path.
    stay
        Paths of modules in whose place no zeros can stand.
    """
    carried: dict[str, set[Node]] = defaultdict(set)
    for node in nodes:
        if node.op == "call_function" and is_tensor(node) and is_static(node):
            for dim in range(len(shape_of(node))):
                for name, _ in width_of(node.name, dim).terms:
                    carried[name].add(node)
    free = [group.name for group in groups if group.frozen is None]
    found: list[Block] = []
    for node in nodes:
        if node.op != "call_function" or Call(node).name != "add" or Call(node).get("alpha", 1) != 1:
            continue
        operands = [each for each in node.args if isinstance(each, Node)]
        if len(operands) != 2 or any(shape_of(each) != shape_of(node) for each in operands):
            continue
        for branch, shortcut in (operands, operands[::-1]):
            members = _only_for(branch, node)
            if not _reads_only(members, shortcut, parameters):
                continue
            paths = _layers(members, parameters, module_of, stay) if _is_layer(branch, parameters) else None
            if paths is None:
                paths = replaced_modules(nodes, members, branch, parameters, module_of, stay)
            if paths is None:
                continue
            inner = tuple(name for name in free if carried[name] and carried[name] <= members)
            if inner and not any(set(inner) & set(other.groups) for other in found):
                names = frozenset(member.name for member in members)
                found.append(Block(inner, paths, names, branch.name, shortcut.name))
    return tuple(found)


def _only_for(branch: Node, addition: Node) -> set[Node]:
    """The nodes that nothing but the addition needs, and that only through ``branch``."""
    if set(branch.users) != {addition} or branch.op != "call_function":
        return set()
    members, waiting = {branch}, list(branch.all_input_nodes)
    while waiting:
        node = waiting.pop()
        if node.op == "call_function" and node not in members and set(node.users) <= members:
            members.add(node)
            waiting += node.all_input_nodes
    return members


def _reads_only(members: set[Node], shortcut: Node, parameters: dict[str, str]) -> bool:
    """Whether a branch is made from the shortcut alone."""
    read = {source for node in members for source in node.all_input_nodes if source not in members}
    return {source for source in read if source.name not in parameters} == {shortcut}


def _layers(
    members: set[Node], parameters: dict[str, str], module_of: Callable[[str], nn.Module | None], stay: Collection[str]
) -> tuple[str, ...] | None:
    """Paths of the layers of a branch, or None if one of them cannot be replaced."""
    paths: dict[str, None] = {}
    for node in sorted(members):
        used = [source for source in node.all_input_nodes if source.name in parameters]
        if not used:
            continue
        # Zeros as large as what a layer reads stand for what it makes.
        read = node.args[0]
        if not is_tensor(node) or not isinstance(read, Node) or shape_of(node)[2:] != shape_of(read)[2:]:
            return None
        for source in used:
            path = parameters[source.name].rpartition(".")[0]
            if path in stay or not isinstance(module_of(path), REPLACEABLE) or not set(source.users) <= members:
                return None
            paths[path] = None
    return tuple(paths)


def _is_layer(node: Node, parameters: dict[str, str]) -> bool:
    return any(source.name in parameters for source in node.all_input_nodes)
