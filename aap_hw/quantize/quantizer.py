"""Which values of a network torchao quantises: those that kernels in int8 read, as the partition says."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.fx import GraphModule, Node

from aap_hw.compile.code.quantized import GATED, LEAST_STEP
from aap_hw.compile.front.partition import partition
from aap_hw.compile.front.precision import values_of_one_scale, weight_axes, weights_in_int8
from aap_hw.compile.keys.precision import INT8
from aap_hw.errors import UserError
from aap_hw.graph import ChannelGraph
from aap_hw.graph.program.call import Call
from aap_hw.graph.program.inputs import Tensors
from aap_hw.graph.program.weights import is_product_with, weight_of
from aap_hw.quantize.pt2e import (
    FusedMovingAvgObsFakeQuantize,
    MovingAverageMinMaxObserver,
    MovingAveragePerChannelMinMaxObserver,
    PerChannelMinMaxObserver,
    QuantizationAnnotation,
    QuantizationSpec,
    QuantizationSpecBase,
    Quantizer,
    SharedQuantizationSpec,
)
from aap_hw.quantize.ranges import RangeObserver

# The smallest scale of most values. A value that is always 0 in calibration would have none.
SMALLEST = 2.0**-20
# Affine, one scale and zero point for the tensor. How far the range reaches is chosen by `ranges`.
VALUES = QuantizationSpec(
    dtype=torch.uint8,
    quant_min=0,
    quant_max=255,
    qscheme=torch.per_tensor_affine,
    observer_or_fake_quant_ctr=RangeObserver.with_args(eps=SMALLEST),
)
GATED_VALUES = replace(VALUES, observer_or_fake_quant_ctr=RangeObserver.with_args(eps=LEAST_STEP))
# Symmetric, one scale for each output channel.
WEIGHTS = QuantizationSpec(
    dtype=torch.int8,
    quant_min=-127,
    quant_max=127,
    qscheme=torch.per_channel_symmetric,
    ch_axis=0,
    observer_or_fake_quant_ctr=PerChannelMinMaxObserver.with_args(eps=SMALLEST),
)


@dataclass(frozen=True)
class Roundings:
    """How values and weights are rounded, and how their ranges are found. Steps of `GATED` functions are wider."""

    values: QuantizationSpec = VALUES
    weights: QuantizationSpec = WEIGHTS
    gated: QuantizationSpec = GATED_VALUES


MEASURED = Roundings()
"""Ranges are measured on images, and nothing is rounded meanwhile."""

_LEARNT_VALUES = replace(
    VALUES, observer_or_fake_quant_ctr=FusedMovingAvgObsFakeQuantize.with_args(observer=MovingAverageMinMaxObserver)
)
LEARNT = Roundings(
    _LEARNT_VALUES,
    replace(
        WEIGHTS,
        observer_or_fake_quant_ctr=FusedMovingAvgObsFakeQuantize.with_args(
            observer=MovingAveragePerChannelMinMaxObserver
        ),
    ),
    _LEARNT_VALUES,
)
"""Ranges follow what is seen in training, and everything is rounded to them at once."""


class KernelQuantizer(Quantizer):  # type: ignore[misc] # torchao has no types
    """Has everything quantised that kernels in int8 read, and nothing within a kernel.

    Parameters
    ----------
    inputs
        A batch as the network takes it; only shapes and types matter.
    floats
        Layers whose weights stay in float32.
    how
        What is done to values and weights. None leaves them alone, so that only batch normalisation is folded.
    """

    def __init__(self, inputs: Tensors, floats: Collection[str] = (), how: Roundings | None = MEASURED) -> None:
        self._inputs, self._floats, self._how = inputs, floats, how
        self._values: frozenset[str] = frozenset()
        self._gated: frozenset[str] = frozenset()
        self._alike: tuple[frozenset[str], ...] = ()
        self._weights: frozenset[str] = frozenset()
        self._axes: dict[str, int] = {}

    def transform_for_annotation(self, model: GraphModule) -> GraphModule:
        """The program as the partition sees it. By now batch normalisation is folded into the weights."""
        graph = ChannelGraph.trace(GraphModule(model, model.graph), self._inputs)
        network = partition(graph, INT8, floats=self._floats)
        self._values, self._weights = frozenset(network.scaled.values()), weights_in_int8(network)
        self._alike, self._axes = values_of_one_scale(network), weight_axes(network)
        gated = (each.name for each in network.kernels if not GATED.isdisjoint({each.key.op, *each.key.epilogue}))
        self._gated = frozenset(network.scaled[name] for name in gated if name in network.scaled)
        if not self._values:
            raise UserError("the network has no kernel that could compute in int8; leave it in float")
        return graph.program.module(check_guards=False)

    def annotate(self, model: GraphModule) -> GraphModule:
        """Mark nodes for torchao."""
        first: dict[frozenset[str], Node] = {}  # of the values of one scale
        names = {name_of(node) for node in model.graph.nodes}
        assert self._values | self._weights <= names, (self._values | self._weights) - names
        for node in model.graph.nodes:
            node.meta["quantization_annotation"] = QuantizationAnnotation(
                input_qspec_map=self._read_specifications(node),
                output_qspec=self._specification(node, first) if name_of(node) in self._values else None,
                _annotated=True,
            )
        return model

    def _read_specifications(self, node: Node) -> dict[Node, QuantizationSpecBase | None]:
        weight = weight_of(node) if node.op == "call_function" else None
        if self._how is None or weight is None:
            return {}
        name, specification = name_of(weight), None
        if name in self._weights:
            specification = replace(self._how.weights, ch_axis=self._axes.get(name, 0))
        if self._how is LEARNT and not is_product_with(node, weight):
            # Of layers with batch norm torchao wants both in training: first what is read, then the weight.
            return {Call(node).first: None, weight: specification}
        return {} if specification is None else {weight: specification}

    def _specification(self, node: Node, first: dict[frozenset[str], Node]) -> QuantizationSpecBase | None:
        if self._how is None:
            return None
        name = name_of(node)
        alike = next((each for each in self._alike if name in each), frozenset({name}))
        leader = first.setdefault(alike, node)
        if leader is not node:
            return SharedQuantizationSpec(leader)
        return self._how.values if self._gated.isdisjoint(alike) else self._how.gated

    def validate(self, model: GraphModule) -> None:
        """Nothing that was marked can be wrong."""


def name_of(node: Node) -> str:
    """The name of a value in the traced program, or of a weight in the model's state.

    fx calls an input `input_1` where the program has `input`, which is a function of Python's.
    """
    target: Any = node.target
    return str(target) if node.op in ("get_attr", "placeholder") else node.name
