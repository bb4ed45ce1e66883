"""A whole network as one compiled library: kernels in order, weights folded and packed into it.

The input and the output keep PyTorch's layout (N, C, H, W); everything between is NHWC.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import tvm
from torch import nn
from tvm import relax

from aap_hw.compile.build import build_kernel, export_library
from aap_hw.compile.function import KernelFunction
from aap_hw.compile.kernel import KernelKey
from aap_hw.compile.partition import Kernel, Network, partition
from aap_hw.compile.target import CpuTarget
from aap_hw.graph import ChannelGraph, WidthExpr


def compile_network(model: nn.Module, example: torch.Tensor, target: CpuTarget, library: Path) -> Network:
    """Compile ``model`` for inputs of ``example``'s shape (N, C, H, W) and write the shared library.

    Returns the network that was compiled. The model is read in evaluation mode and left untouched.

    Raises
    ------
    UserError : an operator of the model has no kernel.
    """
    graph = ChannelGraph.trace(model, (example,))
    network = with_layout_changes(partition(graph))
    state = {name: tensor.detach().cpu() for name, tensor in graph.program.state_dict.items()}
    export_library(lower_network(network, network.dense, state, target), target, library)
    return network


def with_layout_changes(network: Network) -> Network:
    """Add the kernels that bring the image to NHWC and the output back, where no other kernel does it."""
    kernels = list(network.kernels)
    is_image = len(network.input_shape) == 4
    if is_image and not all(_takes_planar(k, network.input) for k in kernels):
        shape = network.input_shape
        width = WidthExpr(shape[1], ())
        key = KernelKey.make("to_nhwc", shape[2:], shape[0])
        first = Kernel("image_nhwc", key, (network.input,), width, width)
        kernels = [first, *(_renamed(k, network.input, "image_nhwc") for k in kernels)]
    output, shape = network.output, network.output_shape
    if len(shape) == 4 and any(extent > 1 for extent in shape[2:]):
        width = next(k.width_out for k in kernels if k.name == output)
        kernels.append(Kernel("output_nchw", KernelKey.make("to_nchw", shape[2:], shape[0]), (output,), width, width))
        output = "output_nchw"
    return replace(network, kernels=tuple(kernels), output=output)


def _takes_planar(kernel: Kernel, image: str) -> bool:
    """Whether a kernel reads the image as it comes, if it reads it at all; a residual is NHWC always."""
    return image not in kernel.inputs or (kernel.key.attribute("layout") == "nchw" and image not in kernel.inputs[1:])


def _renamed(kernel: Kernel, old: str, new: str) -> Kernel:
    inputs = tuple(new if name == old else name for name in kernel.inputs)
    attributes = tuple(pair for pair in kernel.key.attributes if pair != ("layout", "nchw"))
    return replace(kernel, key=replace(kernel.key, attributes=attributes), inputs=inputs)


def lower_network(
    network: Network, widths: Mapping[str, int], state: Mapping[str, torch.Tensor], target: CpuTarget
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
                    else _shaped(builder, *values[next(activations)], argument.shape)
                    for argument in function.arguments
                ]
                output_type = relax.TensorType(function.output_shape, "float32")
                output = builder.emit(relax.call_tir(code, arguments, output_type))
                values[kernel.name] = output, function.output_shape
            result = builder.emit_output(_shaped(builder, *values[network.output], network.output_shape))
        builder.emit_func_output(result)
    return builder.get()


def _shaped(
    builder: relax.BlockBuilder, value: relax.Expr, shape: tuple[int, ...], wanted: tuple[int, ...]
) -> relax.Expr:
    """The value under another shape of as many elements; at most a copy of a few values."""
    return value if shape == wanted else builder.emit(relax.op.reshape(value, wanted))


def _constants(kernel: Kernel, function: KernelFunction, state: Mapping[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """The arrays of a kernel's weight and bias arguments; none for a kernel without weights."""
    if kernel.weight is None or function.pack is None:
        return {}
    weight, bias = folded_weights(kernel, kernel.weight, state)
    length = next(a.shape[0] for a in function.arguments if a.role == "bias")
    return {"weight": function.pack(weight), "bias": np.pad(bias, (0, length - len(bias)))}


def folded_weights(kernel: Kernel, name: str, state: Mapping[str, torch.Tensor]) -> tuple[np.ndarray, np.ndarray]:
    """Weight (the parameter ``name``) and bias of a kernel with its batch normalisation folded in, computed in float64.

    y = gamma * (w x + b - mean) / sqrt(variance + epsilon) + beta  =  (s w) x + (b - mean) s + beta,
    s = gamma / sqrt(variance + epsilon).
    """
    weight = state[name].double()
    zeros = torch.zeros(len(weight), dtype=torch.float64)
    bias = state[kernel.bias].double() if kernel.bias else zeros
    if (norm := kernel.normalization) is not None:
        scale = (state[norm.variance].double() + norm.epsilon).rsqrt()
        if norm.weight:
            scale = scale * state[norm.weight].double()
        weight = weight * scale.reshape(-1, *[1] * (weight.dim() - 1))
        bias = (bias - state[norm.mean].double()) * scale
        bias = bias + (state[norm.bias].double() if norm.bias else zeros)
    return weight.float().numpy(), bias.float().numpy()
