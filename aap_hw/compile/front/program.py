"""The exported program that a partition walks through: its nodes, the names of its weights, and how it is refused."""

from __future__ import annotations

import torch
from torch.export import ExportedProgram
from torch.fx import Graph, Node

from aap_hw.compile.front.aliases import writes_in_place
from aap_hw.errors import UserError
from aap_hw.graph.program.call import OF_SHAPE, Call
from aap_hw.graph.program.source import quoted

# Operators that change nothing in evaluation, but for a type.
TRANSPARENT = {
    *("dropout", "feature_dropout", "alpha_dropout", "contiguous", "clone", "detach", "alias"),
    *("to", "_to_copy", "type_as"),
}


class NoKernel(UserError):  # noqa: N818 - an answer of a rule
    """An operator, in the way it is used, has no kernel with a schedule."""

    @staticmethod
    def of(node: Node, problem: str, advice: str = "") -> NoKernel:
        """The error that names the problem, the source line of an operator, and what to do about it."""
        return NoKernel(problem + quoted(node) + (f"; {advice}" if advice else ""))


def nodes_that_matter(program: ExportedProgram) -> list[Node]:
    """A copy of a program's nodes, with the same names, without those that no output depends on."""
    copied, copies = Graph(), dict[Node, Node]()
    copied.output(copied.graph_copy(program.graph, copies))
    for original, copy in copies.items():
        copy.name = original.name  # fx renames a copy whose name is a builtin's, as `input`
    for node in copied.find_nodes(op="call_function", target=torch.ops.aten.copy.default):
        if _is_alike(source := Call(node)["src"], node):
            node.update_arg(0, source)  # so that no kernel makes what is written over
    copied.eliminate_dead_code(lambda node: node.op in ("placeholder", "output") or writes_in_place(node))
    return list(copied.nodes)


def _is_alike(one: Node, other: Node) -> bool:
    a, b = one.meta["val"], other.meta["val"]
    return bool(a.shape == b.shape and a.dtype == b.dtype)


def state_names(program: ExportedProgram) -> dict[str, str]:
    """For each placeholder that is no input of the network, the name of its weight or constant in the model's state."""
    signature = program.graph_signature
    return {
        **signature.inputs_to_parameters,
        **signature.inputs_to_buffers,
        **signature.inputs_to_lifted_tensor_constants,
    }


def is_of_shape(node: Node) -> bool:
    """Whether a value follows from the shape and type of what it reads, so that it is the same for every input."""
    return Call(node).name in OF_SHAPE


def values_read(node: Node) -> list[Node]:
    """What an operator reads the values of: of what ``type_as`` takes a type from, it reads nothing else."""
    return [Call(node).first] if Call(node).name == "type_as" else node.all_input_nodes


def is_random(node: Node) -> bool:
    """Whether an operator draws random numbers; dropout does not in evaluation."""
    if torch.Tag.nondeterministic_seeded not in getattr(node.target, "tags", ()):
        return False
    call = Call(node)
    is_evaluated = any(call.get(name) is False for name in ("train", "training"))
    return not is_evaluated and all(call.get(name) != 0 for name in ("p", "dropout", "dropout_p"))


def is_transparent(node: Node) -> bool:
    """Whether an operator changes nothing of what it reads."""
    call = Call(node)
    return call.name in TRANSPARENT and bool(node.meta["val"].dtype == call.first.meta["val"].dtype)


def is_identity(node: Node) -> bool:
    """Whether an operator pools to the size that the image already has, or takes a slice that is everything."""
    call = Call(node)
    is_candidate = call.name in ("adaptive_avg_pool2d", "slice")
    return is_candidate and bool(call.first.meta["val"].shape == node.meta["val"].shape)
