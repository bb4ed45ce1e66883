"""A network becomes one compiled library: kernels in order, weights folded and packed into it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
import tvm
from torch import nn
from tvm import relax

from aap_hw.compile.build import build_kernel, export_library
from aap_hw.compile.function import Argument, KernelFunction
from aap_hw.compile.kernel import KernelKey
from aap_hw.compile.network import Kernel, Network
from aap_hw.compile.partition import partition
from aap_hw.compile.target import DeviceTarget
from aap_hw.graph import ChannelGraph


def compile_network(model: nn.Module, example: torch.Tensor, target: DeviceTarget, library: Path) -> Network:
    """Compile ``model`` for inputs of ``example``'s shape (N, C, H, W) and write the shared library.

    Returns the network that was compiled. The model is read in evaluation mode and left untouched.

    Raises
    ------
    UserError : an operator of the model has no kernel.
    """
    graph = ChannelGraph.trace(model, (example,))
    network = partition(graph)
    state = {name: tensor.detach().cpu() for name, tensor in graph.program.state_dict.items()}
    export_library(lower_network(network, network.dense, state, target), target, library)
    return network


def lower_network(
    network: Network, widths: Mapping[str, int], state: Mapping[str, torch.Tensor], target: DeviceTarget
) -> tvm.IRModule:
    """The Relax module of a network at the given group widths, with the weights of ``state`` as constants."""
    builder = relax.BlockBuilder()
    image = relax.Var(network.input, relax.TensorType(network.input_shape, "float32"))
    values = {network.input: (image, network.input_shape)}
    functions: dict[tuple[KernelKey, int, int], tuple[relax.GlobalVar, KernelFunction]] = {}
    with builder.function("main", [image]):
        with builder.dataflow():
            for kernel in network.kernels:
                address = kernel.at(widths)
                if address not in functions:
                    function = build_kernel(*address, target)
                    name = f"{address[0].op}_{len(functions)}"
                    functions[address] = (builder.add_func(function.code, name), function)
                code, function = functions[address]
                activations = iter(kernel.inputs)
                constants = _constants(kernel, function, state)
                arguments = [
                    relax.const(constants[argument.role])
                    if argument.role in constants
                    else _argument(builder, *values[next(activations)], argument)
                    for argument in function.arguments
                ]
                output_type = relax.TensorType(function.output_shape, "float32")
                output = builder.emit(relax.call_tir(code, arguments, output_type))
                values[kernel.name] = output, function.output_shape
            result = builder.emit_output(_shaped(builder, *values[network.output], network.output_shape))
        builder.emit_func_output(result)
    return builder.get()


def _argument(builder: relax.BlockBuilder, value: relax.Expr, shape: tuple[int, ...], argument: Argument) -> relax.Expr:
    """The value in the shape that a kernel takes, with as many channels as it has where the kernel takes any."""
    wanted = (*argument.shape[:-1], shape[-1]) if argument.any_width else argument.shape
    return _shaped(builder, value, shape, wanted)


def _shaped(
    builder: relax.BlockBuilder, value: relax.Expr, shape: tuple[int, ...], wanted: tuple[int, ...]
) -> relax.Expr:
    """The value under another shape of as many elements; at most a copy of a few values."""
    return value if shape == wanted else builder.emit(relax.op.reshape(value, wanted))


def _constants(kernel: Kernel, function: KernelFunction, state: Mapping[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """The arrays of a kernel's weight and bias arguments; none for a kernel without weights."""
    if function.pack is None:
        return {}
    weight, bias = folded_weights(kernel, state)
    return {"weight": function.pack(weight), "bias": bias}


def folded_weights(kernel: Kernel, state: Mapping[str, torch.Tensor]) -> tuple[np.ndarray, np.ndarray]:
    """Weight and bias of a kernel with its batch normalisation folded in, computed in float64.

    y = gamma * (w x + b - mean) / sqrt(variance + epsilon) + beta  =  (s w) x + (b - mean) s + beta,
    s = gamma / sqrt(variance + epsilon). Without a convolution before it, w = 1 and b = 0 for each channel.
    """
    norm = kernel.normalization
    if kernel.weight is not None:
        weight = state[kernel.weight].double()
    else:
        assert norm is not None
        weight = torch.ones(len(state[norm.mean]), dtype=torch.float64)
    zeros = torch.zeros(len(weight), dtype=torch.float64)
    bias = state[kernel.bias].double() if kernel.bias else zeros
    if norm is not None:
        scale = (state[norm.variance].double() + norm.epsilon).rsqrt()
        if norm.weight:
            scale = scale * state[norm.weight].double()
        weight = weight * scale.reshape(-1, *[1] * (weight.dim() - 1))
        bias = (bias - state[norm.mean].double()) * scale
        bias = bias + (state[norm.bias].double() if norm.bias else zeros)
    return weight.float().numpy(), bias.float().numpy()
