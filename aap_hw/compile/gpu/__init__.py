"""Kernels for NVIDIA GPUs: what they compute as tensor expressions, scheduled by TVM's dlight rules.

Keys, widths, layouts and arguments are those of the CPU kernels, so that whoever asks for a kernel need not know which
kind of device it is for. Weights are not packed further: dlight's rules arrange them in shared memory. Importing the
package fills the table of kernels.
"""

from aap_hw.compile.gpu import (
    convolution,
    normalisation,
    order,
    products,
    recurrent,
    reductions,
    softmax,
    transposed,
    values,
    volume,
)
from aap_hw.compile.gpu.scheduling import KERNELS

__all__ = [
    "KERNELS",
    "convolution",
    "normalisation",
    "order",
    "products",
    "recurrent",
    "reductions",
    "softmax",
    "transposed",
    "values",
    "volume",
]
