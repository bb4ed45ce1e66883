"""The parts of torchao that are used here, loaded without the warning that it causes for its own developers."""

from __future__ import annotations

import logging

_LOG = logging.getLogger("torch.utils._pytree")
_BEFORE = _LOG.level
_LOG.setLevel(logging.ERROR)

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
    "disable_observer",
    "enable_observer",
    "prepare_pt2e",
    "prepare_qat_pt2e",
]
