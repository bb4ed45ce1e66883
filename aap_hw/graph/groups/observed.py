"""Where the attention of a group's channels is read: after the activation that follows their filters.

That of whole heads is read where a layer reads what they made: their queries and keys are only means to it. The
attention itself is computed in `aap_hw.attention`.
"""

from __future__ import annotations

from collections.abc import Set

from torch.fx import Node

from aap_hw.graph.program.call import Call, is_static, is_tensor, shape_of
from aap_hw.graph.walk.labelling import Labelling
from aap_hw.graph.walk.labels import IntArray

ACTIVATIONS = frozenset(
    {
        "celu",
        "clamp",
        "clamp_min",
        "elu",
        "gelu",
        "hardsigmoid",
        "hardswish",
        "hardtanh",
        "leaky_relu",
        "mish",
        "prelu",
        "relu",
        "relu6",
        "selu",
        "sigmoid",
        "silu",
        "softplus",
        "tanh",
    }
)
_LAYERS = frozenset({"linear", "conv1d", "conv2d", "conv3d"})
_BEFORE_ACTIVATION = frozenset({"batch_norm", "add"})


def observed_node(producer: Node) -> Node:
    """Follow a convolution or linear layer to the node whose output tells what its channels contribute.

    The walk goes on while the output has a single reader and that is a batch norm, an addition of two equally
    shaped tensors or an activation; the first activation ends it.
    """
    node = producer
    while len(node.users) == 1:
        reader = next(iter(node.users))
        is_alike = is_tensor(reader) and is_static(reader) and shape_of(reader) == shape_of(node)
        if reader.op != "call_function" or not is_alike:
            break
        name = Call(reader).name
        if name in ACTIVATIONS:
            return reader
        if name not in _BEFORE_ACTIVATION:
            break
        node = reader
    return node


def observed_by_group(labelling: Labelling, member: IntArray, count: int, heads: Set[int]) -> list[list[str]]:
    """Names of the nodes where each of ``count`` groups is read.

    Parameters
    ----------
    member
        The group of each atom, or -1.
    heads
        Groups of whole heads.
    """
    observed: list[dict[str, None]] = [{} for _ in range(count)]
    for node in labelling.labels if heads else ():
        call = Call(node)
        if node.op == "call_function" and call.name in _LAYERS:
            ids = labelling.of(call["input"]).ids
            for number in heads & set(member[ids[ids >= 0]].tolist()):
                observed[number][call["input"].name] = None
    read = {number for number in heads if observed[number]}
    for producer in labelling.producers:
        name = observed_node(producer.node).name
        for number in set(member[producer.ids].tolist()):
            if number >= 0 and number not in read:
                observed[number][name] = None
    return [list(names) for names in observed]
