"""What normalisations read on any device."""

from __future__ import annotations

from aap_hw.compile.code.function import Argument, activations, factors
from aap_hw.compile.families import image_shape
from aap_hw.compile.families.normalisation import is_affine
from aap_hw.compile.keys.address import Address


def normalised_arguments(address: Address) -> list[Argument]:
    """An image, and perhaps a factor and a summand for each of its channels."""
    key, channels = address.key, address.width_in
    return [*activations(key, image_shape(key, channels)), *(factors(key, channels) if is_affine(key) else [])]
