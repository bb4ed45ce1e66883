"""New tensors of one number that meet channels: first states, padding, sums before the first term."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.graph.constructs.base import Construct
from tests.graph.nets import conv


class ConvLstmFromZeros(Construct):
    """A state beside the image is read by the convolution that makes the next one."""

    channels = 5

    def layers(self) -> None:
        self.hidden = 5
        self.gates = nn.Conv2d(12 + 5, 4 * 5, 3, padding=1)

    def between(self, x: Tensor) -> Tensor:
        n, _, height, width = x.shape
        state = torch.zeros(n, self.hidden, height, width, dtype=x.dtype)
        cell = torch.zeros_like(state)
        for _ in range(2):
            keep, take, give, new = self.gates(torch.cat([x, state], 1)).split(self.hidden, 1)
            cell = keep.sigmoid() * cell + take.sigmoid() * new.tanh()
            state = give.sigmoid() * cell.tanh()
        return state


class CellFromZeros(Construct):
    """A cell of PyTorch's, for each row of the image."""

    channels = 7

    def layers(self) -> None:
        self.cell = nn.GRUCell(12, 7)

    def between(self, x: Tensor) -> Tensor:
        state, states = x.new_zeros(len(x), self.cell.hidden_size), []
        for row in x.mean(3).unbind(2):
            state = self.cell(row, state)
            states.append(state)
        return torch.stack(states, 2)[..., None]


class StatesLikeOthers(Construct):
    """The second state of a layer is made like the first."""

    channels = 7

    def layers(self) -> None:
        self.lstm = nn.LSTM(12, 7, batch_first=True)

    def between(self, x: Tensor) -> Tensor:
        first = torch.zeros(1, len(x), self.lstm.hidden_size, dtype=x.dtype)
        made, _ = self.lstm(x.mean(3).transpose(1, 2), (first, torch.zeros_like(first)))
        return made.transpose(1, 2)[..., None]


class StateReadByLinearLayers(Construct):
    """A recurrent step written by hand."""

    channels = 7

    def layers(self) -> None:
        self.width = 7
        self.of_input, self.of_state = nn.Linear(12, 7), nn.Linear(7, 7, bias=False)

    def between(self, x: Tensor) -> Tensor:
        state = torch.zeros((len(x), self.width), dtype=x.dtype)
        for row in x.mean(3).unbind(2):
            state = torch.tanh(self.of_input(row) + self.of_state(state))
        return state[:, :, None, None]


class PaddedShortcut(Construct):
    """Zeros for the channels that the branch has more."""

    channels = 18

    def layers(self) -> None:
        self.wider = conv(12, 18)

    def between(self, x: Tensor) -> Tensor:
        y = self.wider(x)
        more = torch.zeros(len(x), y.size(1) - x.size(1), *x.shape[2:], dtype=x.dtype)
        return y + torch.cat([x, more], 1)


class PaddedPlaces(Construct):
    """Ones beside the image, along another axis than the channels."""

    def between(self, x: Tensor) -> Tensor:
        return torch.cat([x.new_full((*x.shape[:3], 2), 0.5), x], 3)


class SumFromZeros(Construct):
    def layers(self) -> None:
        self.terms = nn.ModuleList(nn.Conv2d(12, 9, 3) for _ in range(3))

    channels = 9

    def between(self, x: Tensor) -> Tensor:
        total = torch.zeros(1, self.terms[0].out_channels, 6, 6, dtype=x.dtype)
        for term in self.terms:
            total = total + term(x)
        return total


class AssignedIntoZeros(Construct):
    def between(self, x: Tensor) -> Tensor:
        n, channels, height, width = x.shape
        padded = torch.zeros(n, channels, height + 2, width, dtype=x.dtype)
        padded[:, :, 1:-1] = x
        return padded


class ZerosOfANumber(Construct):
    """The code always makes as many."""

    frozen = ("stem.0",)

    def between(self, x: Tensor) -> Tensor:
        return torch.cat([torch.zeros(2, 12, 1, 8, dtype=x.dtype), x], 2)


class Gates(nn.Module):
    """A recurrent unit whose weights are plain matrices, sliced by a number."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = 5
        self.reads, self.own = nn.Parameter(torch.randn(12, 10) / 4), nn.Parameter(torch.randn(5, 10) / 4)

    def forward(self, x: Tensor) -> Tensor:
        state, width = x.new_zeros(x.shape[0], self.hidden), self.hidden
        for place in range(3):
            gates = x[:, place] @ self.reads + state @ self.own
            state = state + gates[:, :width].sigmoid() * gates[:, width:].tanh()
        return state


class StateOfMatrices(Construct):
    channels = 5

    def layers(self) -> None:
        self.inner = Gates()

    def between(self, x: Tensor) -> Tensor:
        return self.inner(x.flatten(2).transpose(1, 2))[:, :, None, None]
