"""What a kernel in int8 holds of a model: its weights as int8, and the scales of what it reads and makes."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from aap_hw.compile.code.quantized import Quantized
from aap_hw.compile.front.network import Kernel, Network
from aap_hw.compile.front.precision import weight_axes
from aap_hw.compile.front.quantisation import LARGEST_WEIGHT, Quantisation
from aap_hw.compile.keys.precision import Scale
from aap_hw.compile.library.folding import folded, folded_weights, weight_of
from aap_hw.errors import UserError

# Of stand-ins: values from -4 to 4, which no float kernel makes extreme.
_SCALE, _MIDDLE = 2.0**-5, 128


def quantised(
    kernel: Kernel, network: Network, state: Mapping[str, torch.Tensor], constants: tuple[np.ndarray, ...] = ()
) -> Quantized:
    """The weights, constants and scales of a kernel, with its batch normalisation folded into the scales.

    y = s (w x + b - mean) + beta, and w = q * scale, so that the weights q stay as they are, and their scales become
    s * scale.
    """
    quantisation = network.quantisation
    assert quantisation is not None, "without scales there are no constants"
    scales = {held: quantisation.values[name] for held, name in network.scaled.items()}
    read, made = tuple(scales[name] for name in kernel.inputs if name in scales), scales.get(kernel.name)
    if kernel.weight is None:
        if kernel.normalization is None:
            return Quantized(read, made, constants=constants)
        factors_and_summands = folded_weights(kernel, state)
        return Quantized(read, made, None, *factors_and_summands)
    weight, scale = weight_of(kernel, state), torch.from_numpy(quantisation.weights[kernel.weight])
    factors, bias = folded(kernel, torch.ones(len(weight), dtype=torch.float64), state)
    numbers = _rounded(weight, scale, quantisation.lowest_weight(kernel.weight))
    return Quantized(read, made, numbers, (factors * scale.double()).float().numpy(), bias.float().numpy())


def with_rounded_weights(quantisation: Quantisation, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A model's tensors, of which those are rounded that were quantised: kernels in float32 may read some of them.

    Raises
    ------
    UserError : there are no weights of a name.
    """
    if lost := sorted(quantisation.weights.keys() - state.keys()):
        raise UserError(f"the weights {lost[0]} are quantised, but the network reads none of that name")
    rounded = dict(state)
    for name, scale in quantisation.weights.items():
        first = state[name].movedim(quantisation.axes.get(name, 0), 0)
        steps = torch.from_numpy(scale).reshape(-1, *[1] * (first.dim() - 1))
        numbers = _rounded(first, torch.from_numpy(scale), quantisation.lowest_weight(name))
        made = torch.from_numpy(numbers).float() * steps
        rounded[name] = made.movedim(0, quantisation.axes.get(name, 0)).contiguous()
    return rounded


def stand_in_scales(network: Network, state: Mapping[str, torch.Tensor]) -> Quantisation | None:
    """Scales for a network that is only timed, by the widths of its weights; None if nothing in it is quantised."""
    if not network.scaled:
        return None
    scales = {
        kernel.weight: np.full(len(weight_of(kernel, state)), _SCALE, np.float32)
        for kernel in network.kernels
        if kernel.weight is not None and kernel.key.types.read == "uint8"
    }
    values = dict.fromkeys(network.scaled.values(), Scale(_SCALE, _MIDDLE))
    return Quantisation(values, scales, axes=weight_axes(network))


def _rounded(weight: torch.Tensor, scale: torch.Tensor, lowest: int) -> np.ndarray:
    """Weights (C_out, ...) as int8, to the bit as PyTorch's reference rounds them."""
    steps = weight.float() * (1.0 / scale).reshape(-1, *[1] * (weight.dim() - 1))
    numbers: np.ndarray = steps.round().clamp(lowest, LARGEST_WEIGHT).to(torch.int8).numpy()
    return numbers
