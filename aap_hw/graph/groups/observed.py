"""Where the attention of a group's channels is read: after the activation that follows their filters.

The attention itself is computed in `aap_hw.attention`.
"""

from __future__ import annotations

from torch.fx import Node

from aap_hw.graph.program.call import Call, is_static, is_tensor, shape_of

_ACTIVATIONS = frozenset(
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
        if name in _ACTIVATIONS:
            return reader
        if name not in _BEFORE_ACTIVATION:
            break
        node = reader
    return node
