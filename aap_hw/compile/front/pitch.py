"""Images with gaps between pixels, so that every pixel begins at a whole vector, for depthwise convolutions.

A vector that spans two cache lines takes two accesses. A depthwise convolution does little else than load and store, so
that 57 channels without gaps take a tenth longer than 64. Between a convolution and a depthwise one the pixels are
therefore padded to the next multiple of a vector; nothing computes with what lies in the gaps. A pointwise kernel is no
slower for it, and still computes 57 channels. GPUs use no gaps, and neither do kernels in int8.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

from aap_hw.compile.families import family_of, output_pixels
from aap_hw.compile.front.network import Kernel, Network
from aap_hw.compile.keys.precision import FLOAT32


def with_pitched_images(network: Network) -> Network:
    """The network with ``pitched`` in the keys of the kernels that make or read such an image."""
    readers: dict[str, list[Kernel]] = defaultdict(list)
    for kernel in network.kernels:
        for value in set(kernel.inputs):
            readers[value].append(kernel)
    returned = {output.name for output in network.outputs}
    pitched = {k.name for k in network.kernels if k.name not in returned and _gains(k, readers[k.name])}

    def with_pitch(kernel: Kernel) -> Kernel:
        if not family_of(kernel.key).is_pitched:
            return kernel
        ends = [end for end, value in (("input", kernel.inputs[0]), ("output", kernel.name)) if value in pitched]
        return replace(kernel, key=kernel.key.having(pitched=ends))

    return replace(network, kernels=tuple(map(with_pitch, network.kernels)))


def _gains(maker: Kernel, readers: Sequence[Kernel]) -> bool:
    """Whether all kernels that make or read a value are convolutions, and one of them is depthwise."""
    keys = [maker.key, *(reader.key for reader in readers)]
    if any(key.precision != FLOAT32 for key in keys):
        return False
    if not all(family_of(key).is_pitched for key in keys) or all(key.op != "depthwise_conv2d" for key in keys):
        return False
    if len(maker.width_out.terms) > 1:  # its memory would not be a sum over channel groups
        return False
    return all(
        maker.name not in reader.inputs[1:]
        and reader.width_in == maker.width_out
        and reader.key.batch * math.prod(reader.key.size) == output_pixels(maker.key)
        for reader in readers
    )
