"""Weights of fewer bits, so that an untrained network is small once it is compressed.

Batch normalisations are folded into the convolutions before them, as the compiler does it, and then every weight is
rounded to a few significant bits. What the network computes changes by that, and is as good to compare as before.
"""

from __future__ import annotations

import torch
from torch import nn

# Significant bits of a weight.
BITS = 3


@torch.no_grad()
def lighten(module: nn.Module) -> None:
    """Round the weights of a network that `torch.fx` can trace, in place."""
    modules = dict(module.named_modules())
    for node in torch.fx.symbolic_trace(module).graph.nodes:
        before = node.args[0] if node.op == "call_module" and node.args else None
        if not isinstance(before, torch.fx.Node) or before.op != "call_module":
            continue
        convolution, norm = modules[str(before.target)], modules[str(node.target)]
        if isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
            _fold(convolution, norm)
    for each in modules.values():
        if isinstance(each, (nn.Conv2d, nn.Linear)):
            mantissa, exponent = torch.frexp(each.weight)
            each.weight.copy_(torch.ldexp(torch.round(mantissa * 2**BITS) / 2**BITS, exponent))


def _fold(convolution: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
    """Let the convolution scale and the norm shift alone; both together compute what they did."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    shift = norm.bias - norm.running_mean * scale
    if convolution.bias is not None:
        shift = shift + convolution.bias * scale
        convolution.bias.zero_()
    convolution.weight.mul_(scale[:, None, None, None])
    norm.weight.fill_(1.0)
    norm.bias.copy_(shift)
    norm.running_mean.zero_()
    norm.running_var.fill_(1.0)
    norm.eps = 0.0  # the scale is 1 then, and changes no bit
