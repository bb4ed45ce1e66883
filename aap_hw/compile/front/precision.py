"""Kernels in int8: which values of a network are stored as bytes, and the kernels that change the type of a value.

A kernel with weights reads bytes if it has a form that does. A light kernel does where everything that it reads is
bytes anyway; the others read float32. Between the two stand ``quantize`` and ``dequantize`` kernels, which a latency
table holds like all others.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace

from aap_hw.compile.families.quantised import WEIGHTED, has_int8_form, is_moving
from aap_hw.compile.front.changes import change, image_made_by, image_taken_by, reading
from aap_hw.compile.front.network import Kernel, Network
from aap_hw.compile.front.quantisation import Quantisation
from aap_hw.compile.keys.precision import FLOAT32_INT8, INT8, INT8_FLOAT32, Scale
from aap_hw.errors import UserError


def with_int8(
    network: Network,
    named: Mapping[str, str],
    quantisation: Quantisation | None = None,
    floats: Collection[str] = (),
) -> Network:
    """The network with kernels in int8, of the order of axes that `partition` makes.

    Without a ``quantisation``, the values that `values_in_int8` names are stored as bytes, and all weights that can be
    but those of the layers ``floats``. ``named`` gives the values of the network that are values of the program,
    perhaps in another order, their names there. No other can be stored, as its scale would not be known.
    """
    if quantisation is None:
        weighted = filter(_is_weighted, network.kernels)
        weights = {kernel.weight or "" for kernel in weighted if layer_of(kernel) not in floats}
        values = dict.fromkeys(values_in_int8(network, named, floats))
        return _Rewriting(network, named, values, weights).result()
    rewritten = _Rewriting(network, named, quantisation.values, quantisation.weights).result()
    scales = {named[name]: scale for name, scale in quantisation.values.items()}
    return replace(rewritten, quantisation=replace(quantisation, values=scales))


def values_in_int8(network: Network, named: Mapping[str, str], floats: Collection[str] = ()) -> frozenset[str]:
    """The values whose storing as bytes lets every kernel be in int8 that gains by it, but for ``floats``."""
    makers = {kernel.name: kernel for kernel in network.kernels}
    able: set[str] = set()  # names of what kernels make that have a form in int8

    def origins(kernel: Kernel) -> set[str]:
        return {_origin(name, makers) for name in kernel.inputs}

    def can_be_stored(name: str) -> bool:
        has_shape = name in able or name not in makers or image_made_by(makers[name]) is not None
        return name in named and has_shape

    for kernel in network.kernels:
        is_led = has_int8_form(kernel.key) and not _is_weighted(kernel) and origins(kernel) <= able
        is_led = is_led and bool(kernel.inputs) and not (kernel.constants and is_moving(kernel.key))
        if _is_weighted(kernel) or is_led:
            able.add(kernel.name)
    found: set[str] = set()
    for kernel in reversed(network.kernels):
        gains = layer_of(kernel) not in floats if _is_weighted(kernel) else kernel.name in able & found
        if gains and all(map(can_be_stored, origins(kernel))):
            found |= origins(kernel)
    return frozenset(found)


def values_of_one_scale(network: Network) -> tuple[frozenset[str], ...]:
    """Values of the program that kernels in int8 put side by side as they are, so that they must have one scale."""
    joined = [k for k in network.kernels if is_moving(k.key) and k.key.precision == INT8 and len(k.inputs) > 1]
    return _merged(frozenset(network.scaled[name] for name in (k.name, *k.inputs)) for k in joined)


def weights_in_int8(network: Network) -> frozenset[str]:
    """The names of the weights that kernels in int8 hold."""
    return frozenset(kernel.weight for kernel in network.kernels if kernel.weight and kernel.key.types.read == "uint8")


def weight_axes(network: Network) -> dict[str, int]:
    """The axis of the output channels of those weights, by their names, where it is not the first."""
    return {
        kernel.weight: 1
        for kernel in network.kernels
        if kernel.weight and kernel.key.types.read == "uint8" and kernel.reads_first
    }


def layer_of(kernel: Kernel) -> str:
    """The name of the layer whose weight a kernel holds, as it is in the model."""
    return (kernel.weight or "").removesuffix(".weight")


def _is_weighted(kernel: Kernel) -> bool:
    return kernel.key.op in WEIGHTED and kernel.weight is not None and has_int8_form(kernel.key)


def _origin(name: str, makers: Mapping[str, Kernel], scaled: Collection[str] = ()) -> str:
    """The value that a value was moved from, whose scale it has; those that are ``scaled`` have their own."""
    while name not in scaled and (maker := makers.get(name)) is not None and is_moving(maker.key):
        if len(maker.inputs) != 1 or maker.constants:
            break
        name = maker.inputs[0]
    return name


def _merged(sets: Iterable[frozenset[str]]) -> tuple[frozenset[str], ...]:
    """Sets of which those that share something are one."""
    apart: list[frozenset[str]] = []
    for each in sets:
        met = [other for other in apart if other & each]
        apart = [other for other in apart if not other & each]
        apart.append(each.union(*met))
    return tuple(apart)


class _Rewriting:
    """The kernels of a network up to a point, some of them in int8.

    Parameters
    ----------
    network
        In float32.
    named
        As of `with_int8`.
    scales
        Of the values that are stored as bytes. None stands for one that is not known yet.
    weights
        The weights that are.
    """

    def __init__(
        self,
        network: Network,
        named: Mapping[str, str],
        scales: Mapping[str, Scale | None],
        weights: Collection[str],
    ) -> None:
        self._network, self._named, self._scales, self._weights = network, named, scales, weights
        self._makers = {kernel.name: kernel for kernel in network.kernels}
        self._inputs = {port.name: port for port in network.inputs}
        self._kernels: list[Kernel] = []
        # For each value, what holds it as bytes, and what holds it in float32 again.
        self._bytes: dict[str, str] = {}
        self._floats: dict[str, str] = {}

    def result(self) -> Network:
        """The whole network."""
        for kernel in self._network.kernels:
            self._add(kernel)
        returned = [
            port if port.name in self._inputs else replace(port, name=self._in_float32(port.name))
            for port in self._network.outputs
        ]
        scaled = {held: self._named[self._origin(name)] for name, held in self._bytes.items()}
        return replace(self._network, kernels=tuple(self._kernels), outputs=tuple(returned), scaled=scaled)

    def _add(self, kernel: Kernel) -> None:
        if not self._is_in_int8(kernel):
            self._kernels.append(reading(kernel, [self._in_float32(name) for name in kernel.inputs]))
            return
        kernel = reading(kernel, [self._in_bytes(name) for name in kernel.inputs])
        makes_bytes = self._is_quantised(kernel.name)
        key = kernel.key.at_precision(INT8 if makes_bytes else INT8_FLOAT32)
        self._kernels.append(replace(kernel, key=key))
        if makes_bytes:
            self._bytes[kernel.name] = kernel.name

    def _is_in_int8(self, kernel: Kernel) -> bool:
        if not has_int8_form(kernel.key) or not kernel.inputs or not all(map(self._is_quantised, kernel.inputs)):
            return False
        if is_moving(kernel.key):
            is_stored = self._is_quantised(kernel.name)
            return is_stored and all(self._scale(name) == self._scale(kernel.name) for name in kernel.inputs)
        return not _is_weighted(kernel) or kernel.weight in self._weights

    def _is_quantised(self, name: str) -> bool:
        return self._origin(name) in self._scales

    def _origin(self, name: str) -> str:
        return _origin(name, self._makers, self._scales)

    def _scale(self, name: str) -> Scale | None:
        return self._scales[self._origin(name)]

    def _in_bytes(self, name: str) -> str:
        """Name of what holds a value as bytes; the kernel that makes it so is added if there is none yet."""
        if name not in self._bytes:
            self._bytes[name] = f"{name}_quantised"
            self._kernels.append(self._changed(name, name, self._bytes[name], "quantize", FLOAT32_INT8))
        return self._bytes[name]

    def _in_float32(self, name: str) -> str:
        """Name of what holds a value in float32, rounded to its scale if it has one."""
        is_moved_in_float32 = self._origin(name) != name and self._bytes.get(name) != name
        if not self._is_quantised(name) or is_moved_in_float32:
            return name
        if name not in self._floats:
            self._floats[name] = f"{name}_dequantised"
            self._kernels.append(
                self._changed(name, self._in_bytes(name), self._floats[name], "dequantize", INT8_FLOAT32)
            )
        return self._floats[name]

    def _changed(self, value: str, read: str, made: str, op: str, precision: str) -> Kernel:
        """The kernel that changes the type of a value."""
        port = self._inputs.get(value)
        image = image_taken_by(port) if port is not None else image_made_by(self._makers[value])
        if image is None:
            raise UserError(f"the value {value} is quantised, but its shape depends on several widths")
        is_planar = port is not None and port.is_image and read == value
        return change(made, read, image, op, precision, is_planar=is_planar)
