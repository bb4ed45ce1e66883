"""What a key means, family by family: shapes and arithmetic, without TVM and without the program it came from.

Importing the package fills the table in `family`.
"""

from aap_hw.compile.families import (
    convolution,
    elementwise,
    fused,
    movement,
    normalisation,
    pooling,
    products,
    recurrent,
    reductions,
    resizing,
    sampling,
    slow,
    softmax,
    strided,
    transposed,
    volume,
)
from aap_hw.compile.families.family import (
    FAMILIES,
    Family,
    Shape,
    bias_elements,
    family_of,
    image_shape,
    multiply_accumulates,
    output_pixels,
    weight_elements,
    weight_shape,
)

__all__ = [
    "FAMILIES",
    "Family",
    "Shape",
    "bias_elements",
    "convolution",
    "elementwise",
    "family_of",
    "fused",
    "image_shape",
    "movement",
    "multiply_accumulates",
    "normalisation",
    "output_pixels",
    "pooling",
    "products",
    "recurrent",
    "reductions",
    "resizing",
    "sampling",
    "slow",
    "softmax",
    "strided",
    "transposed",
    "volume",
    "weight_elements",
    "weight_shape",
]
