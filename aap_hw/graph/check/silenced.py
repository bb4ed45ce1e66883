"""The uncut network without the channels that a plan removes: what a cut network is compared with.

It runs the exported program, not the model's code, and sets to zero what is gone wherever an operator makes it, so that
nothing behind reads it. A norm over channels is taken over those that stay, and so are the mean and the maximum of a
spatial gate; a window that slides along channels slides along those that stay, and a removed branch is zero where it is
added. Not a single tensor is shorter, and nothing of `surgery` is used.

Positions come from the labels, as in a cut. A label that is wrong removes the wrong value here and a weight that does
not belong to it there, so that the two differ.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx import Node

from aap_hw.graph.channel_graph import ChannelGraph
from aap_hw.graph.cut.surgery import removed_blocks
from aap_hw.graph.groups.gone import Gone
from aap_hw.graph.program.call import Call, is_tensor


class Silenced(nn.Module):
    """Runs a network's exported program without the channels that ``keep`` leaves out, and returns its outputs.

    Parameters
    ----------
    graph
        The graph that the network was traced to.
    model
        Gives the weights. It may have been trained since it was traced.
    keep
        For each group that is cut, the channels that stay.
    """

    def __init__(self, graph: ChannelGraph, model: nn.Module, keep: Mapping[str, Sequence[int]]) -> None:
        super().__init__()
        removed = removed_blocks(graph.blocks, keep)
        gone_with_it = {name for block in removed for name in block.groups}
        self._program = graph.program
        self._branches = {block.branch for block in removed}
        self._gone = graph.gone({name: kept for name, kept in keep.items() if name not in gone_with_it})
        signature = self._program.graph_signature
        own = {
            **self._program.state_dict,
            **self._program.constants,
            **dict(model.named_parameters(remove_duplicate=False)),
            **dict(model.named_buffers(remove_duplicate=False)),
        }
        self._constants = {key: own[name] for key, name in signature.inputs_to_lifted_tensor_constants.items()}
        for key, name in signature.inputs_to_parameters.items():
            self.register_parameter(key, nn.Parameter(own[name].detach().clone(), requires_grad=False))
        for key, name in signature.inputs_to_buffers.items():
            self.register_buffer(key, own[name].detach().clone())

    def forward(self, *by_place: Tensor, **by_name: Tensor) -> list[Any]:
        """All that the network returns, in the order of the program's outputs."""
        signature = self._program.graph_signature
        given = dict(zip(signature.user_inputs, [*by_place, *by_name.values()], strict=True))
        known = {**self._constants, **self._parameters, **self._buffers, **given}
        placeholders = [node for node in self._program.graph.nodes if node.op == "placeholder"]
        values = [known[node.name] for node in placeholders]
        # The type that the program names, and the one that it is to run in.
        types = {
            node.meta["val"].dtype: value.dtype
            for node, value in reversed(list(zip(placeholders, values, strict=True)))
            if isinstance(value, Tensor) and value.is_floating_point() and node.name not in self._constants
        }
        return list(_Run(self._program.graph_module, self._gone, self._branches, types).run(*values))


class _Run(fx.Interpreter):
    """One run of a program.

    Parameters
    ----------
    gone
        Which positions of the tensors that a node yields are gone.
    branches
        Names of the nodes that make zeros.
    types
        For each type that the program names, the one that it runs in.
    """

    def __init__(
        self,
        module: fx.GraphModule,
        gone: Gone,
        branches: set[str],
        types: Mapping[torch.dtype, torch.dtype],
    ) -> None:
        super().__init__(module)
        self._gone, self._branches, self._types = gone, branches, types

    def run_node(self, n: Node) -> Any:
        """The value of a node, with zeros for what is gone."""
        if n.op != "call_function":
            value = super().run_node(n)
            gone = self._gone.read_directly(n) if n.op == "placeholder" and isinstance(value, Tensor) else None
            return value if gone is None else value.masked_fill(gone, 0)
        if Call(n).name == "_assert_tensor_metadata":  # of the type that the program was exported in
            return None
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        args, kwargs = fx.node.map_aggregate((args, kwargs), self._in_own_type)
        args = self._fed_back(n, args)
        value = self._over_what_stays(n, args, kwargs)
        if value is None:
            value = n.target(*args, **kwargs)  # type: ignore[operator]
        return self._without_what_is_gone(n, value)

    def _in_own_type(self, value: Any) -> Any:
        return self._types.get(value, value) if isinstance(value, torch.dtype) else value

    def _without_what_is_gone(self, node: Node, value: Any) -> Any:
        values = value if isinstance(value, (tuple, list)) else (value,)
        if node.name in self._branches:
            return torch.zeros_like(value)
        is_written = getattr(getattr(node.target, "_schema", None), "is_mutable", False)
        # What only looks at another value is not written to: that one is zero where it should be.
        inputs = {_memory(self.env[each]) for each in node.all_input_nodes if isinstance(self.env[each], Tensor)}
        for tensor, gone in zip(values, self._gone.of(node), strict=False):
            if gone is not None and (is_written or _memory(tensor) not in inputs):
                tensor.masked_fill_(gone, 0)
            elif gone is not None and tensor is value and tensor.masked_select(gone).any():
                return tensor.masked_fill(gone, 0)  # a view of one gate for all channels, or of a layer's weights
        return value

    def _fed_back(self, node: Node, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """The arguments of a recurrent layer, with zeros for weights that multiply its own states that are gone."""
        name = Call(node).name.removesuffix("_cell")
        gone = [each for each in self._gone.of(node) if each is not None] if name in _RECURRENT else []
        if not gone:
            return args
        if name != Call(node).name:
            return (*args[:2], args[2], _without(args[3], gone[0].ravel()), *args[4:])
        states, units = self._gone.of(node)[1], self._gone.of(node)[-1]
        weights = []
        for weight, each in zip(args[2], Call(node)["params"], strict=True):
            if states is not None and _FED_BACK.search(each.name):
                weight = _without(weight, states.ravel())
            elif states is not None and _NEXT.search(each.name):
                weight = _without(weight, states.ravel().repeat(2 if Call(node)["bidirectional"] else 1))
            elif units is not None and _PROJECTS.search(each.name):
                weight = _without(weight, units.ravel())
            weights.append(weight)
        return (*args[:2], weights, *args[3:])

    def _over_what_stays(self, node: Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The value of a node that reduces or normalises channels of which some are gone; None for any other."""
        source = node.all_input_nodes[0] if node.all_input_nodes else None
        if source is None or not is_tensor(source) or not (gone := self._gone.of(source)) or gone[0] is None:
            return None
        axes = [axis for axis, size in enumerate(gone[0].shape) if size > 1]
        if len(axes) != 1:
            return None
        axis, stays = axes[0], torch.nonzero(~gone[0].ravel()).ravel()
        function = _NORMS.get(Call(node).name)
        if function is not None:
            return function(node, args, axis, stays)
        is_reduction = Call(node).name in _REDUCTIONS and len(Call(node).tensors) == 1  # not the larger of two
        if is_reduction and axis in _reduced(node, gone[0].dim()):
            return node.target(args[0].index_select(axis, stays), *args[1:], **kwargs)  # type: ignore[operator]
        return None


_RECURRENT = frozenset({"lstm", "gru", "rnn_tanh", "rnn_relu"})
# Names of the weights that a layer multiplies its states by, those of the layer before, and its units.
_FED_BACK = re.compile(r"_weight_hh_l\d+(_reverse)?$")
_PROJECTS = re.compile(r"_weight_hr_l\d+(_reverse)?$")
_NEXT = re.compile(r"_weight_ih_l[1-9]\d*(_reverse)?$")


def _without(weight: Tensor, gone: Tensor) -> Tensor:
    """A matrix with zeros in columns."""
    return weight.masked_fill(gone, 0)


def _memory(value: Tensor) -> int:
    return value.untyped_storage().data_ptr()


_REDUCTIONS = frozenset(
    {"mean", "sum", "var", "std", "var_mean", "std_mean", "linalg_vector_norm", "amax", "amin", "max", "min"}
)


def _reduced(node: Node, rank: int) -> set[int]:
    dims = Call(node).get("dim")
    if dims is None or dims == []:
        return set(range(rank))
    return {dim % rank for dim in ([dims] if isinstance(dims, int) else dims)}


def _over_last_axes(node: Node, args: tuple[Any, ...], axis: int, stays: Tensor) -> Tensor | None:
    inputs, shape, *rest = args
    first = inputs.dim() - len(shape)
    if axis < first:
        return None
    sizes = [len(stays) if first + place == axis else size for place, size in enumerate(shape)]
    of_channels = [each.index_select(axis - first, stays) if isinstance(each, Tensor) else each for each in rest]
    part = node.target(inputs.index_select(axis, stays), sizes, *of_channels)  # type: ignore[operator]
    return torch.zeros_like(inputs).index_copy(axis, stays, part)


def _over_groups(node: Node, args: tuple[Any, ...], axis: int, stays: Tensor) -> Tensor | None:
    inputs, groups, *rest = args
    made = torch.zeros_like(inputs)
    size = inputs.shape[1] // groups
    for number in range(groups):
        own = stays[stays // size == number]
        if len(own):
            of_channels = [each.index_select(0, own) if isinstance(each, Tensor) else each for each in rest]
            made.index_copy_(1, own, node.target(inputs.index_select(1, own), 1, *of_channels))  # type: ignore[operator]
    return made if axis == 1 else None


def _over_the_batch(node: Node, args: tuple[Any, ...], axis: int, stays: Tensor) -> Tensor | None:
    if axis == 1 or not Call(node)["training"]:
        return None
    part = node.target(args[0].index_select(axis, stays), *args[1:])  # type: ignore[operator]
    return torch.zeros_like(args[0]).index_copy(axis, stays, part)


def _along_channels(node: Node, args: tuple[Any, ...], axis: int, stays: Tensor) -> Tensor | None:
    if axis < 2:
        return None
    part = node.target(args[0].index_select(axis, stays), *args[1:])  # type: ignore[operator]
    return torch.zeros(node.meta["val"].shape, dtype=part.dtype, device=part.device).index_copy(axis, stays, part)


def _over_columns(node: Node, args: tuple[Any, ...], axis: int, stays: Tensor) -> Tensor | None:
    if Call(node)["dim"] % args[0].dim() != axis:
        return None
    part = node.target(args[0].index_select(axis, stays), *args[1:])  # type: ignore[operator]
    return torch.zeros_like(args[0]).index_copy(axis, stays, part)


_NORMS: dict[str, Callable[[Node, tuple[Any, ...], int, Tensor], Tensor | None]] = {
    "layer_norm": _over_last_axes,
    "rms_norm": _over_last_axes,
    "group_norm": _over_groups,
    "batch_norm": _over_the_batch,
    "softmax": _over_columns,
    "_softmax": _over_columns,
    "conv1d": _along_channels,
    "conv2d": _along_channels,
}
