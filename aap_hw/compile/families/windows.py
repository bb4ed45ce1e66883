"""Where the windows of a convolution or of pooling lie along each axis of an image."""

from __future__ import annotations

from dataclasses import dataclass

from aap_hw.compile.keys.key import KernelKey
from aap_hw.errors import UserError


@dataclass(frozen=True)
class Axis:
    """Windows along one axis.

    Attributes
    ----------
    size : of the image along this axis.
    kernel, stride, padding, dilation : as PyTorch has them; ``padding`` is that before the image.
    ceil : PyTorch's ``ceil_mode``: one more window may begin in the image and end outside.
    padding_end : padding behind the image.
    """

    size: int
    kernel: int
    stride: int
    padding: int
    dilation: int = 1
    ceil: bool = False
    padding_end: int = 0

    @property
    def reach(self) -> int:
        """Extent of a window, dilation included."""
        return self.dilation * (self.kernel - 1) + 1

    @property
    def around(self) -> tuple[int, int]:
        """Padding before the image and behind it."""
        return self.padding, self.padding_end

    @property
    def windows(self) -> int:
        """How many there are."""
        room = self.size + sum(self.around) - self.reach
        count = (-(-room // self.stride) if self.ceil else room // self.stride) + 1
        return count - (self.ceil and (count - 1) * self.stride >= self.size + self.padding)

    @property
    def reaches_outside(self) -> bool:
        """Whether some window has elements outside the image."""
        return max(self.around) > 0 or (self.windows - 1) * self.stride + self.reach > self.size

    @property
    def misses_image(self) -> bool:
        """Whether some window has no element inside the image: dilated, it may step over a small one."""
        firsts = (window * self.stride - self.padding for window in range(self.windows))
        return any(not any(0 <= first + i * self.dilation < self.size for i in range(self.kernel)) for first in firsts)


def axes_of(key: KernelKey) -> tuple[Axis, Axis]:
    """The axes of a key with windows, outermost first. Where the key says nothing, the window is one pixel."""
    rows, columns = _axes(key, key.image)
    return rows, columns


def axes_of_volume(key: KernelKey) -> tuple[Axis, Axis, Axis]:
    """The axes of a key that reads volumes (D, H, W).

    Raises
    ------
    UserError : it does not.
    """
    if len(key.size) != 3:
        raise UserError(f"the kernel {key} reads no volume (D, H, W); it is not known to this version")
    planes, rows, columns = _axes(key, key.size)
    return planes, rows, columns


def _axes(key: KernelKey, size: tuple[int, ...]) -> list[Axis]:
    kernel, stride, dilation = (key.numbers(name, len(size), 1) for name in ("kernel", "stride", "dilation"))
    padding, ceil = key.numbers("padding", len(size)), bool(key.attribute("ceil"))
    ends = key.numbers("padding_end", len(size)) if key.attribute("padding_end") else padding
    numbers = zip(size, kernel, stride, padding, dilation, ends, strict=True)
    return [Axis(extent, k, s, p, d, ceil, end) for extent, k, s, p, d, end in numbers]
