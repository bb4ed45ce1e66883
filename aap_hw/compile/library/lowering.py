"""A network becomes one compiled library: kernels in order, weights folded and packed into it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tvm
from torch import nn
from torch.export import ExportedProgram
from torch.fx import Node
from torch.fx.node import map_arg
from tvm import relax

from aap_hw.activity import doing
from aap_hw.compile.code.function import CONSTANTS, Argument, KernelFunction
from aap_hw.compile.code.quantized import Quantized
from aap_hw.compile.cpu.isa import FEWEST_LANES, dot_product
from aap_hw.compile.families import bias_elements, weight_shape
from aap_hw.compile.families.slow import NoCode
from aap_hw.compile.front.byte_inputs import with_bytes_taken
from aap_hw.compile.front.network import Kernel, Network
from aap_hw.compile.front.partition import partition
from aap_hw.compile.front.program import is_of_shape, state_names, values_read
from aap_hw.compile.front.quantisation import LARGEST_WEIGHT, Quantisation
from aap_hw.compile.keys.address import Address
from aap_hw.compile.keys.precision import FP32, HALVES, INT8, OTHERS, NetworkPrecision
from aap_hw.compile.keys.target import CpuTarget, DeviceTarget, half_of
from aap_hw.compile.library.build import build_kernel, export_library
from aap_hw.compile.library.folding import folded_weights
from aap_hw.compile.library.linking import command_of
from aap_hw.compile.library.quantised import quantised, with_rounded_weights
from aap_hw.errors import UserError
from aap_hw.graph import ChannelGraph
from aap_hw.graph.program.calling import Names
from aap_hw.graph.program.inputs import Batch, tensors_of
from aap_hw.graph.program.source import explain


def compile_network(
    model: nn.Module,
    example: Batch,
    target: DeviceTarget,
    library: Path,
    names: Names = (),
    quantisation: Quantisation | None = None,
    precision: NetworkPrecision = FP32,
    takes_bytes: bool = False,
) -> Network:
    """Compile ``model`` for inputs of the shapes of ``example`` and write the shared library.

    Returns the network that was compiled. The model is read in evaluation mode and left untouched. With a
    ``quantisation`` of its values and weights, all kernels are in int8 that can be; then inputs may be taken as the
    bytes that they are quantised to, images as (N, H, W, C). With the precision `HALF` they are in the device's half
    precision, and with `INT8_HALF` all are that are not in int8.

    Raises
    ------
    UserError : an operator of the model can have no kernel, there is no linker for the target, or the target
        has no half precision.
    """
    command_of(target.host)  # told before the work
    graph = ChannelGraph.trace(model, tensors_of(example), names)
    precision = precision if quantisation is None or precision in OTHERS else INT8
    network = partition(graph, precision, quantisation, half=half_of(precision, target))
    network = with_bytes_taken(network) if takes_bytes else network
    state = state_of(graph.program)
    if quantisation is not None:
        state = with_rounded_weights(quantisation, state)
    export_library(lower_network(network, network.dense, state, target), target, library)
    return network


def lower_network(
    network: Network, widths: Mapping[str, int], state: Mapping[str, torch.Tensor], target: DeviceTarget
) -> tvm.IRModule:
    """The Relax module of a network at the given group widths, with the weights of ``state`` as constants."""
    builder = relax.BlockBuilder()
    taken = [relax.Var(port.name, relax.TensorType(port.shape, port.type)) for port in network.inputs]
    values = {port.name: (variable, port.shape) for port, variable in zip(network.inputs, taken, strict=True)}
    functions: dict[Address, tuple[relax.GlobalVar, KernelFunction]] = {}
    with builder.function("main", taken):
        with builder.dataflow():
            for number, kernel in enumerate(network.kernels, start=1):
                address = kernel.at(widths)
                if address not in functions:
                    with doing(f"compiling kernel {number} of {len(network.kernels)}, {kernel.described}"):
                        function = _built(kernel, address, target)
                    name = f"{address.key.op.replace('.', '_')}_{len(functions)}"
                    functions[address] = (builder.add_func(function.code, name), function)
                code, function = functions[address]
                activations = iter(kernel.inputs)
                if function.quantized is not None:
                    model = quantised(kernel, network, state, tuple(_taken(kernel, function, state)))
                    _check_weights(model, kernel, target)
                    constants = iter(function.quantized(model))
                else:
                    constants = _constants(kernel, function, state)
                arguments = [
                    _constant(next(constants), argument)
                    if argument.role in (*CONSTANTS, "literal")
                    else _argument(builder, *values[next(activations)], argument)
                    for argument in function.arguments
                ]
                output_type = relax.TensorType(function.output_shape, function.output_type)
                output = builder.emit(relax.call_tir(code, arguments, output_type))
                values[kernel.name] = output, function.output_shape
            outputs = [
                builder.emit_output(_shaped(builder, *values[output.name], output.shape)) for output in network.outputs
            ]
        builder.emit_func_output(outputs[0] if len(outputs) == 1 else relax.Tuple(outputs))
    return builder.get()


def _built(kernel: Kernel, address: Address, target: DeviceTarget) -> KernelFunction:
    try:
        return build_kernel(address, target)
    except NoCode as refusal:
        raise refusal.at(kernel.source) from refusal


def _check_weights(model: Quantized, kernel: Kernel, target: DeviceTarget) -> None:
    """Refuse weights that the target's instructions have no room for."""
    lowest = dot_product(FEWEST_LANES, target).lowest_weight if isinstance(target, CpuTarget) else -LARGEST_WEIGHT
    if model.weight is not None and model.weight.min(initial=0) < lowest:
        raise UserError(
            f"the quantised weights {kernel.weight} reach {model.weight.min()}, and kernels for this CPU add up "
            f"weights of {lowest} at least; quantise them with quant_min={lowest}"
        )


def _constant(array: np.ndarray, argument: Argument) -> relax.Expr:
    array = array.reshape(argument.shape)
    if argument.type in HALVES:
        array = array.astype(argument.type)  # bfloat16 is a type of NumPy's as soon as TVM is loaded
    return relax.const(array, str(array.dtype))  # without its type, TVM would make 32 bits of 64


def _argument(builder: relax.BlockBuilder, value: relax.Expr, shape: tuple[int, ...], argument: Argument) -> relax.Expr:
    """The value in the shape that a kernel takes, with as many channels as it has where the kernel takes any."""
    pixels = argument.shape[:-1]
    wanted = (*pixels, math.prod(shape) // math.prod(pixels)) if argument.any_width else argument.shape
    return _shaped(builder, value, shape, wanted)


def _shaped(
    builder: relax.BlockBuilder, value: relax.Expr, shape: tuple[int, ...], wanted: tuple[int, ...]
) -> relax.Expr:
    """The value under another shape of as many elements: on a CPU nothing to do, on a GPU a copy."""
    return value if shape == wanted else builder.emit(relax.op.reshape(value, wanted))


def _constants(kernel: Kernel, function: KernelFunction, state: Mapping[str, torch.Tensor]) -> Iterator[np.ndarray]:
    """The arrays of a kernel's constant arguments, in order: weight and bias, or what it takes as it is."""
    if function.pack is not None:
        weight, bias = folded_weights(kernel, state)
        yield from (function.pack(weight), bias)
    yield from _taken(kernel, function, state)
    yield from function.literals


def _taken(kernel: Kernel, function: KernelFunction, state: Mapping[str, torch.Tensor]) -> Iterator[np.ndarray]:
    """The constants of a kernel that are not packed, which come before all others that are not."""
    arguments = [argument for argument in function.arguments if argument.role == "constant"]
    for name, argument in zip(kernel.constants, arguments, strict=function.quantized is None):
        array = state[name].float()
        if array.dim() >= -kernel.channel_axis:
            array = array.movedim(kernel.channel_axis, -1)
        yield array.reshape(argument.shape).contiguous().numpy()


@torch.inference_mode(False)
def state_of(program: ExportedProgram) -> dict[str, torch.Tensor]:
    """The weights of a program, and what it computes of weights or of nothing, as its other operators read it.

    Computed in the program's order, as one operator may write into what another made.

    Raises
    ------
    UserError : two operators read the same value, and it is written to between them.
    """
    tensors = {**program.state_dict, **program.constants}
    with torch.inference_mode(False):  # whose tensors would not say how often they were written to
        state = {
            name: tensor.detach().cpu().clone() for name, tensor in tensors.items() if isinstance(tensor, torch.Tensor)
        }
    names = state_names(program)
    computed: dict[Node, Any] = {}
    versions: dict[str, int] = {}

    def value(node: Node) -> Any:
        if node.name in names:
            return state[names[node.name]]
        if node in computed:
            return computed[node]
        made = node.meta["val"]  # of which only shape and type are asked
        return torch.empty((), dtype=made.dtype).expand(made.shape)

    def read(node: Node) -> torch.Tensor:
        version = computed[node]._version
        if versions.setdefault(node.name, version) != version:
            raise UserError(
                explain("a value that the model's code makes is written to between two that read it", node)
                + "; use the form that does not work in place"
            )
        return state[node.name] if node.name in state else computed[node].clone()

    def is_known(node: Node) -> bool:
        return node.name in names or node in computed

    with torch.inference_mode(False), torch.no_grad():
        for node in program.graph.nodes:
            if node.op == "call_function" and (is_of_shape(node) or all(map(is_known, values_read(node)))):
                assert callable(node.target)
                computed[node] = node.target(*map_arg(node.args, value), **map_arg(node.kwargs, value))
            else:
                state |= {source.name: read(source) for source in node.all_input_nodes if source in computed}
    return state


def stand_ins(network: Network, widths: Mapping[str, int]) -> dict[str, torch.Tensor]:
    """Ones in place of all constants, for networks that are only timed: a model's state lacks what it computes."""
    found: dict[str, torch.Tensor] = {}
    for kernel in network.kernels:
        address = kernel.at(widths)
        if kernel.weight is not None:
            ones = torch.ones(weight_shape(address))
            found[kernel.weight] = ones.transpose(0, 1) if kernel.is_turned else ones
        if kernel.bias is not None:
            found[kernel.bias] = torch.ones(bias_elements(address))
        if kernel.constants:
            constants = zip(kernel.constants, kernel.constant_shapes(widths), strict=True)
            found |= {name: torch.ones(shape) for name, shape in constants}
    return found
