"""A network in half precision as PyTorch computes it: in float32, with everything rounded that kernels store in half.

Other layers may be in int8. Kernels add up in float32 and round what they store once, and so does this. They add up in
another order, so that a sum between two numbers may be rounded to the other one. In a deep network that changes what
all later layers read, and the outputs are as far apart as those of two networks that round by chance. Not followed:
what a kernel computes in several steps, or reads of constants beside its weights.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from aap_hw.compile.cpu import packing_of
from aap_hw.compile.front.network import Kernel, Network
from aap_hw.compile.front.partition import partition
from aap_hw.compile.front.quantisation import Quantisation
from aap_hw.compile.keys.address import Address
from aap_hw.compile.keys.precision import HALF, HALVES, INT8_HALF
from aap_hw.compile.keys.target import CpuTarget, DeviceTarget, half_precision_of
from aap_hw.compile.library.folding import filters_first, folded, weight_of
from aap_hw.compile.library.lowering import state_of
from aap_hw.graph import ChannelGraph
from aap_hw.graph.program.call import is_tensor
from aap_hw.graph.program.inputs import Tensors
from aap_hw.inputs import Inputs
from aap_hw.quantize.form import by_place
from aap_hw.quantize.quantizer import name_of
from aap_hw.quantize.reference import held_behind, rounded

# A program in float32, and how it is quantised.
Rounded = tuple[GraphModule, Quantisation]


def halved(model: nn.Module, inputs: Inputs, target: DeviceTarget, batch: int = 1) -> GraphModule:
    """The program of a model in a device's half precision, for batches of a size and inputs by place.

    It is kernels for one sample whose weights are rounded, as those are what is deployed.

    Raises
    ------
    UserError : the device has no half precision.
    """
    half = half_precision_of(target)
    alone = ChannelGraph.trace(by_place(model, inputs.names), inputs.zeros())
    weights = _weights(partition(alone, HALF, half=half), alone, target, half)
    graph = alone if batch == 1 else ChannelGraph.trace(by_place(model, inputs.names), inputs.zeros(batch))
    module: GraphModule = graph.program.module(check_guards=False)
    _round(module, graph, partition(graph, HALF, half=half), weights, half)
    return module


def halved_beside_int8(
    program: Rounded, sample: Tensors, target: DeviceTarget, alone: tuple[Rounded, Tensors] | None = None
) -> GraphModule:
    """A program with the roundings of a quantisation, of which the rest is in a device's half precision.

    Parameters
    ----------
    program
        In float32, for batches of the shape of ``sample``, and its quantisation.
    alone
        The same for one sample, if that is not one: as of `halved`.

    Raises
    ------
    UserError : the device has no half precision.
    """
    half = half_precision_of(target)

    def traced(program: Rounded, sample: Tensors) -> tuple[ChannelGraph, Network]:
        graph = ChannelGraph.trace(program[0], sample)
        return graph, partition(graph, INT8_HALF, program[1], half=half)

    graph, network = traced(program, sample)
    one, its_network = (graph, network) if alone is None else traced(*alone)
    module = rounded(*program)
    _round_what_was_bytes(module, network, half)
    _round(module, graph, network, _weights(its_network, one, target, half), half)
    return module


def _round(
    module: GraphModule, graph: ChannelGraph, network: Network, weights: Mapping[str, Tensor], half: str
) -> None:
    """Round the values of a program that a network stores in half precision, and replace weights."""
    values = [node for node in graph.program.graph.nodes if is_tensor(node)]
    real = {node.name for node in values if node.meta["val"].dtype == torch.float32}
    for node in list(module.graph.nodes):
        name = name_of(node)
        if name in weights:
            node.replace_all_uses_with(held_behind(module, node, f"in_{half}", weights[name]))
        elif name in network.in_half & real:
            there, back = _there_and_back(module, node, half)
            node.replace_all_uses_with(back, delete_user_cb=lambda user, there=there: user is not there)
    module.recompile()


def _round_what_was_bytes(module: GraphModule, network: Network, half: str) -> None:
    """Round what kernels in half precision read that others read as bytes."""
    makers = {kernel.name: kernel for kernel in network.kernels}
    read = {
        (network.scaled[makers[value].inputs[0]], kernel.name)
        for kernel in network.kernels
        for value in kernel.inputs
        if kernel.key.types.read == half and value in makers and makers[value].key.op == "dequantize"
    }
    values = {value for value, _ in read}
    for node in [each for each in module.graph.nodes if name_of(each) in values]:
        was_bytes = next(iter(next(iter(node.users)).users))
        readers = [user for user in was_bytes.users if (name_of(node), _kernel_of(user, makers)) in read]
        _, back = _there_and_back(module, was_bytes, half)
        for reader in readers:
            reader.replace_input_with(was_bytes, back)


def _kernel_of(node: Node, kernels: Collection[str]) -> str:
    """The name of the kernel that an operator is a part of: that of its last one."""
    while node.name not in kernels and len(node.users) == 1:
        node = next(iter(node.users))
    return node.name


def _there_and_back(module: GraphModule, node: Node, half: str) -> tuple[Node, Node]:
    """A value in half precision, and the same in float32 again."""
    to = torch.ops.aten.to.dtype
    with module.graph.inserting_after(node):
        there = module.graph.call_function(to, (node, getattr(torch, half)))
    with module.graph.inserting_after(there):
        return there, module.graph.call_function(to, (there, torch.float32))


def _weights(network: Network, graph: ChannelGraph, target: DeviceTarget, half: str) -> dict[str, Tensor]:
    """The weights that kernels hold in half precision, rounded, by their names in the model's state."""
    state, found = state_of(graph.program), dict[str, Tensor]()
    for kernel in network.kernels:
        if kernel.weight is not None and _is_packed_in_half(kernel.at(network.dense), target):
            # Of several kernels with one weight and other norms, each rounds its own; the first stands for all.
            found.setdefault(kernel.weight, _rounded(kernel, state, getattr(torch, half)))
    return found


def _is_packed_in_half(address: Address, target: DeviceTarget) -> bool:
    if not isinstance(target, CpuTarget):
        return address.key.types.weight in HALVES
    packing = packing_of(address, target)  # Winograd's way keeps its weights in float32
    return packing is not None and packing.type in HALVES


def _rounded(kernel: Kernel, state: dict[str, Tensor], half: torch.dtype) -> Tensor:
    """A weight whose products with the factors of the batch norm behind it are numbers in half precision."""
    weight = weight_of(kernel, state).double()
    factors = folded(kernel, torch.ones(len(weight), dtype=torch.float64), state)[0]
    factors = torch.where(factors == 0, 1.0, factors).reshape(-1, *[1] * (weight.dim() - 1))
    rounded = ((weight * factors).float().to(half).double() / factors).float()
    shape = state[kernel.weight or ""].shape
    if not kernel.reads_first:
        return rounded
    places = torch.arange(rounded.numel()).reshape(shape)
    taken = filters_first(places, int(kernel.key.attribute("groups", "1"))).flatten()
    return rounded.flatten()[taken.argsort()].reshape(shape)
