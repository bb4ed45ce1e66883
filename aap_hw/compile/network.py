"""A network as the compiler sees it: kernels in calling order, with widths that are functions of the group widths.

The input and the outputs keep PyTorch's layout (N, C, H, W); everything between is NHWC. TVM is not needed here.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from aap_hw.compile import slow_call
from aap_hw.compile.kernel import Address, KernelKey
from aap_hw.compile.shape import multiply_accumulates, weight_elements
from aap_hw.graph import WidthExpr


@dataclass(frozen=True)
class Normalization:
    """Parameter names of a batch normalisation that is folded into the weights before it."""

    weight: str | None
    bias: str | None
    mean: str
    variance: str
    epsilon: float


@dataclass(frozen=True)
class Kernel:
    """One kernel of a network: its key, the values it reads, its widths and the parameters folded into it.

    ``constants`` are what a kernel on the slow path takes as it is: weights, or what is computed from weights alone.
    """

    name: str
    key: KernelKey
    inputs: tuple[str, ...]
    width_in: WidthExpr
    width_out: WidthExpr
    weight: str | None = None
    bias: str | None = None
    normalization: Normalization | None = None
    constants: tuple[str, ...] = ()

    def at(self, widths: Mapping[str, int]) -> Address:
        """Key, input width and output width under a width plan: an address in the latency table."""
        return self.key, self.width_in.at(widths), self.width_out.at(widths)

    def is_removed(self, widths: Mapping[str, int]) -> bool:
        """Whether a width plan leaves nothing to read or to make: then the kernel is not there."""
        return not (self.width_in.at(widths) and self.width_out.at(widths))

    def multiply_accumulates(self, widths: Mapping[str, int]) -> int:
        """Multiply-accumulate operations under a width plan."""
        return multiply_accumulates(*self.at(widths))

    def parameters(self, widths: Mapping[str, int]) -> int:
        """Learned numbers of the layers that became this kernel, under a width plan."""
        if self.is_removed(widths):
            return 0
        norm = self.normalization
        vectors = [self.bias, norm and norm.weight, norm and norm.bias]
        if self.constants:
            return slow_call.constant_elements(*self.at(widths), slow_call.WEIGHT)
        weights = weight_elements(*self.at(widths)) if self.weight else 0
        return weights + self.width_out.at(widths) * sum(name is not None for name in vectors)


@dataclass(frozen=True)
class Output:
    """A value that a network returns, and its shape there, (N, C, H, W) for an image."""

    name: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Network:
    """A network as the compiler sees it: kernels in calling order between one image and the outputs.

    ``dense`` gives every channel group its full width; ``fixed`` those that must keep it though the graph would let
    them be cut, and why: a kernel on the slow path cannot follow them.
    """

    kernels: tuple[Kernel, ...]
    input: str
    input_shape: tuple[int, ...]
    outputs: tuple[Output, ...]
    dense: Mapping[str, int]
    fixed: Mapping[str, str] = field(default_factory=dict)

    @property
    def slow_path(self) -> str:
        """How many kernels have no schedule of ours, and of which operators; empty if none."""
        counts = Counter(kernel.key.op.split(".")[1] for kernel in self.kernels if slow_call.is_slow(kernel.key))
        total, kinds = sum(counts.values()), ", ".join(f"{count} {op}" for op, count in counts.most_common())
        return f"{total} kernel{'s' * (total > 1)} on the slow path: {kinds}" if total else ""


def is_rectified(kernels: Iterable[Kernel], value: str, activation: str) -> bool:
    """Whether an activation would change nothing of a value: it, or a narrower one, has been applied already."""
    maker = next((kernel for kernel in kernels if kernel.name == value), None)
    if maker is None or activation not in ("relu", "relu6"):
        return False
    if maker.key.op in ("max_pool2d", "avg_pool2d", "global_avg_pool2d"):
        return is_rectified(kernels, maker.inputs[0], activation)
    last = (maker.key.op, *maker.key.epilogue)[-1]
    return last in (("relu6",) if activation == "relu6" else ("relu", "relu6"))


def with_layout_changes(network: Network, are_images: Iterable[bool]) -> Network:
    """Add the kernels that bring the image to NHWC, and back those outputs that are images, where no other does it."""
    kernels = list(network.kernels)
    is_image = len(network.input_shape) == 4
    if is_image and not all(_takes_planar(k, network.input) for k in kernels):
        shape = network.input_shape
        width = WidthExpr(shape[1], ())
        key = KernelKey.make("to_nhwc", shape[2:], shape[0])
        first = Kernel("image_nhwc", key, (network.input,), width, width)
        kernels = [first, *(_renamed(k, network.input, "image_nhwc") for k in kernels)]
    outputs = []
    for output, is_image in zip(network.outputs, are_images, strict=True):
        if is_image and output.name != network.input:
            turned, shape = f"{output.name}_nchw", output.shape
            if all(kernel.name != turned for kernel in kernels):
                width, size = WidthExpr(shape[1]), shape[2:] if len(shape) == 4 else (math.prod(shape[2:]), 1)
                key = KernelKey.make("to_nchw", size, shape[0])
                kernels.append(Kernel(turned, key, (output.name,), width, width))
            output = replace(output, name=turned)
        outputs.append(output)
    return replace(network, kernels=tuple(kernels), outputs=tuple(outputs))


def _takes_planar(kernel: Kernel, image: str) -> bool:
    """Whether a kernel reads the image as it comes, if it reads it at all; a residual is NHWC always."""
    return image not in kernel.inputs or (kernel.key.attribute("layout") == "nchw" and image not in kernel.inputs[1:])


def _renamed(kernel: Kernel, old: str, new: str) -> Kernel:
    inputs = tuple(new if name == old else name for name in kernel.inputs)
    attributes = tuple(pair for pair in kernel.key.attributes if pair != ("layout", "nchw"))
    return replace(kernel, key=replace(kernel.key, attributes=attributes), inputs=inputs)
