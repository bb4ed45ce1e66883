"""Normalisation by an image's own statistics: of the channels of each pixel, or of all pixels of a channel group.

If the key says ``affine``, each channel has a factor and a summand from the model. A key only counts the pixels, so
that rows and images with equally many share it.
"""

from __future__ import annotations

from aap_hw.compile.families.elementwise import scale_and_shift
from aap_hw.compile.families.family import FAMILIES, Family, Shape, image_shape, nothing
from aap_hw.compile.keys.address import Address
from aap_hw.compile.keys.key import KernelKey

# Over the channels of each pixel; an RMS norm does not subtract the mean.
OVER_CHANNELS = ("layer_norm", "rms_norm")


def is_affine(key: KernelKey) -> bool:
    """Whether a normalisation has a factor and a summand for each channel."""
    return bool(key.attribute("affine"))


def channels_together(address: Address) -> int:
    """How many channels of a group norm share their statistics: so many each, or ``all``, as many as there are."""
    each = address.key.attribute("each")
    return address.width_in if each == "all" else int(each)


def _same(address: Address) -> Shape:
    return image_shape(address.key, address.width_out)


def _constants(address: Address) -> int:
    return scale_and_shift(address) if is_affine(address.key) else 0


def _weight(address: Address) -> Shape:
    return (address.width_out,) if is_affine(address.key) else (0,)


FAMILIES.register(*OVER_CHANNELS, "group_norm")(Family(_same, nothing, _constants, _weight))
