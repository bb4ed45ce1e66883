"""Kernels that move values and change none: orders of axes, pieces of images, images side by side."""

from __future__ import annotations

from aap_hw.compile.families.elementwise import scale_and_shift
from aap_hw.compile.families.family import FAMILIES, Family, Shape, image_shape, nothing
from aap_hw.compile.keys.address import Address
from aap_hw.compile.keys.key import KernelKey


def slice_start(address: Address) -> int:
    """First channel of a slice: 0, or such that the slice ends with the last channel, or behind some equal pieces."""
    match side := address.key.attribute("side"):
        case "first":
            return 0
        case "last":
            return address.width_in - address.width_out
    return int(side) * address.width_out


def zeros_before(address: Address) -> int:
    """How many channels of zeros `pad_channels` puts before an image's own, by which side these are on."""
    new = address.width_out - address.width_in
    match address.key.attribute("side"):
        case "first":
            return 0
        case "last":
            return new
        case "middle":
            return new // 2
    return int(address.key.attribute("before"))


def even_split(channels: int, parts: int) -> list[int]:
    """Channels split into nearly equal parts, as a latency table measures a concatenation."""
    return [channels * (i + 1) // parts - channels * i // parts for i in range(parts)]


def subsampled(key: KernelKey) -> tuple[int, int]:
    """Rows and columns of an image after subsampling."""
    height, width = (-(-size // step) for size, step in zip(key.image, key.along("stride"), strict=True))
    return height, width


PADDING_MODES = ("constant", "reflect", "replicate", "circular")
"""What `pad` may put around an image, as PyTorch calls it."""


def borders_of(key: KernelKey) -> tuple[tuple[int, int], tuple[int, int]]:
    """Pixels that padding adds above and below, and to the left and right."""
    (top, left), ends = key.along("padding"), key.along("padding_end")
    bottom, right = ends if key.attribute("padding_end") else (top, left)
    return (top, bottom), (left, right)


def _padded(address: Address) -> Shape:
    key = address.key
    height, width = (size + sum(sides) for size, sides in zip(key.image, borders_of(key), strict=True))
    return key.batch, height, width, address.width_out


def _same(address: Address) -> Shape:
    return image_shape(address.key, address.width_out)


def _planar(address: Address) -> Shape:
    """(N, C, H, W)."""
    return address.key.batch, address.width_out, *address.key.image


def _vector(address: Address) -> Shape:
    return address.key.batch, 1, 1, address.width_out


def _subsampled(address: Address) -> Shape:
    return address.key.batch, *subsampled(address.key), address.width_out


def _constants(address: Address) -> int:
    return scale_and_shift(address) if "affine" in address.key.epilogue else 0


FAMILIES.register("interleave", "channel_shuffle", "channel_slice", "pad_channels", "to_nhwc")(
    Family(_same, nothing, nothing)
)
FAMILIES.register("concat")(Family(_same, nothing, _constants))
FAMILIES.register("to_nchw")(Family(_planar, nothing, nothing))
FAMILIES.register("flatten")(Family(_vector, nothing, nothing))
FAMILIES.register("pad")(Family(_padded, nothing, nothing))
FAMILIES.register("subsample")(Family(_subsampled, nothing, nothing))
