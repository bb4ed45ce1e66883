"""Small networks in which some channels must not be cut: the code fixes a number, or an op mixes channels.

The channels that must be frozen are those that module `stem` makes; images are (2, 3, 8, 8).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.graph.nets import Head, conv


class Net(nn.Module):
    """`stem`, then `between` (which sees the module), then a head that takes `channels`."""

    def __init__(self, between: Callable[[Net, Tensor], Tensor], channels: int = 8) -> None:
        super().__init__()
        self.stem = conv(3, 8)
        self.between = between
        self.filters = nn.Parameter(torch.randn(8, 1, 3, 3))
        self.mixer = nn.Conv2d(8, 8, 1)
        self.transposed = nn.ConvTranspose2d(8, 8, 3)
        self.table = nn.Parameter(torch.randn(8, 8))
        self.last = conv(channels, 6)
        self.head = Head(6)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.last(self.between(self, self.stem(x))))


def _assign(net: Net, x: Tensor) -> Tensor:
    y = net.mixer(x)
    y[:, :4] = x[:, 4:]
    return y


def _fill(net: Net, x: Tensor) -> Tensor:
    y = torch.empty(2, 8, 8, 8, dtype=x.dtype)
    y.copy_(x)
    return y


def _divide(net: Net, x: Tensor) -> Tensor:
    mask = torch.ones(x.shape[1], 1, 1, dtype=x.dtype)
    return x * mask / mask.sum()


FROZEN: dict[str, tuple[Callable[[Net, Tensor], Tensor], int, str]] = {
    # name: what happens between stem and last, channels that last gets, a word of the reason
    "literal slice": (lambda net, x: x[:, :4], 4, "x[...]"),
    "step slice": (lambda net, x: x[:, ::2], 4, "x[...]"),
    "select": (lambda net, x: x[:, 0].unsqueeze(1), 1, "x[...]"),
    "index": (lambda net, x: x[:, [0, 3, 1]], 3, "x[...]"),
    "gather by numbers for fewer channels": (
        lambda net, x: x.gather(2, net.mixer(x)[:, :4].long().clamp(0, 7)),
        4,
        "x.gather",
    ),
    "unbind": (lambda net, x: torch.stack(x.unbind(1)[:3], 1), 3, "x.unbind"),
    "split": (lambda net, x: x.split(4, 1)[1], 4, "split"),
    "split into unequal pieces": (lambda net, x: x.split((3, 5), 1)[0], 3, "split"),
    "fewer chunks than asked for": (lambda net, x: x.chunk(5, 1)[2], 2, "x.chunk"),
    "assignment to a slice": (_assign, 8, "x[...]"),
    "copy into a new tensor": (_fill, 8, "x.copy_"),
    "crop and pad": (lambda net, x: F.pad(x, (0, 0, 0, 0, 1, -1)), 8, "F.pad"),
    "zeros beside": (lambda net, x: torch.cat([x, torch.zeros_like(x[:, :2])], 1), 10, "x[...]"),
    "zeros of the same shape": (lambda net, x: torch.cat([x, torch.zeros(x.shape)], 1), 16, "torch.zeros"),
    "sum with ones": (lambda net, x: x + torch.ones(1, 8, 1, 1), 8, "torch.ones"),
    "divided by a count of ones": (_divide, 8, "x.sum"),
    "share of a sum of parameters": (
        lambda net, x: x * (net.mixer.bias / net.mixer.bias.sum())[:, None, None],
        8,
        "x.sum",
    ),
    "literal view": (lambda net, x: x.view(2, 8, -1).view(2, 8, 8, 8), 8, "x.view"),
    "literal flatten": (lambda net, x: x.reshape(-1, 8 * 64).view(2, -1, 8, 8), 8, "x.reshape"),
    "pooled to a number of channels": (
        lambda net, x: F.adaptive_avg_pool2d(x.transpose(1, 3), (4, 8)).transpose(1, 3),
        8,
        "adaptive_avg_pool2d",
    ),
    "literal expand": (lambda net, x: x.expand(2, 8, 8, 8) * 2, 8, "x.expand"),
    "one value for a number of channels": (lambda net, x: x + net.mixer.bias.mean().expand(2, 8, 8, 8), 8, "'+'"),
    "ambiguous shuffle": (
        lambda net, x: x.view(2, x.size(1) // 2, 2, 8, 8).transpose(1, 2).reshape(x.shape),
        8,
        "x.view",
    ),
    "halves of the batch": (lambda net, x: x.view(-1, 4, 8, 8)[:2], 4, "nn.Conv2d 'last.0'"),
    "squeeze all": (lambda net, x: x.mean((2, 3), keepdim=True).squeeze()[:, :, None, None], 8, "squeeze"),
    "squeeze channels": (lambda net, x: x.squeeze(1), 8, "x.squeeze"),
    "group norm without a layer": (lambda net, x: F.group_norm(x, 2), 8, "F.group_norm"),
    "softmax": (lambda net, x: x.softmax(1), 8, "x.softmax"),
    "sum over channels": (lambda net, x: x - x.mean(1, keepdim=True), 8, "x.mean"),
    "maximum over channels": (lambda net, x: x - x.max(dim=1, keepdim=True).values, 8, "x.max"),
    "maximum over all": (lambda net, x: x / x.max(), 8, "x.max"),
    "product of matrices": (
        lambda net, x: (x.flatten(2) @ x.flatten(2).transpose(1, 2))[:, None],
        1,
        "'@'",
    ),
    "computed weight": (
        lambda net, x: F.conv2d(x, net.mixer.weight - net.mixer.weight.mean()),
        8,
        "x.mean",
    ),
    "depthwise without a layer": (
        lambda net, x: F.conv2d(x, net.filters, padding=1, groups=8),
        8,
        "F.conv2d",
    ),
    "transposed convolution with a computed weight": (
        lambda net, x: F.conv_transpose2d(x, net.transposed.weight.abs()),
        8,
        "F.conv_transpose2d",
    ),
    "filters read as a whole": (
        lambda net, x: net.mixer(x) * net.mixer.weight.abs().mean(),
        8,
        "depends on mixer.weight",
    ),
    "flip": (lambda net, x: x.flip(1), 8, "x.flip"),
    "channels meet rows": (lambda net, x: x + x.transpose(1, 2), 8, "'+'"),
    "table met along both axes": (
        lambda net, x: (x.movedim(1, 3) + net.table.unsqueeze(0)).movedim(3, 1) + net.table.unsqueeze(1),
        8,
        "depends on table",
    ),
    "table turned around along channels": (
        lambda net, x: (x.movedim(1, 3) + net.table.flip(1).unsqueeze(0)).movedim(3, 1),
        8,
        "'+'",
    ),
    "sum with a product divided by the number of channels": (
        lambda net, x: torch.addmm(net.mixer.bias, x.mean((2, 3)), net.table, alpha=1 / x.shape[1])[:, :, None, None],
        8,
        "is another one for fewer channels (torch.addmm",
    ),
    "matrix turned over that something else reads": (
        lambda net, x: (x.movedim(1, 3) @ net.table.T * net.table.T.exp().mean()).movedim(3, 1),
        8,
        "is reduced together with other channels (x.mean",
    ),
    "product of two matrices of parameters": (
        lambda net, x: (x.movedim(1, 3) @ net.table.T + (net.table.T @ net.filters[:, 0, 0]).mean()).movedim(3, 1),
        8,
        "is multiplied with parameters alone ('@'",
    ),
    "filters multiplied with parameters alone": (
        lambda net, x: (
            x
            + F.linear(net.mixer(x).movedim(1, 3), net.table).movedim(3, 1)
            + torch.addmm(net.mixer.bias, net.table.T, net.table).mean()
        ),
        8,
        "is multiplied with parameters alone (torch.addmm",
    ),
    "places and channels summed over": (
        lambda net, x: torch.einsum("ij,bcj->bi", net.table, x.mean(3))[:, :, None, None],
        8,
        "torch.einsum",
    ),
    "convolution over rows": (lambda net, x: net.mixer(x.transpose(1, 2)), 8, "nn.Conv2d 'mixer'"),
    "pool over channels": (
        lambda net, x: F.max_pool2d(x.permute(0, 2, 3, 1), 3, 1, 1).permute(0, 3, 1, 2),
        8,
        "F.max_pool2d",
    ),
    "count of other channels": (
        lambda net, x: net.mixer(net.transposed(x)[..., 1:-1, 1:-1]).flatten(2).view(2, x.shape[1], 8, 8),
        8,
        "computes something else once it is cut (x.view",
    ),
    "repeat of a count": (lambda net, x: x.mean(1, keepdim=True).repeat(1, 8, 1, 1) + x, 8, "x.mean"),
    "division by the number of channels": (lambda net, x: x / x.shape[1], 8, "'/'"),
    "as many as channels everywhere": (lambda net, x: x + torch.full_like(x, x.shape[1]), 8, "torch.full_like"),
    "as many as channels in a new tensor": (
        lambda net, x: x + x.new_full((1, x.shape[1], 1, 1), 1 / x.shape[1]),
        8,
        "is another one for fewer channels (x.new_full",
    ),
    "root of the number of channels as a tensor": (
        lambda net, x: x * torch.scalar_tensor(x.shape[1] ** -0.5),
        8,
        "torch.scalar_tensor",
    ),
    "at most the number of channels": (lambda net, x: x.clamp(max=x.shape[1] / 16), 8, "x.clamp"),
    "slope by the number of channels": (lambda net, x: F.leaky_relu(x, 1 / x.shape[1]), 8, "F.leaky_relu"),
    "power of the number of channels": (lambda net, x: x * x.shape[1] ** -0.5, 8, "'*'"),
}
