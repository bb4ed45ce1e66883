"""Which layers stay in float32, as rounding them costs too much: found by rounding them one at a time.

Scales are measured once. Then the program is run with the roundings of some layers only, which are those that its
kernels in int8 would make: `aap_hw.compile.front.partition` says which values these read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from aap_hw.activity import doing
from aap_hw.compile.front.partition import partition
from aap_hw.compile.front.precision import layer_of, weights_in_int8
from aap_hw.compile.keys.precision import INT8
from aap_hw.graph import ChannelGraph
from aap_hw.graph.program.inputs import Tensors
from aap_hw.inputs import Inputs
from aap_hw.quantize.calibration import quantise
from aap_hw.quantize.form import by_place, prefix_by_place, restricted
from aap_hw.quantize.ranges import noise_share, outputs_of
from aap_hw.quantize.reading import read_quantised
from aap_hw.quantize.reference import rounded

Outputs = list[Tensor]
Loss = Callable[[Outputs, Outputs], float]


@dataclass(frozen=True)
class FloatLayers:
    """Layers that stay in float32.

    Attributes
    ----------
    names : of the layers, the one that loses most first.
    lost : what is lost without them.
    lost_by_all : what would be lost if every layer was rounded.
    noise : for each layer, what rounding it alone does to the outputs: the mean square of the difference over the
        outputs' variance. Empty if none has to stay.
    """

    names: tuple[str, ...]
    lost: float
    lost_by_all: float
    noise: dict[str, float]


@doing("finding layers that lose too much in int8")
def float_layers(
    model: nn.Module, inputs: Inputs, batches: Sequence[Tensors], loss: Loss, allowed: float
) -> FloatLayers:
    """The fewest layers, of those that lose most on their own, without which the others lose what is allowed.

    Parameters
    ----------
    batches
        Samples in batches of one shape.
    loss
        What is lost, in any unit, by the float outputs and the rounded ones; each in a list, batch by batch.
    """
    prefix = prefix_by_place(inputs.names)
    floating, quantisation = read_quantised(quantise(by_place(model, inputs.names), batches))
    graph = ChannelGraph.trace(floating, batches[0])
    whole = partition(graph, INT8)
    weights = weights_in_int8(whole)
    layers = list(dict.fromkeys(layer_of(kernel) for kernel in whole.kernels if kernel.weight in weights))
    exact = outputs_of(floating, batches)

    def without(floats: Sequence[str]) -> Outputs:
        network = partition(graph, INT8, floats=floats)
        return outputs_of(rounded(floating, restricted(floating, quantisation.values, network)), batches)

    lost_by_all = loss(exact, without(()))
    if lost_by_all <= allowed:
        return FloatLayers((), lost_by_all, lost_by_all, {})
    noise = {layer: noise_share(exact, without([other for other in layers if other != layer])) for layer in layers}
    worst = sorted(layers, key=lambda layer: -noise[layer])
    known: dict[int, float] = {0: lost_by_all, len(worst): 0.0}
    few, many = 0, len(worst)  # too few stay, and enough
    while many - few > 1:
        middle = (few + many) // 2
        known[middle] = loss(exact, without(worst[:middle]))
        few, many = (few, middle) if known[middle] <= allowed else (middle, many)
    named = {layer.removeprefix(prefix): each for layer, each in noise.items()}
    return FloatLayers(tuple(layer.removeprefix(prefix) for layer in worst[:many]), known[many], lost_by_all, named)
