"""Weights of a model as a kernel has them: batch normalisation folded in, filters first."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from aap_hw.compile.families.normalisation import OVER_CHANNELS
from aap_hw.compile.front.network import Kernel


def filters_first(weight: torch.Tensor, groups: int) -> torch.Tensor:
    """(C_out, C_in / groups, ...) of (C_in, C_out / groups, ...), as transposed convolutions have it."""
    read, made, *kernel = weight.shape
    by_group = weight.reshape(groups, read // groups, made, *kernel).transpose(1, 2)
    return by_group.reshape(groups * made, read // groups, *kernel)


def weight_of(kernel: Kernel, state: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """The weight (C_out, ...) of a kernel as the model has it; ones, one a channel, if it has none."""
    if kernel.weight is None:
        assert kernel.normalization is not None
        assert kernel.normalization.mean is not None
        return torch.ones(len(state[kernel.normalization.mean]))
    weight = state[kernel.weight]
    if kernel.reads_first:
        return filters_first(weight, int(kernel.key.attribute("groups", "1")))
    return weight.reshape(-1) if kernel.key.op in OVER_CHANNELS else weight  # of several axes, which are one here


def folded(
    kernel: Kernel, weight: torch.Tensor, state: Mapping[str, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight (C_out, ...) and the bias of a kernel with its batch normalisation folded in, in float64.

    y = gamma * (w x + b - mean) / sqrt(variance + epsilon) + beta  =  (s w) x + (b - mean) s + beta,
    s = gamma / sqrt(variance + epsilon).
    """
    norm = kernel.normalization
    zeros = torch.zeros(len(weight), dtype=torch.float64)
    bias = state[kernel.bias].double().reshape(-1) if kernel.bias else zeros
    if norm is not None:
        scale = torch.ones(len(weight), dtype=torch.float64)
        if norm.variance:
            scale = (state[norm.variance].double() + norm.epsilon).rsqrt()
        if norm.weight:
            scale = scale * state[norm.weight].double()
        weight = weight * scale.reshape(-1, *[1] * (weight.dim() - 1))
        bias = (bias - state[norm.mean].double() if norm.mean else bias) * scale
        bias = bias + (state[norm.bias].double() if norm.bias else zeros)
        if norm.factor:
            factor = state[norm.factor].double().reshape(-1)
            weight, bias = weight * factor.reshape(-1, *[1] * (weight.dim() - 1)), bias * factor
    return weight, bias


def folded_weights(kernel: Kernel, state: Mapping[str, torch.Tensor]) -> tuple[np.ndarray, np.ndarray]:
    """Weight and bias of a kernel with its batch normalisation folded in, computed in float64.

    Without a convolution before the normalisation, w = 1 and b = 0 for each channel.
    """
    weight, bias = folded(kernel, weight_of(kernel, state).double(), state)
    return weight.float().numpy(), bias.float().numpy()
