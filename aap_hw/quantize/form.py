"""A network in int8 as a run keeps it: which layers stay in float32, and the scales of the values of the others.

Scales of weights are not kept, as they follow from the weights. Everything is named as in the program of the network,
whose names are the same for one sample and for many. So what was calibrated in large batches holds for the network that
is compiled, which takes one sample.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.fx import GraphModule

from aap_hw.compile.code.quantized import LARGEST
from aap_hw.compile.front.network import Network
from aap_hw.compile.front.partition import partition
from aap_hw.compile.front.precision import weight_axes, weights_in_int8
from aap_hw.compile.front.quantisation import Quantisation
from aap_hw.compile.keys.precision import INT8, Scale
from aap_hw.compile.library.lowering import state_of
from aap_hw.compile.library.quantised import stand_in_scales
from aap_hw.errors import UserError
from aap_hw.graph import ChannelGraph
from aap_hw.graph.program.calling import ByPlace, Names
from aap_hw.graph.program.inputs import Tensors, in_batches
from aap_hw.inputs import Inputs
from aap_hw.quantize.calibration import folded, quantise
from aap_hw.quantize.quantizer import SMALLEST, WEIGHTS
from aap_hw.quantize.reading import LARGEST_SCALE, read_quantised


@dataclass(frozen=True)
class Int8Form:
    """What is stored in bytes, and how.

    Attributes
    ----------
    floats : names of layers that stay in float32, as they are called in the model.
    values : scales of values by their names in the program.
    """

    floats: tuple[str, ...]
    values: Mapping[str, Scale]

    def as_json(self) -> dict[str, Any]:
        """The form as JSON values."""
        values = {name: [each.scale, each.zero_point] for name, each in self.values.items()}
        return {"floats": list(self.floats), "values": values}

    @classmethod
    def from_json(cls, written: Mapping[str, Any]) -> Int8Form:
        """The form that ``as_json`` was of; an error of Python's if it was of none."""
        values = {name: Scale(float(scale), int(zero)) for name, (scale, zero) in written["values"].items()}
        for name, each in values.items():
            if not (1 / LARGEST_SCALE <= each.scale <= LARGEST_SCALE and 0 <= each.zero_point <= LARGEST):
                raise ValueError(f"{each} is no scale, of {name}")
        return cls(tuple(map(str, written["floats"])), values)

    def of(self, model: nn.Module, inputs: Inputs, batch: int = 1) -> tuple[GraphModule, Quantisation]:
        """The float program of a model for a batch, and its quantisation in this form.

        Raises
        ------
        UserError : the model is another than the one that was calibrated.
        """
        floating, network = program_of(model, inputs, inputs.zeros(batch), self.floats)
        if lost := sorted(self.values.keys() ^ set(network.scaled.values())):
            raise UserError(f"the scales are of another network: {lost[0]} is not quantised in both")
        return floating, Quantisation(self.values, _weight_scales(floating, network), axes=weight_axes(network))


def calibrated(model: nn.Module, inputs: Inputs, batches: Sequence[Tensors], floats: Collection[str] = ()) -> Int8Form:
    """The form that a model is given by what it computes for some samples, in batches of one shape.

    Some networks have another program for several samples; they are shown one after the other.
    """
    _, network = program_of(model, inputs, inputs.zeros(), floats)
    wanted = set(network.scaled.values())

    def found(shown: Iterable[Tensors]) -> Mapping[str, Scale]:
        reference = quantise(by_place(model, inputs.names), shown, inside(floats, inputs.names))
        return read_quantised(reference)[1].values

    values = found(batches)
    if values.keys() != wanted:
        values = found(each for batch in batches for each in in_batches(batch))
    return Int8Form(tuple(floats), values)


def for_timing(
    model: nn.Module, inputs: Inputs, floats: Collection[str] = ()
) -> tuple[GraphModule, Quantisation | None]:
    """A model's program for one sample, with stand-ins for its scales: enough to see how fast it is."""
    graph = ChannelGraph.trace(by_place(model, inputs.names), inputs.zeros())
    network = partition(graph, INT8, floats=inside(floats, inputs.names))
    return graph.program.module(check_guards=False), stand_in_scales(network, state_of(graph.program))


def program_of(
    model: nn.Module, inputs: Inputs, batch: Tensors, floats: Collection[str] = ()
) -> tuple[GraphModule, Network]:
    """The float program of a model for batches of a shape, and its kernels in int8."""
    floating = folded(by_place(model, inputs.names), batch)
    network = partition(ChannelGraph.trace(floating, batch), INT8, floats=inside(floats, inputs.names))
    return floating, network


def by_place(model: nn.Module, names: Names) -> nn.Module:
    """The model as torchao takes it."""
    return ByPlace(model, names) if any(names) else model


def prefix_by_place(names: Names) -> str:
    """What `by_place` puts before the names of a model's layers."""
    return "network." if any(names) else ""


def inside(layers: Collection[str], names: Names) -> set[str]:
    """What layers of a model are called in the model as torchao takes it."""
    return {prefix_by_place(names) + layer for layer in layers}


def restricted(floating: GraphModule, values: Mapping[str, Scale], network: Network) -> Quantisation:
    """The quantisation of those values and weights that are in bytes in a network of kernels."""
    held = set(network.scaled.values())
    kept = {name: values[name] for name in held}
    return Quantisation(kept, _weight_scales(floating, network), axes=weight_axes(network))


def _weight_scales(floating: GraphModule, network: Network) -> dict[str, np.ndarray]:
    """One scale an output channel: as torchao's observer has it, to the bit."""
    state, axes, found = floating.state_dict(), weight_axes(network), {}
    for name in sorted(weights_in_int8(network)):
        rows = state[name].detach().movedim(axes.get(name, 0), 0).flatten(1)
        largest = torch.maximum(-rows.amin(1).clamp(max=0), rows.amax(1).clamp(min=0))
        scale = largest / (float(WEIGHTS.quant_max - WEIGHTS.quant_min) / 2)
        found[name] = scale.clamp(min=SMALLEST).numpy()
    return found
