"""Random weights under which a comparison of outputs says something."""

from __future__ import annotations

import torch
from torch import nn


@torch.no_grad()
def enliven(model: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
    """Weights under which every layer has a say: as initialised, many are zero, one, or a millionth.

    Batch norms get the statistics of ``inputs``, a batch of several examples.
    """
    for parameter in model.parameters():
        if parameter.numel() == 1 or float(parameter.std()) == 0:
            if abs(float(parameter.flatten()[0])) >= 1e-2:
                parameter.mul_(0.5 + torch.rand_like(parameter))
            elif parameter.dim() > 1 and parameter.shape[0] > 1 and parameter[0].numel() > 1:
                parameter.normal_(std=0.02)
            else:
                parameter.copy_(0.25 + 0.5 * torch.rand_like(parameter))
    for norm in model.modules():
        if isinstance(norm, nn.modules.batchnorm._BatchNorm):
            norm.momentum = None
            norm.train()
    model(*inputs)
    model.eval()
