"""Seeded weights and batch norm statistics for networks that have not been trained.

Makes an untrained network worth comparing and timing: without statistics, torchvision's untrained networks
shrink their input to about 1e-9, where every comparison of outputs passes. It does not make the outputs
meaningful.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aap_hw.activity import doing
from aap_hw.graph.program.calling import called
from aap_hw.inputs import Given, Input, Inputs

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
# How a few numbers become many along so many axes, neighbours of which are alike.
INTERPOLATION = {1: "linear", 2: "bilinear", 3: "trilinear"}


def initialise(model: nn.Module, seed: int) -> None:
    """Set all weights anew, in place: a seed gives the same weights each time.

    Convolutions and linear layers become He-normal (arXiv 1502.01852, equation 10) with zero bias; batch
    norms become the identity. Tensors need not have held values before (`torch.nn.Module.to_empty`).
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu", generator=generator)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, BATCH_NORMS):
                module.reset_parameters()


@torch.no_grad()
@doing("giving the batch norms the statistics of a batch")
def calibrate_batch_norm(model: nn.Module, inputs: Given, seed: int, batch: int = 4) -> None:
    """Set all running means and variances, in place, to those of one seeded batch; the model ends in eval
    mode.

    Parameters
    ----------
    inputs
        What the model takes; of images, half their own height and width is close enough and quicker.
    batch
        How many samples.
    """
    generator, wanted = torch.Generator().manual_seed(seed), Inputs.of(inputs)
    samples = tuple(_alike(one, batch, generator) for one in wanted.each)
    model.eval()
    norms = [module for module in model.modules() if isinstance(module, BATCH_NORMS)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain average over batches: of one batch, that batch itself
        norm.train()  # only these, so that dropout draws nothing from the global generator
    try:
        called(model, samples, wanted.names)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
            norm.eval()
            if norm.num_batches_tracked is not None:
                norm.num_batches_tracked.zero_()


def _alike(one: Input, batch: int, generator: torch.Generator) -> Tensor:
    """Numbers of which neighbours are alike, as in photographs and recordings; whole ones are drawn at random.

    White noise would mostly cancel in the first convolution and leave statistics that are far too small for real data.
    """
    channels, *size = one.shape or (1,)
    if not one.is_float or len(size) not in INTERPOLATION:
        return one.random(batch, generator)
    coarse = torch.randn(batch, channels, *[8] * len(size), generator=generator)
    fine = torch.randn(batch, *one.shape, generator=generator)
    return F.interpolate(coarse, size=size, mode=INTERPOLATION[len(size)]) + 0.2 * fine


def is_untrained(model: nn.Module) -> bool:
    """Whether a model has batch norms and none of them has seen a batch yet."""
    seen = [(m.running_mean, m.running_var) for m in model.modules() if isinstance(m, BATCH_NORMS)]
    statistics = [(mean, variance) for mean, variance in seen if mean is not None and variance is not None]
    return bool(statistics) and not any(mean.any() or (variance - 1).any() for mean, variance in statistics)
