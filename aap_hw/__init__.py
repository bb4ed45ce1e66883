"""Hardware-aware filter pruning by attention: public names of the package.

Names are loaded on first use, so that `import aap_hw` and `aap-hw --help` do not pay for importing PyTorch or
TVM. What is not listed here is internal to its sub-package.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aap_hw.attention import attention_scores
    from aap_hw.graph import ChannelGraph
    from aap_hw.models.saved import load, save

__version__ = "0.1.0"

__all__ = ["ChannelGraph", "__version__", "attention_scores", "load", "save"]

_HOME = {
    "ChannelGraph": "aap_hw.graph",
    "attention_scores": "aap_hw.attention",
    "load": "aap_hw.models.saved",
    "save": "aap_hw.models.saved",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
