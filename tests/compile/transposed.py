"""Transposed convolutions, one by one and at random."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor

from aap_hw.compile.keys.key import KernelKey
from tests.compile.running import EPILOGUES, Convolution, Pair


@dataclass(frozen=True)
class Transposed(Convolution):
    """A transposed convolution; ``size`` is still that of its input."""

    beyond: Pair = (0, 0)
    groups: int = 1

    @property
    def read(self) -> int:
        return self.width_in // (self.width_in if self.depthwise else self.groups)

    def of(self, images: Tensor, weights: Tensor) -> Tensor:
        groups = self.width_in // self.read
        by_group = weights.reshape(groups, -1, *weights.shape[1:]).transpose(1, 2)
        in_order = by_group.reshape(self.width_in, self.width_out // groups, *self.kernel)
        return F.conv_transpose2d(images, in_order, None, self.stride, self.padding, self.beyond, groups)

    def key(self) -> KernelKey:
        return KernelKey.make(
            "depthwise_conv_transpose2d" if self.depthwise else "conv_transpose2d",
            self.size,
            self.batch,
            kernel=self.kernel,
            stride=self.stride,
            padding=self.padding,
            output_padding=self.beyond if any(self.beyond) else "",
            groups=self.groups if self.groups > 1 else "",
            epilogue=self.epilogue,
        )


@st.composite
def kernels(draw: st.DrawFn) -> Transposed:
    def pair(low: int, high: int) -> Pair:
        return draw(st.integers(low, high)), draw(st.integers(low, high))

    kernel, stride = pair(1, 6), pair(1, 4)
    padding = tuple(draw(st.integers(0, (k - 1) // 2)) for k in kernel)
    groups, depthwise = draw(st.sampled_from([(1, False)] * 4 + [(1, True), (2, False)]))
    widths = st.integers(1, 40).map(lambda width: width * groups)
    width = draw(widths)
    return Transposed(
        width,
        width if depthwise else draw(st.one_of(widths, st.just(groups))),
        pair(1, 9),
        kernel,
        stride,
        padding,
        epilogue=draw(st.sampled_from(EPILOGUES)),
        batch=draw(st.integers(1, 2)),
        depthwise=depthwise,
        beyond=tuple(draw(st.integers(0, s - 1)) for s in stride),
        groups=groups,
    )
