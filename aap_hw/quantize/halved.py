"""A network in half precision as PyTorch computes it: in float32, with everything rounded that kernels store in half.

Kernels add up in float32 and round what they store once, and so does this. They add up in another order, so that a sum
between two numbers may be rounded to the other one. In a deep network that changes what all later layers read, and the
outputs are as far apart as those of two networks that round by chance. Not followed: what a kernel computes in several
steps, or reads of constants beside its weights.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from aap_hw.compile.cpu import packing_of
from aap_hw.compile.families import family_of
from aap_hw.compile.front.network import Kernel
from aap_hw.compile.front.partition import partition
from aap_hw.compile.keys.address import Address
from aap_hw.compile.keys.precision import HALF, HALVES
from aap_hw.compile.keys.target import CpuTarget, DeviceTarget, half_precision_of
from aap_hw.compile.library.folding import filters_first, folded, weight_of
from aap_hw.compile.library.lowering import state_of
from aap_hw.graph import ChannelGraph
from aap_hw.graph.program.inputs import Inputs
from aap_hw.quantize.form import by_place
from aap_hw.quantize.quantizer import name_of


def halved(model: nn.Module, inputs: Inputs, target: DeviceTarget, batch: int = 1) -> GraphModule:
    """The program of a model in a device's half precision, for batches of a size and inputs by place.

    It is kernels for one sample whose weights are rounded, as those are what is deployed.

    Raises
    ------
    UserError : the device has no half precision.
    """
    half = half_precision_of(target)
    alone = ChannelGraph.trace(by_place(model, inputs.names), inputs.zeros())
    weights = _weights(alone, target, half)
    graph = alone if batch == 1 else ChannelGraph.trace(by_place(model, inputs.names), inputs.zeros(batch))
    stored = partition(graph, HALF, half=half).in_half
    module: GraphModule = graph.program.module(check_guards=False)
    for node in list(module.graph.nodes):
        name = name_of(node)
        with module.graph.inserting_after(node):
            if name in weights:
                held = f"{name.replace('.', '_')}_in_{half}"
                module.register_buffer(held, weights[name])
                node.replace_all_uses_with(module.graph.get_attr(held))
            elif name in stored and node.meta["val"].dtype == torch.float32:
                there = module.graph.call_function(torch.ops.aten.to.dtype, (node, getattr(torch, half)))
                with module.graph.inserting_after(there):
                    back = module.graph.call_function(torch.ops.aten.to.dtype, (there, torch.float32))
                node.replace_all_uses_with(back, delete_user_cb=lambda user, there=there: user is not there)
    module.recompile()
    return module


def _weights(graph: ChannelGraph, target: DeviceTarget, half: str) -> dict[str, Tensor]:
    """The weights that kernels hold in half precision, rounded, by their names in the model's state."""
    network, state, found = partition(graph, HALF, half=half), state_of(graph.program), dict[str, Tensor]()
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
    if not family_of(kernel.key).reads_first:
        return rounded
    places = torch.arange(rounded.numel()).reshape(shape)
    taken = filters_first(places, int(kernel.key.attribute("groups", "1"))).flatten()
    return rounded.flatten()[taken.argsort()].reshape(shape)
