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


class StateOfColumns(Construct):
    """Matrices of parameters are multiplied with columns, one for each image."""

    channels = 7

    def layers(self) -> None:
        self.hidden = 7
        self.of_input, self.of_state = nn.Parameter(torch.randn(7, 12)), nn.Parameter(torch.randn(7, 7) / 4)

    def between(self, x: Tensor) -> Tensor:
        state = torch.zeros(self.hidden, len(x), dtype=x.dtype)
        for row in x.mean(3).unbind(2):
            state = torch.tanh(self.of_input @ row.mT + torch.mm(self.of_state, state))
        return state.mT[:, :, None, None]


class StatesTakenApart(Construct):
    """Both states of a cell are pieces of one tensor."""

    channels = 7

    def layers(self) -> None:
        self.cell, self.hidden = nn.LSTMCell(12, 7), 7

    def between(self, x: Tensor) -> Tensor:
        state, cell = torch.zeros(len(x), 2 * self.hidden, dtype=x.dtype).chunk(2, 1)
        for row in x.mean(3).unbind(2):
            state, cell = self.cell(row, (state, cell))
        return state[..., None, None]


class StatesOfTwoWidths(Construct):
    """One attribute is twice the other, and the code reads both in one statement."""

    channels = 10

    def layers(self) -> None:
        self.lstm = nn.LSTM(12, 10, 2, batch_first=True, bidirectional=True, proj_size=5)
        self.units, self.states = 10, 5

    def between(self, x: Tensor) -> Tensor:
        n, kind = len(x), x.dtype
        cell, state = torch.full((4, n, self.units), 0.5, dtype=kind), torch.zeros(4, n, self.states, dtype=kind)
        made, _ = self.lstm(x.mean(3).mT, (state, cell))
        return made.mT[..., None]


class TwiceAsManyStepsAsUnits(Construct):
    """How many steps there are is no length, though it could be one of a multiple of the units."""

    channels = 5

    def layers(self) -> None:
        self.cell, self.steps = nn.GRUCell(12, 5), 10

    def between(self, x: Tensor) -> Tensor:
        state = x.new_zeros(len(x), self.cell.hidden_size)
        for _ in range(self.steps):
            state = self.cell(x.mean((2, 3)), state)
        return state[..., None, None]


class OneMapOfZeros(Construct):
    """A convolution reads it without an axis for images."""

    def layers(self) -> None:
        self.width, self.conv = 12, nn.Conv2d(12, 12, 3, padding=1)

    def between(self, x: Tensor) -> Tensor:
        memory = torch.zeros(self.width, *x.shape[2:], dtype=x.dtype)
        for image in x:
            memory = self.conv(memory).tanh() + image
        return memory[None]


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


class TokensBehindZeros(Construct):
    """Zeros are in front of the tokens and are added to them; then a layer mixes these."""

    frozen = ("mix",)

    def layers(self) -> None:
        self.mix = nn.Linear(66, 64)

    def between(self, x: Tensor) -> Tensor:
        tokens = torch.cat([x.new_zeros(len(x), 2, x.shape[1]), x.flatten(2).mT], 1)
        return self.mix((torch.zeros(tokens.shape, dtype=x.dtype) + tokens).mT).unflatten(2, (8, 8))


class PartsOfOnesAreFilled(Construct):
    def between(self, x: Tensor) -> Tensor:
        mask = torch.ones(x.shape, dtype=x.dtype)
        mask[:, :, 1:3].fill_(0.5)
        mask[..., :2].zero_()
        return x * mask


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
