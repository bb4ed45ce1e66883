"""A kernel at its widths: what a latency table is looked up by, and what a deployed network is assembled from."""

from __future__ import annotations

from dataclasses import dataclass

from aap_hw.compile.keys.key import KernelKey


@dataclass(frozen=True, order=True)
class Address:
    """A key and the channel counts that it leaves open, which together are all that code is made from.

    Attributes
    ----------
    key : the kernel without its channel counts.
    widths : in the order in which a kernel has them, that of its output last.
    """

    key: KernelKey
    widths: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.key}, {self.width_in} in, {self.width_out} out"

    @property
    def width_in(self) -> int:
        """Channels that the kernel reads."""
        return self.widths[0]

    @property
    def width_out(self) -> int:
        """Channels that the kernel makes."""
        return self.widths[-1]
