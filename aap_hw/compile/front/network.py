"""A network as the compiler sees it: kernels in calling order, with widths that are functions of the group widths.

Inputs and outputs keep PyTorch's layout (N, C, H, W); everything between is NHWC. TVM is not needed here.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from aap_hw.compile.families import (
    bias_elements,
    family_of,
    multiply_accumulates,
    slow,
    weight_elements,
)
from aap_hw.compile.front.quantisation import Quantisation
from aap_hw.compile.keys.address import Address
from aap_hw.compile.keys.key import KernelKey
from aap_hw.compile.keys.precision import FLOAT32, FP32, HALF, INT8, INT8_HALF, NetworkPrecision
from aap_hw.graph import WidthExpr


@dataclass(frozen=True)
class Normalization:
    """Parameter names of a batch normalisation that is folded into the weights before it.

    The result is also multiplied by ``factor``, one number for each channel. Without ``mean`` and ``variance`` there is
    only the factor.
    """

    weight: str | None = None
    bias: str | None = None
    mean: str | None = None
    variance: str | None = None
    epsilon: float = 0.0
    factor: str | None = None


@dataclass(frozen=True)
class Branch:
    """The residual branch that a kernel is removed with, where its own widths do not tell.

    It is there unless the width of ``group`` is 0. What reads the value of the last kernel reads the shortcut then.
    """

    group: str
    is_last: bool = False


@dataclass(frozen=True)
class Kernel:
    """One kernel of a network: its key, the values it reads, its widths and the parameters folded into it.

    ``widths`` are those of its address. ``constants`` are weights that the kernel reads unpacked, and values computed
    from weights alone; ``learned`` are those of them that are parameters of the model. Their ``channel_axis``, counted
    from the last, is moved to the end for the kernel. In the model, the weight is (C_in, C_out) if it ``is_turned``, as
    in ``x @ weight``. ``source`` is the call in the user's code that became a kernel on the slow path.
    """

    name: str
    key: KernelKey
    inputs: tuple[str, ...]
    widths: tuple[WidthExpr, ...]
    weight: str | None = None
    bias: str | None = None
    normalization: Normalization | None = None
    constants: tuple[str, ...] = ()
    learned: tuple[str, ...] = ()
    channel_axis: int = -1
    is_turned: bool = False
    branch: Branch | None = None
    source: str = field(default="", compare=False)

    @property
    def width_in(self) -> WidthExpr:
        """Channels that it reads."""
        return self.widths[0]

    @property
    def width_out(self) -> WidthExpr:
        """Channels that it makes."""
        return self.widths[-1]

    @property
    def described(self) -> str:
        """Its name in messages."""
        return self.source or self.key.op.replace("_", " ")

    @property
    def reads_first(self) -> bool:
        """Whether the model's weight has the channels that are read on its first axis, and those made on the second."""
        return self.is_turned or family_of(self.key).reads_first

    def at(self, widths: Mapping[str, int]) -> Address:
        """The kernel under a width plan: an address in the latency table."""
        return Address(self.key, tuple(width.at(widths) for width in self.widths))

    def is_removed(self, widths: Mapping[str, int]) -> bool:
        """Whether a width plan leaves nothing to read or to make, or no branch: then the kernel is not there."""
        if self.branch is not None and not widths[self.branch.group]:
            return True
        return not all(width.at(widths) for width in self.widths)

    @property
    def groups(self) -> tuple[str, ...]:
        """Names of the channel groups that its latency depends on, in order."""
        named = [name for width in self.widths for name, _ in width.terms]
        return tuple(dict.fromkeys([*named, self.branch.group] if self.branch else named))

    def sides(self, free: Collection[str]) -> tuple[dict[str, int], dict[str, int]]:
        """Of some groups, those that add up to what it reads, and the others; how often each counts in such a width.

        Where others are several and only one is read, it is the other way round: they add up to what is made.
        """
        made = dict(self.width_out.terms)
        read = {name: times for name, times in self.width_in.terms if name in free}
        others = {name: made.get(name, 0) for name in self.groups if name in free and name not in read}
        return (others, read) if len(read) < 2 <= len(others) else (read, others)

    def multiply_accumulates(self, widths: Mapping[str, int]) -> int:
        """Multiply-accumulate operations under a width plan."""
        return 0 if self.is_removed(widths) else multiply_accumulates(self.at(widths))

    def constant_shapes(self, widths: Mapping[str, int]) -> list[tuple[int, ...]]:
        """Shapes of its ``constants`` under a width plan."""
        taken = family_of(self.key).taken
        return taken(self.at(widths)) if taken is not None and self.constants else []

    def parameters(self, widths: Mapping[str, int]) -> int:
        """Learned numbers of the layers that became this kernel, under a width plan."""
        if self.is_removed(widths):
            return 0
        norm = self.normalization
        vectors = [self.bias, norm and norm.weight, norm and norm.bias, norm and norm.factor]
        named = zip(self.constants, self.constant_shapes(widths), strict=True)
        taken = sum(math.prod(shape) for name, shape in named if name in self.learned)
        address, count = self.at(widths), sum(name is not None for name in vectors)
        if not self.weight:
            return taken + address.width_out * count
        return taken + weight_elements(address) + bias_elements(address) * count


@dataclass(frozen=True)
class Port:
    """A value that a network takes or returns, and its shape there, (N, C, H, W) for an image.

    ``is_image`` is only used for inputs; whole numbers are no image, whatever their shape. ``type`` is that of the
    numbers: uint8 only of inputs that are taken as bytes.
    """

    name: str
    shape: tuple[int, ...]
    is_image: bool = False
    type: str = FLOAT32


@dataclass(frozen=True)
class Network:
    """A network as the compiler sees it: kernels in calling order between inputs and outputs.

    ``dense`` gives every channel group its full width. ``fixed`` gives the reasons for groups that must keep it because
    some kernel cannot follow their widths, although the graph could be cut there. ``scaled`` names for each value that
    is stored as bytes the one whose scale it has. These scales, and those of the weights, are in ``quantisation`` once
    they are known; before that a network can only be timed. ``in_half`` names the values of the program that are stored
    in half precision.
    """

    kernels: tuple[Kernel, ...]
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    dense: Mapping[str, int]
    fixed: Mapping[str, str] = field(default_factory=dict)
    scaled: Mapping[str, str] = field(default_factory=dict)
    quantisation: Quantisation | None = None
    in_half: frozenset[str] = frozenset()

    @property
    def precision(self) -> NetworkPrecision:
        """What most of it computes in."""
        if self.scaled:
            return INT8_HALF if self.in_half else INT8
        return HALF if self.in_half else FP32

    def described(self, key: KernelKey) -> str:
        """The name in messages of the first kernel with a key."""
        return next((kernel.described for kernel in self.kernels if kernel.key == key), key.op)

    @property
    def slow_path(self) -> str:
        """How many kernels have no schedule of ours, and of which operators; empty if none."""
        counts = Counter(slow.name_of(kernel.key) for kernel in self.kernels if slow.is_slow(kernel.key))
        total, kinds = sum(counts.values()), ", ".join(f"{count} {op}" for op, count in counts.most_common())
        return f"{total} kernel{'s' * (total > 1)} on the slow path: {kinds}" if total else ""


def is_rectified(kernels: Iterable[Kernel], value: str, activation: str) -> bool:
    """Whether an activation would not change a value, because it or a narrower one has been applied already."""
    maker = next((kernel for kernel in kernels if kernel.name == value), None)
    if maker is None or activation not in ("relu", "relu6"):
        return False
    if family_of(maker.key).keeps_range:
        return is_rectified(kernels, maker.inputs[0], activation)
    last = (maker.key.op, *maker.key.epilogue)[-1]
    return last in (("relu6",) if activation == "relu6" else ("relu", "relu6"))


def with_layout_changes(network: Network, to_turn: Sequence[str]) -> Network:
    """Add the kernels that turn input images to NHWC, if anything reads them so, and outputs to NCHW.

    ``to_turn`` says for each output that must be turned from NHWC to PyTorch's order what its name then ends in.
    """
    kernels, outputs, first = list(network.kernels), list(network.outputs), list[Kernel]()
    for image in (each for each in network.inputs if each.is_image):
        # An input image is there in both orders: as it came, and in NHWC like all other images.
        has_two = min(image.shape[1], math.prod(image.shape[2:])) > 1
        is_turned = [has_two and o.name == image.name and not turn for o, turn in zip(outputs, to_turn, strict=True)]
        if any(is_turned) or not all(_takes_planar(kernel, image.name) for kernel in kernels):
            name, width = f"{image.name}_nhwc", WidthExpr(image.shape[1], ())
            key = KernelKey.make("to_nhwc", image.shape[2:], image.shape[0])
            first.append(Kernel(name, key, (image.name,), (width, width)))
            kernels = [_renamed(kernel, image.name, name) for kernel in kernels]
            outputs = [replace(o, name=name) if t else o for o, t in zip(outputs, is_turned, strict=True)]
    kernels = [*first, *kernels]
    taken = {each.name for each in network.inputs}
    for i, (output, turn) in enumerate(zip(outputs, to_turn, strict=True)):
        if turn and output.name not in taken:
            name, returned = f"{output.name}{turn}", output.shape
            if all(kernel.name != name for kernel in kernels):
                size = returned[2:] if len(returned) == 4 else (math.prod(returned[2:]), 1)
                width = WidthExpr(returned[1])
                key = KernelKey.make("to_nchw", size, returned[0])
                kernels.append(Kernel(name, key, (output.name,), (width, width)))
            outputs[i] = replace(output, name=name)
    return replace(network, kernels=tuple(kernels), outputs=tuple(outputs))


def _takes_planar(kernel: Kernel, image: str) -> bool:
    """Whether a kernel reads the image as NCHW or not at all; a residual is always NHWC."""
    is_planar = kernel.key.op == "to_nhwc" or kernel.key.attribute("layout") == "nchw"
    return image not in kernel.inputs or (is_planar and image not in kernel.inputs[1:])


def _renamed(kernel: Kernel, old: str, new: str) -> Kernel:
    if old not in kernel.inputs:
        return kernel
    inputs = tuple(new if name == old else name for name in kernel.inputs)
    return replace(kernel, key=kernel.key.having(layout="") if kernel.inputs[0] == old else kernel.key, inputs=inputs)
