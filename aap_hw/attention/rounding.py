"""What rounding costs, in the unit of attention: the variance that it adds to what layers compute.

`aap_hw.attention.reading` scores a channel by the variance that it adds to what its readers compute, and a channel that
is removed is so much that they lose. A number rounded to int8 is off by anything up to half a step, which is a variance
of ``step^2 / 12``. So both are noise that the next layers read. A layer whose rounding adds a thousandth of what it
reads is as far off as one that has lost a channel with a thousandth of the attention.

In half precision a step is in proportion to the number's power of two: ``2^-7`` of it in bfloat16, ``2^-10`` in float16
(IEEE 754, 3.4; bfloat16 is float32 without its last 16 bits). That is a variance of ``2^-14 / 12`` of the square of
that power, so 2 to 5 millionths of the square of a number in bfloat16. What rounding does to each number is known here,
so its square is added up as it is, too small numbers and infinite ones included.

What all readers lose is the mean of their shares, weighted by what they read, as it is for a channel that is removed.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.fx import Node

from aap_hw.attention.observer import Watcher
from aap_hw.attention.reading import READERS, batch_norm_scales
from aap_hw.graph import ChannelGraph
from aap_hw.graph.program.call import Call, shape_of
from aap_hw.graph.program.inputs import Batch, in_batches, tensors_of

Array = NDArray[np.float64]

# Steps of a value stored in a byte from its smallest number to its largest, and of a weight from 0 to its largest.
VALUE_STEPS, WEIGHT_STEPS = 255, 127
# Variance of what is rounded to whole numbers, as all that lies between two of them is equally likely.
OF_A_STEP = 1 / 12


@dataclass(frozen=True)
class LayerNoise:
    """What one layer reads, and what rounding adds to it; both as variances of what the layer computes.

    Attributes
    ----------
    node, dim : where it reads: the name of a node of the traced program, and its axis of channels.
    signal : ``sum over channels of V_c |W[:, c]|^2``, as of read attention.
    noise : of int8: ``sum over channels of p_c (step^2 / 12) |W[:, c]|^2 + E_c sum over weights of c of
        (step_o^2 / 12)``, with the steps of the value and of each output channel's weights, p_c how often the channel
        is not 0, which is rounded to itself, and E_c its mean square.
    half_noise : of half precision, likewise: ``sum over channels of R_c |W[:, c]|^2 + E_c sum over weights of c of
        (round(w) - w)^2``, with R_c the mean square of what rounding does to the channel's values; 0 if none was asked
        for.
    is_depthwise : whether each channel is read by its own filter.
    """

    node: str
    dim: int
    signal: float
    noise: float
    is_depthwise: bool
    half_noise: float = 0.0


def layer_noise(
    model: nn.Module, graph: ChannelGraph, samples: Batch, half: str | None = None
) -> dict[str, LayerNoise]:
    """What rounding adds to each convolution and linear layer of a network, by the layer's name.

    Parameters
    ----------
    samples
        Images (N, C, H, W), or whatever the graph was traced with. Ranges of values are those seen in them.
    half
        ``bfloat16`` or ``float16``, to know the noise of that, too.
    """
    type_ = None if half is None else getattr(torch, half)
    network, readers = graph.program.module(check_guards=False), _readers(graph)
    seen = {call["input"].name: _Seen(dim, type_) for call, dim in readers.values()}

    def see(node: str, value: object) -> None:
        if node in seen and isinstance(value, Tensor):
            seen[node].add(value)

    inputs = tensors_of(samples)
    whole = len(inputs[0]) // graph.batch * graph.batch
    with torch.no_grad():
        for given in in_batches(tuple(each[:whole] for each in inputs), graph.batch):
            Watcher(network, see).run(*(each.clone() for each in given))
    state: dict[str, Tensor] = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    scales = batch_norm_scales(graph, state)
    found = {}
    for parameter, (call, dim) in readers.items():
        weight = state[parameter].detach().double()
        if (scale := scales.get(parameter)) is not None:
            weight = weight * scale.reshape(-1, *[1] * (weight.dim() - 1))
        groups = call.get("groups", 1)
        found[parameter.removesuffix(".weight")] = _noise(
            weight, groups, seen[call["input"].name], call["input"], dim, type_
        )
    return found


def rounding_share(layers: Mapping[str, LayerNoise], names: Collection[str], *, in_half: bool = False) -> float:
    """Share of what some layers compute that is noise if all that they read and their weights are rounded.

    They are rounded to int8, or to half precision.

    Layers that read side by side lose the mean of their shares, weighted by what they read. Depthwise ones stand before
    others that read the same channels, so that their share is added. Layers that are not known count as nothing.
    """
    total = 0.0
    for is_depthwise in (False, True):
        some = [layers[name] for name in names if name in layers and layers[name].is_depthwise == is_depthwise]
        signal = sum(each.signal for each in some)
        total += sum(each.half_noise if in_half else each.noise for each in some) / signal if signal > 0 else 0.0
    return min(total, 1.0)


def _readers(graph: ChannelGraph) -> dict[str, tuple[Call, int]]:
    """The call of each layer by its weight, and the axis of channels of what it reads."""
    signature = graph.program.graph_signature
    names = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    found = {}
    for node in graph.program.graph.nodes:
        call = Call(node)
        if node.op == "call_function" and call.name in READERS and isinstance(call["input"], Node):
            weight = call["weight"]
            if isinstance(weight, Node) and (name := names.get(weight.name)) is not None:
                found[name] = (call, len(shape_of(call["input"])) - 1 if call.name == "linear" else 1)
    return found


class _Seen:
    """Sums and range of one activation, of which images are added."""

    def __init__(self, dim: int, half: torch.dtype | None = None) -> None:
        self._dim, self._half, self._count = dim, half, 0
        self._sum = self._squares = self._others = self._halved = torch.zeros((), dtype=torch.float64)
        self._low = self._high = 0.0  # a byte always has a number for 0

    def add(self, activation: Tensor) -> None:
        """Count the values of a batch."""
        values = activation.movedim(self._dim, 0).flatten(1).double()
        if self._half is not None:
            self._halved = self._halved + _off(values, self._half).sum(1)
        self._count += values.shape[1]
        self._sum = self._sum + values.sum(1)
        self._squares = self._squares + values.square().sum(1)
        self._others = self._others + (values != 0).double().sum(1)
        self._low, self._high = min(self._low, float(values.min())), max(self._high, float(values.max()))

    def energy(self) -> Tensor:
        """Mean square of each channel."""
        return self._squares / self._count

    def variance(self) -> Tensor:
        """Variance of each channel."""
        return (self.energy() - (self._sum / self._count).square()).clamp(min=0)

    def rounding(self) -> Tensor:
        """Variance that storing it in bytes adds to each channel; what is 0 stays so."""
        return ((self._high - self._low) / VALUE_STEPS) ** 2 * OF_A_STEP * self._others / self._count

    def halving(self) -> Tensor:
        """The same of half precision."""
        return self._halved / self._count


def _off(values: Tensor, half: torch.dtype) -> Tensor:
    """Squares of how far off numbers of float64 are in half precision."""
    return (values.to(half).double() - values).square()


def _noise(weight: Tensor, groups: int, read: _Seen, value: Node, dim: int, half: torch.dtype | None) -> LayerNoise:
    outputs, inputs = weight.shape[:2]
    # (groups, outputs of one, inputs of one, positions)
    apart = weight.reshape(groups, outputs // groups, inputs, -1)
    squares = apart.square().sum((1, 3)).flatten()
    largest = apart.abs().amax((2, 3))
    rounding = (largest / WEIGHT_STEPS).square().sum(1) * OF_A_STEP * apart.shape[3]  # of all weights of one input
    noise = (read.rounding() * squares).sum() + (read.energy() * rounding.repeat_interleave(inputs)).sum()
    signal, half_noise = (read.variance() * squares).sum(), torch.zeros(())
    if half is not None:
        rounding = _off(apart, half).sum((1, 3)).flatten()
        half_noise = (read.halving() * squares).sum() + (read.energy() * rounding).sum()
    is_depthwise = groups > 1 and inputs == 1
    return LayerNoise(value.name, dim, float(signal), float(noise), is_depthwise, float(half_noise))
