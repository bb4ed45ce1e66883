"""Modules that refuse another number of channels than one of their attributes says."""

from __future__ import annotations

from torch import Tensor, nn

from tests.graph.constructs.base import Construct
from tests.graph.constructs.pieces import SplitCountedOnWhatIsRead


class Checked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.expected = 12
        self.conv = nn.Conv2d(12, 12, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        _, c, _, _ = x.shape
        if c != self.expected:
            raise ValueError("another number of channels")
        return self.conv(x)


class Asserted(Checked):
    def forward(self, x: Tensor) -> Tensor:
        assert self.expected == x.size(-3), "another number of channels"
        return self.conv(x)


class Multiplied(Checked):
    def forward(self, x: Tensor) -> Tensor:
        assert x.shape[1] == self.expected, "another number of channels"
        return self.conv(x * self.expected)


class CheckedAlone(Construct):
    """Nothing else in the code is in doubt."""

    def layers(self) -> None:
        self.checked, self.asserted = Checked(), Asserted()

    def between(self, x: Tensor) -> Tensor:
        return self.asserted(self.checked(x))


class CheckedBehindSplit(SplitCountedOnWhatIsRead):
    """As in FocalNet of transformers: once the split follows, the next layer refuses what it gets."""

    def layers(self) -> None:
        super().layers()
        self.checked = Checked()

    def between(self, x: Tensor) -> Tensor:
        return self.checked(super().between(x))


class CheckedNumberIsAFactor(Construct):
    """The number that is checked is calculated with, too, so that neither it nor the channels may change."""

    frozen = ("stem.0",)

    def layers(self) -> None:
        self.multiplied = Multiplied()

    def between(self, x: Tensor) -> Tensor:
        return self.multiplied(x)


class LayerThatRefusesAnArgument(Construct):
    """As speechbrain calls layers of which some take lengths."""

    def layers(self) -> None:
        self.a, self.b = nn.Conv2d(12, 12, 1), nn.Conv2d(12, 12, 1)

    def between(self, x: Tensor) -> Tensor:
        for layer in (self.a, self.b):
            try:
                x = layer(x, lengths=None)
            except TypeError:
                x = layer(x)
        return x
