"""Inputs that a network in int8 takes as bytes: what would quantise them is left out."""

from __future__ import annotations

from dataclasses import replace

from aap_hw.compile.front.network import Network, Port
from aap_hw.errors import UserError


def with_bytes_taken(network: Network) -> Network:
    """The network without the kernels that quantise its inputs, which it takes quantised, images as (N, H, W, C).

    Raises
    ------
    UserError : something reads an input in float32.
    """
    kernels, inputs = list(network.kernels), list[Port]()
    returned = {output.name for output in network.outputs}
    for port in network.inputs:
        readers = [kernel for kernel in kernels if port.name in kernel.inputs]
        if port.name in returned or [kernel.key.op for kernel in readers] != ["quantize"]:
            raise UserError(
                f"the network cannot take {port.name} as bytes, as it does not begin by quantising all of it; leave "
                "--pixels out"
            )
        batch, *axes = port.shape
        shape = (batch, *axes[1:], axes[0]) if port.is_image else port.shape
        inputs.append(Port(readers[0].name, shape, type="uint8"))
        kernels.remove(readers[0])
    return replace(network, kernels=tuple(kernels), inputs=tuple(inputs))
