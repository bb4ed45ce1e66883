"""The parts of torchao that are used here, loaded without the warning that it causes for its own developers."""

from __future__ import annotations

import logging

_LOG = logging.getLogger("torch.utils._pytree")
_BEFORE = _LOG.level
_LOG.setLevel(logging.ERROR)

from torchao.quantization.pt2e.observer import HistogramObserver, PerChannelMinMaxObserver  # noqa: E402
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e  # noqa: E402
from torchao.quantization.pt2e.quantizer import (  # noqa: E402
    QuantizationAnnotation,
    QuantizationSpec,
    QuantizationSpecBase,
    Quantizer,
    SharedQuantizationSpec,
)

_LOG.setLevel(_BEFORE)

__all__ = [
    "HistogramObserver",
    "PerChannelMinMaxObserver",
    "QuantizationAnnotation",
    "QuantizationSpec",
    "QuantizationSpecBase",
    "Quantizer",
    "SharedQuantizationSpec",
    "convert_pt2e",
    "prepare_pt2e",
]
