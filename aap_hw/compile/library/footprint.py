"""Memory that a compiled network needs: its packed constants, and the values that live at the same time.

Counted from the kernels alone, without compiling any. Packed constants are what the library holds, Winograd's
transformed weights included, which are larger than the model's. Not counted: the code itself, and what a kernel needs
for intermediate results while it runs (a padded copy of its image, Winograd's blocks, which stay in the cache).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from aap_hw.compile.cpu import packing_of
from aap_hw.compile.families import family_of, output_pixels, weight_elements
from aap_hw.compile.families.normalisation import is_affine
from aap_hw.compile.families.pitch import pitch_step
from aap_hw.compile.front.network import Kernel, Network
from aap_hw.compile.keys.address import Address
from aap_hw.compile.keys.precision import BYTES, FLOAT32
from aap_hw.compile.keys.target import CpuTarget, DeviceTarget, GpuTarget
from aap_hw.graph import WidthExpr


@dataclass(frozen=True)
class Value:
    """What a kernel makes, as it lies in memory.

    Attributes
    ----------
    pixels : over the whole batch.
    channels : of each pixel.
    step : pixels begin at multiples of so many values.
    type : name of the type of its values.
    branch : a channel group without which the value is not there; empty if it always is.
    """

    pixels: int
    channels: WidthExpr
    step: int = 1
    type: str = FLOAT32
    branch: str = ""

    def bytes_at(self, widths: Mapping[str, int]) -> int:
        """Bytes under a width plan."""
        if self.branch and not widths[self.branch]:
            return 0
        return BYTES[self.type] * self.pixels * math.ceil(self.channels.at(widths) / self.step) * self.step


@dataclass(frozen=True)
class Moment:
    """What must be held while one kernel runs.

    Attributes
    ----------
    kernel : name of the kernel.
    held : each value that it reads or that a later kernel will read, and last the one that it makes.
    """

    kernel: str
    held: tuple[Value, ...]

    def bytes_at(self, widths: Mapping[str, int]) -> int:
        """Bytes under a width plan; a kernel that is removed makes nothing."""
        return sum(value.bytes_at(widths) for value in self.held)


def peak_bytes(network: Network, widths: Mapping[str, int], target: DeviceTarget) -> int:
    """Memory that a network needs under a width plan: all constants, and the most that lives at one moment."""
    there = [kernel for kernel in network.kernels if not kernel.is_removed(widths)]
    constants = sum(constant_bytes(kernel.at(widths), target) for kernel in there)
    return constants + max(moment.bytes_at(widths) for moment in moments(network, target))


def constant_bytes(address: Address, target: DeviceTarget) -> int:
    """Bytes of a kernel's constants as they are packed into the library."""
    weights, types = weight_elements(address), address.key.types
    others = family_of(address.key).constants(address) - weights
    # The factors of a normalisation stay in float32, whatever its values are in.
    type_ = types.sum if is_affine(address.key) else types.weight
    if isinstance(target, CpuTarget) and (packing := packing_of(address, target)) is not None:
        if packing.constant_bytes is not None:
            return packing.constant_bytes
        weights, type_ = packing.elements, packing.type
    # Beside its bias, each channel of a quantised kernel has a factor and what its sums begin with.
    each = 3 if weights and types.is_quantized else 1
    return BYTES[type_] * weights + BYTES[types.sum] * each * others


def moments(network: Network, target: DeviceTarget) -> Iterator[Moment]:
    """The moments of a network on a device: one a kernel, in calling order."""
    last = {output.name: len(network.kernels) for output in network.outputs}
    for i, kernel in enumerate(network.kernels):
        last |= {name: max(i, last.get(name, 0)) for name in kernel.inputs}
    living = {port.name: Value(math.prod(port.shape), WidthExpr(1), type=port.type) for port in network.inputs}
    for i, kernel in enumerate(network.kernels):
        living = {name: value for name, value in living.items() if last.get(name, -1) >= i}
        step = 1 if isinstance(target, GpuTarget) else pitch_step(kernel.key, "output", target)
        # The shortcut takes the place of what the last kernel of a branch makes.
        branch = kernel.branch.group if kernel.branch is not None and not kernel.branch.is_last else ""
        made = Value(output_pixels(kernel.key), kernel.width_out, step, kernel.key.types.made, branch)
        yield Moment(kernel.name, (*living.values(), replace(made, branch=_group_of(kernel))))
        if kernel.name in last:
            living[kernel.name] = made


def _group_of(kernel: Kernel) -> str:
    """The group that a kernel goes with, empty if with none: of its branch, or one that it reads and nothing else."""
    if kernel.branch is not None:
        return kernel.branch.group
    read = kernel.width_in
    # What it makes may be of a group that stays.
    return read.terms[0][0] if len(read.terms) == 1 and not read.constant and kernel.width_out != read else ""
