"""Kernels in half precision: which values of a network are stored in it, and the kernels that change a value's type.

A kernel with weights reads half precision if it has a form that does, as it is twice as fast then. A light kernel does
where everything that it reads is in half precision anyway; the others read float32. What no kernel reads in half
precision stays as exact as it was computed, so that a network's outputs are float32 without another kernel.

Beside int8, kernels that do not read bytes are in half precision, and those that read bytes make it for them. What is
stored as bytes next is made in float32, as it would be rounded twice.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

from aap_hw.compile.families.half import FASTER, has_half_form
from aap_hw.compile.front.changes import change, image_made_by, image_taken_by, reading
from aap_hw.compile.front.network import Kernel, Network
from aap_hw.compile.keys.precision import FLOAT32, INT8, INT8_FLOAT32


def with_half(network: Network, named: Mapping[str, str], half: str, able: Collection[str]) -> Network:
    """The network with kernels in half precision, ``bfloat16`` or ``float16``, of the order of axes of `partition`.

    They are those of the names ``able``, as of `in_half`, that are in float32 so far. ``named`` gives the values of the
    network that are values of the program, perhaps in another order, their names there.
    """
    rewriting = _Rewriting(network, half, able)
    stored = frozenset(named[name] for name in rewriting.read_in_half if name in named)
    return replace(rewriting.result(), in_half=stored)


def in_half(network: Network) -> frozenset[str]:
    """The names of the kernels of a network in float32 that read half precision if it has any such kernels."""
    makers = {kernel.name: kernel for kernel in network.kernels}
    found: set[str] = set()

    def can_be(name: str) -> bool:
        return name in found or name not in makers or image_made_by(makers[name]) is not None

    for kernel in network.kernels:
        if not has_half_form(kernel.key) or not kernel.inputs or image_made_by(kernel) is None:
            continue
        is_weighted = kernel.key.op in FASTER and kernel.weight is not None
        if all(map(can_be, kernel.inputs)) if is_weighted else found.issuperset(kernel.inputs):
            found.add(kernel.name)
    return frozenset(found)


class _Rewriting:
    """The kernels of a network up to a point, some of them in half precision.

    Attributes
    ----------
    read_in_half : names of the values that kernels read in half precision.
    """

    def __init__(self, network: Network, half: str, able: Collection[str]) -> None:
        self._network, self._half = network, half
        self._makers = {kernel.name: kernel for kernel in network.kernels}
        self._inputs = {port.name: port for port in network.inputs}
        self._in_half = {k.name for k in network.kernels if k.name in able and k.key.precision == FLOAT32}
        self.read_in_half = {n for kernel in network.kernels if kernel.name in self._in_half for n in kernel.inputs}
        self._kernels: list[Kernel] = []
        # By value and type, what holds it.
        self._held: dict[tuple[str, str], str] = {}

    def result(self) -> Network:
        """The whole network."""
        for kernel in self._network.kernels:
            self._kernels.append(self._as_it_computes(kernel))
        outputs = [
            port if port.name in self._inputs else replace(port, name=self._as(FLOAT32, port.name))
            for port in self._network.outputs
        ]
        return replace(self._network, kernels=tuple(self._kernels), outputs=tuple(outputs))

    def _as_it_computes(self, kernel: Kernel) -> Kernel:
        """A kernel that reads and makes what it is to; those that turn what it reads into that are added."""
        made, types = self._made(kernel.name), kernel.key.types
        if types.read == "uint8":
            if kernel.key.precision != INT8_FLOAT32 or made == FLOAT32:
                return kernel
            return replace(kernel, key=kernel.key.at_precision(f"{INT8}_{made}"))
        read = self._half if kernel.name in self._in_half else FLOAT32
        kernel = reading(kernel, [self._as(read, name) for name in kernel.inputs])
        if types.made == "uint8":
            return kernel
        return replace(kernel, key=kernel.key.at_precision(read if read == made else f"{read}_{made}"))

    def _made(self, name: str) -> str:
        """The type in which the kernel of a name makes its value, if that is no bytes."""
        if name not in self.read_in_half or name not in self._makers:
            return FLOAT32
        is_able = name in self._in_half or self._makers[name].key.precision == INT8_FLOAT32
        return self._half if is_able else FLOAT32

    def _as(self, type_: str, name: str) -> str:
        """Name of what holds a value in a type; the kernel that makes it so is added if there is none yet."""
        made = self._made(name)
        if type_ == made:
            return name
        if (name, type_) not in self._held:
            port = self._inputs.get(name)
            image = image_taken_by(port) if port is not None else image_made_by(self._makers[name])
            assert image is not None, name
            op = "to_nhwc" if port is not None and port.is_image else "cast"
            self._held[name, type_] = f"{name}_{type_}"
            self._kernels.append(change(f"{name}_{type_}", name, image, op, f"{made}_{type_}"))
        return self._held[name, type_]
