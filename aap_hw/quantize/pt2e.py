"""The parts of torchao that are used here, loaded without the warning that it causes for its own developers."""

from __future__ import annotations

import logging
from unittest.mock import patch

from torch.fx import GraphModule

_LOG = logging.getLogger("torch.utils._pytree")
_BEFORE = _LOG.level
_LOG.setLevel(logging.ERROR)

from torchao.quantization.pt2e import quantize_pt2e  # noqa: E402
from torchao.quantization.pt2e.fake_quantize import (  # noqa: E402
    FusedMovingAvgObsFakeQuantize,
    disable_observer,
    enable_observer,
)
from torchao.quantization.pt2e.observer import (  # noqa: E402
    HistogramObserver,
    MovingAverageMinMaxObserver,
    MovingAveragePerChannelMinMaxObserver,
    PerChannelMinMaxObserver,
)
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e, prepare_qat_pt2e  # noqa: E402
from torchao.quantization.pt2e.quantizer import (  # noqa: E402
    QuantizationAnnotation,
    QuantizationSpec,
    QuantizationSpecBase,
    Quantizer,
    SharedQuantizationSpec,
)

_LOG.setLevel(_BEFORE)


def converted(prepared: GraphModule) -> GraphModule:
    """A program that `prepare_pt2e` prepared and that has seen its samples, with quantize and dequantize operators.

    Its weights stay in float32 in front of their quantize operators, so that they keep their names.

    torchao also looks for layers that `prepare_qat_pt2e` left with a batch norm to fold. There are none here, but where
    a network has any batch norm it exports 96 programs to know what they look like, which takes 17 s of CPU.
    """
    with patch.object(quantize_pt2e, "_fold_conv_bn_qat", lambda program: program):
        rounding: GraphModule = convert_pt2e(prepared, fold_quantize=False)
    return rounding


__all__ = [
    "FusedMovingAvgObsFakeQuantize",
    "HistogramObserver",
    "MovingAverageMinMaxObserver",
    "MovingAveragePerChannelMinMaxObserver",
    "PerChannelMinMaxObserver",
    "QuantizationAnnotation",
    "QuantizationSpec",
    "QuantizationSpecBase",
    "Quantizer",
    "SharedQuantizationSpec",
    "convert_pt2e",
    "converted",
    "disable_observer",
    "enable_observer",
    "prepare_pt2e",
    "prepare_qat_pt2e",
]
