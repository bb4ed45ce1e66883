"""Normalisations as tensor expressions: the means, the squared differences from them, then the values."""

from __future__ import annotations

from typing import Any

from tvm import te, tirx

from aap_hw.compile.code.expressions import number
from aap_hw.compile.code.function import KernelFunction, apply_epilogue, unpacked
from aap_hw.compile.code.normalisation import normalised_arguments
from aap_hw.compile.families import image_shape
from aap_hw.compile.families.normalisation import OVER_CHANNELS, channels_together
from aap_hw.compile.gpu.scheduling import FALLBACK, KERNELS, RULES, gpu_kernel
from aap_hw.compile.keys.address import Address
from aap_hw.compile.keys.target import GpuTarget


@KERNELS.register(*OVER_CHANNELS, "group_norm")
def normalisation(address: Address, target: GpuTarget) -> KernelFunction:
    """Over the channels of each pixel, or over the pixels of groups of channels."""
    key, channels = address.key, address.width_in
    shape = batch, height, width, _ = image_shape(key, channels)
    by_pixel = key.op in OVER_CHANNELS
    each = channels if by_pixel else channels_together(address)
    extents = {"channel": each} if by_pixel else {"row": height, "column": width, "channel": each}
    # One set of statistics for each pixel, or for each group of channels.
    statistics = (batch, height, width) if by_pixel else (batch, channels // each)
    count = each if by_pixel else height * width * each

    def own(n: Any, y: Any, x: Any, c: Any) -> tuple[Any, ...]:
        return (n, y, x) if by_pixel else (n, c // each)

    def total(name: str, value: Any) -> Any:
        axes = [te.reduce_axis((0, extent), f"{name}_{axis}") for axis, extent in extents.items()]

        def summed(*at: Any) -> Any:
            place = (*at, axes[0]) if by_pixel else (at[0], axes[0], axes[1], at[1] * each + axes[2])
            return te.sum(value(*place), axis=axes)

        return te.compute(statistics, summed, name=name)

    def compute(image: Any, *affine: Any) -> Any:
        def one(*at: Any) -> Any:
            """A value near the mean. Sums of differences from it stay small even if all values are far from zero."""
            n, y, x, c = at
            return image(n, y, x, 0) if by_pixel else image(n, 0, 0, c // each * each)

        def mean(*at: Any) -> Any:
            return one(*at) + sums(*own(*at)) * number(1 / count)

        def difference(*at: Any) -> Any:
            return image(*at) if key.op == "rms_norm" else image(*at) - mean(*at)

        sums = total("sums", lambda *at: image(*at) - one(*at)) if key.op != "rms_norm" else image
        squares = total("squares", lambda *at: difference(*at) * difference(*at))

        def value(*at: Any) -> Any:
            variance = squares(*own(*at)) * number(1 / count) + number(float(key.attribute("eps")))
            result = difference(*at) / tirx.sqrt(variance)
            result = result * affine[0][at[-1]] + affine[1][at[-1]] if affine else result
            return apply_epilogue(result, key.epilogue, None, None)

        return te.compute(shape, value, name="output")

    arguments = normalised_arguments(address)
    rules = RULES if by_pixel else FALLBACK
    return gpu_kernel(key, arguments, shape, compute, target, unpacked(arguments), rules)
