"""What rounding costs a network, in the unit of what narrower groups cost it.

A number that is stored in int8 or in half precision is another one afterwards. The error is known: values and weights
are rounded as kernels do, for samples that the network is shown. By the gradients of the outputs it is also known how
far they move (`aap_hw.attention.projections`): the mean square of ``sum of error * gradient`` is the noise that
rounding adds to them. So what is averaged away on its way counts for little, and what is off in the same way at all
places counts for much.

The unit: a channel that goes takes with it what varies of it (`aap_hw.attention.reading`), and the same mean square,
of ``sum of (value - mean) * gradient``, is the noise of that. Channels are paid for in sensitivities
(`aap_hw.attention.sensitivity`). So noise is converted at the rate at which all channels of all groups are: the sum of
their sensitivities for the sum of their noise.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from aap_hw.attention.projections import OnGradient, Projections
from aap_hw.attention.reading import batch_norm_scales
from aap_hw.attention.sensitivity import GroupChanges
from aap_hw.graph import ChannelGraph
from aap_hw.graph.program.call import Call
from aap_hw.graph.program.inputs import Batch
from aap_hw.graph.program.weights import OPERANDS, weight_of

INT8 = "int8"
# Numbers of a byte, and the largest weight; the smallest step is that of what is always 0.
LARGEST_VALUE, LARGEST_WEIGHT, SMALLEST_STEP = 255, 127, 2.0**-20
# Noise beyond all measure, as of a number that is infinite in float16.
MOST_NOISE = 1e6


@dataclass(frozen=True)
class Rounded:
    """What is rounded together: values by their names in the traced program, and the weights of layers."""

    values: Collection[str]
    layers: Collection[str]


@dataclass(frozen=True)
class Dependence:
    """What a network's outputs depend on.

    Attributes
    ----------
    groups : sensitivity of each group that may be cut; see `aap_hw.attention.sensitivity`.
    noise : for each thing that is rounded, by precision, the mean square by which a random projection of the outputs
        changes, which is as a share of each output's variance, added up over the outputs.
    rate : sensitivity for a unit of noise.
    """

    groups: Mapping[str, float]
    noise: Mapping[str, Mapping[str, float]]
    rate: float

    @property
    def rounding(self) -> dict[str, dict[str, float]]:
        """What rounding costs, in the unit of sensitivities."""
        return {
            name: {precision: noise * self.rate for precision, noise in found.items()}
            for name, found in self.noise.items()
        }


def dependence(
    model: nn.Module,
    graph: ChannelGraph,
    samples: Batch,
    rounded: Mapping[str, Rounded],
    precisions: Collection[str] = (INT8,),
) -> Dependence:
    """How much the outputs depend on each group that may be cut, and on what may be rounded.

    Parameters
    ----------
    samples
        Images (N, C, H, W), or whatever the graph was traced with. Ranges of values are those seen in them.
    rounded
        What may be rounded, by any names. All that has one name is rounded at once.
    precisions
        ``int8``, ``bfloat16`` or ``float16``.

    Raises
    ------
    UserError : as of `sensitivities`.
    """
    changes, errors = GroupChanges(graph), _Errors(model, graph, rounded, precisions)
    sums = _Sums(changes.dims)

    def see(node: str, value: object) -> None:
        if isinstance(value, Tensor) and value.is_floating_point():
            sums.see(node, value)
            errors.see(node, value)

    projections = Projections(graph, samples, {*changes.dims, *errors.watched}, see)
    changes.means = sums.means()

    def watch(run: fx.Interpreter, node: fx.Node, value: Tensor) -> Sequence[OnGradient]:
        return [*changes.watch(run, node, value), *errors.watch(run, node, value)]

    projections.follow(watch, errors.drawn)
    groups = changes.sensitivities(projections.count)
    by_channels = math.fsum(changes.variances(projections.count).values())
    rate = math.fsum(groups.values()) / by_channels if by_channels > 0 else 1.0
    return Dependence(groups, errors.noise(projections.count), rate)


class _Sums:
    """Sums of the channels of some nodes."""

    def __init__(self, dims: Mapping[str, int]) -> None:
        self._dims = dims
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}

    def see(self, node: str, value: Tensor) -> None:
        if node in self._dims:
            by_channel = value.movedim(self._dims[node], 0).flatten(1)
            self._sums[node] = self._sums.get(node, 0.0) + by_channel.sum(1).double()
            self._counts[node] = self._counts.get(node, 0) + by_channel.shape[1]

    def means(self) -> dict[str, Tensor]:
        return {node: each / self._counts[node] for node, each in self._sums.items()}


class _Errors:
    """What rounding does to values and weights, and how far that moves the outputs."""

    def __init__(
        self, model: nn.Module, graph: ChannelGraph, rounded: Mapping[str, Rounded], precisions: Collection[str]
    ) -> None:
        self._precisions, self._batch = tuple(precisions), graph.batch
        self._of_value = {value: name for name, each in rounded.items() for value in each.values}
        of_layer = {layer: name for name, each in rounded.items() for layer in each.layers}
        self._ranges: dict[str, tuple[float, float]] = {}
        state: dict[str, Tensor] = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        self._scales = batch_norm_scales(graph, state)
        # By the node of a layer: what it is rounded with, and by precision how far its weight is off.
        self._weights: dict[str, tuple[str, dict[str, Tensor]]] = {}
        signature = graph.program.graph_signature
        names = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
        for node in graph.program.graph.nodes:
            weight = weight_of(node) if node.op == "call_function" else None
            parameter = names.get(weight.name, "") if weight is not None else ""
            if (layer := parameter.removesuffix(".weight")) in of_layer and parameter:
                self._weights[node.name] = of_layer[layer], self._weight_errors(node, parameter, state[parameter])
        self._changes: dict[tuple[str, str], Tensor] = {}
        self._squares = {(name, each): 0.0 for name in rounded for each in self._precisions}

    @torch.no_grad()
    def _weight_errors(self, node: fx.Node, parameter: str, weight: Tensor) -> dict[str, Tensor]:
        axis = 1 if "transpose" in Call(node).name or Call(node).name in OPERANDS else 0
        shape = [-1 if at == axis else 1 for at in range(weight.dim())]
        found = {}
        for precision in self._precisions:
            if precision == INT8:
                steps = weight.abs().movedim(axis, 0).flatten(1).amax(1).clamp(min=SMALLEST_STEP) / LARGEST_WEIGHT
                steps = steps.reshape(shape)
                made = (weight / steps).round() * steps
            else:
                # Kernels hold the product with the factor of the batch norm behind them.
                factor = self._scales.get(parameter)
                factor = torch.ones(()) if factor is None else torch.where(factor == 0, 1.0, factor).reshape(shape)
                made = _in_half(weight * factor, precision) / factor
            found[precision] = (made - weight).to(weight.dtype)
        return found

    @property
    def watched(self) -> set[str]:
        """The nodes of the values and of the layers that are rounded."""
        return {*self._of_value, *self._weights}

    def see(self, node: str, value: Tensor) -> None:
        """Note the range of a value; that of a byte always holds 0."""
        if node in self._of_value and value.numel():
            low, high = self._ranges.get(node, (0.0, 0.0))
            self._ranges[node] = min(low, float(value.min())), max(high, float(value.max()))

    def watch(self, run: fx.Interpreter, node: fx.Node, value: Tensor) -> list[OnGradient]:
        """As of `Projections.follow`."""
        found = []
        with torch.no_grad():
            if node.name in self._of_value:
                name, exact = self._of_value[node.name], value.detach()
                for precision in self._precisions:
                    found.append(self._adding(name, precision, self._rounded(node.name, exact, precision) - exact))
            if node.name in self._weights:
                name, errors = self._weights[node.name]
                for precision, error in errors.items():
                    found.append(self._adding(name, precision, _with_weight(run, node, error)))
        return found

    def _rounded(self, node: str, value: Tensor, precision: str) -> Tensor:
        if precision != INT8:
            return _in_half(value, precision)
        low, high = self._ranges[node]
        if not math.isfinite(high - low):
            return value  # which gradients tell
        step = max((high - low) / LARGEST_VALUE, SMALLEST_STEP)
        return torch.fake_quantize_per_tensor_affine(value, step, round(-low / step), 0, LARGEST_VALUE)

    def _adding(self, name: str, precision: str, error: Tensor) -> OnGradient:
        def add(_: Tensor, gradient: Tensor) -> None:
            change = (error * gradient).reshape(self._batch, -1).sum(1).double()
            before = self._changes.get((name, precision))
            self._changes[name, precision] = change if before is None else before + change

        return add

    def drawn(self) -> None:
        """Count what one draw has told."""
        for at, change in self._changes.items():
            self._squares[at] += float(change.square().sum())
        self._changes.clear()

    def noise(self, count: int) -> dict[str, dict[str, float]]:
        """Mean squares, of so many samples and draws."""
        found: dict[str, dict[str, float]] = {}
        for (name, precision), squares in self._squares.items():
            noise = squares / count
            found.setdefault(name, {})[precision] = min(noise, MOST_NOISE) if math.isfinite(noise) else MOST_NOISE
        return found


def _in_half(values: Tensor, precision: str) -> Tensor:
    return values.to(getattr(torch, precision)).to(values.dtype)


def _with_weight(run: fx.Interpreter, node: fx.Node, weight: Tensor) -> Tensor:
    """What a layer computes with another weight and without bias."""
    call = Call(node)
    if call.name in OPERANDS:
        left, _ = OPERANDS[call.name]
        product: Tensor = run.env[call[left]] @ weight * call.get("alpha", 1)
        return product
    other: dict[Any, Tensor | None] = {call["weight"]: weight}
    if isinstance(bias := call.get("bias"), fx.Node):
        other[bias] = None
    args = fx.node.map_arg(node.args, lambda each: other[each] if each in other else run.env[each])
    kwargs = fx.node.map_arg(node.kwargs, lambda each: other[each] if each in other else run.env[each])
    found: Tensor = node.target(*args, **kwargs)  # type: ignore[operator]
    return found
