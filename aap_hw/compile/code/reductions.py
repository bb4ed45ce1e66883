"""The last step of a reduction, from its sum to its result, for any device."""

from __future__ import annotations

import math
from typing import Any

from tvm import tirx

from aap_hw.compile.code.expressions import number
from aap_hw.compile.code.function import apply_epilogue
from aap_hw.compile.keys.key import KernelKey


def finished(key: KernelKey, reduced: int, value: Any) -> Any:
    """The result of a reduction, given the sum or extreme value of ``reduced`` values."""
    kind = key.attribute("of")
    if kind in ("mean", "var", "std"):
        rest = max(reduced - int(key.attribute("correction", "0")), 0)
        value = value * number(1 / rest if rest else math.inf)  # 0 * inf is NaN, as PyTorch has it
    value = tirx.sqrt(value) if kind in ("norm", "std") else value
    return apply_epilogue(value, key.epilogue, None, None)
