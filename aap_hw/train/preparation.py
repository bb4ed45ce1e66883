"""How a picture becomes what a network was trained for: its size, the part that is shown, and its normalisation.

Values only. Pictures are decoded and cut in `aap_hw.train.sources.picture`, and normalised in `aap_hw.train.data`.
"""

from __future__ import annotations

from dataclasses import dataclass

from aap_hw.errors import UserError
from aap_hw.train.data import Normalisation

INTERPOLATIONS = ("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos")


@dataclass(frozen=True)
class Preparation:
    """The way to an evaluated picture that weights were published with.

    Parameters
    ----------
    side
        Height and width in pixels that the network was evaluated at.
    shorter_side
        What the shorter side of a picture is scaled to before the middle is cut out, for that ``side``.
    interpolation
        One of `INTERPOLATIONS`, as Pillow scales: with anti-aliasing.
    normalisation
        For as many channels as the network takes.
    squash
        Scale both sides to ``shorter_side``, so that the picture loses its shape and nothing is cut off beside.

    Raises
    ------
    UserError : sizes are not positive, or there is no such interpolation.
    """

    side: int
    shorter_side: int
    interpolation: str
    normalisation: Normalisation
    squash: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.side <= self.shorter_side:
            raise UserError(
                f"pictures cannot be scaled to {self.shorter_side} and cut to {self.side} pixels; the weights' own "
                "description is wrong"
            )
        if self.interpolation not in INTERPOLATIONS:
            raise UserError(
                f"pictures cannot be scaled with the interpolation '{self.interpolation}', only with "
                f"{', '.join(INTERPOLATIONS)}"
            )

    def scaled(self, side: int) -> int:
        """What ``side`` is cut out of; the same share of it as at the published size."""
        return side * self.shorter_side // self.side
