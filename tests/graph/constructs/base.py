"""What surrounds a construct: a stem whose 12 channels it gets, a convolution that reads it, a head."""

from __future__ import annotations

from torch import Tensor, nn

from tests.graph.ground_truth import IMAGES
from tests.graph.nets import Head, conv


class Construct(nn.Module):
    """`stem`, then the construct, then `last` and the head; subclasses say what is in between.

    Attributes
    ----------
    channels : that the construct hands on.
    frozen : groups that must not be cut, beside the head's.
    """

    shape = IMAGES
    channels = 12
    frozen: tuple[str, ...] = ()

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 12)
        self.layers()
        self.last = conv(self.channels, 6)
        self.head = Head(6)

    def layers(self) -> None:
        """Make the construct's own layers."""

    def between(self, x: Tensor) -> Tensor:
        """Apply the construct."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.last(self.between(self.stem(x))))
