"""Hardware-aware filter pruning by attention: public names of the package.

Names are loaded on first use, so that `import aap_hw` and `aap-hw --help` do not pay for importing PyTorch or
TVM. What is not listed here is internal to its sub-package.
"""

import importlib
from typing import TYPE_CHECKING, Any

from aap_hw.home import provide_home

if TYPE_CHECKING:
    from aap_hw.api import bundle, bundle_model, deploy, deploy_model, plan, plan_curve, profile, prune, report, resume
    from aap_hw.api.estimating import estimate_profile
    from aap_hw.api.packing import pack_profile, unpack_profile
    from aap_hw.attention import attention_scores
    from aap_hw.errors import UserError
    from aap_hw.graph import ChannelGraph
    from aap_hw.models.saved import load, save
    from aap_hw.policy import Budget
    from aap_hw.prune.task import PruneSettings
    from aap_hw.train.settings import TrainSettings
    from aap_hw.train.sources import ImageSource

__version__ = "0.1.0"

_HOME = {
    "Budget": "aap_hw.policy",
    "ChannelGraph": "aap_hw.graph",
    "ImageSource": "aap_hw.train.sources",
    "PruneSettings": "aap_hw.prune.task",
    "TrainSettings": "aap_hw.train.settings",
    "UserError": "aap_hw.errors",
    "attention_scores": "aap_hw.attention",
    "bundle": "aap_hw.api",
    "bundle_model": "aap_hw.api",
    "deploy": "aap_hw.api",
    "deploy_model": "aap_hw.api",
    "estimate_profile": "aap_hw.api.estimating",
    "load": "aap_hw.models.saved",
    "pack_profile": "aap_hw.api.packing",
    "plan": "aap_hw.api",
    "plan_curve": "aap_hw.api",
    "profile": "aap_hw.api",
    "prune": "aap_hw.api",
    "report": "aap_hw.api",
    "resume": "aap_hw.api",
    "save": "aap_hw.models.saved",
    "unpack_profile": "aap_hw.api.packing",
}
__all__ = [
    "Budget",
    "ChannelGraph",
    "ImageSource",
    "PruneSettings",
    "TrainSettings",
    "UserError",
    "__version__",
    "attention_scores",
    "bundle",
    "bundle_model",
    "deploy",
    "deploy_model",
    "estimate_profile",
    "load",
    "pack_profile",
    "plan",
    "plan_curve",
    "profile",
    "prune",
    "report",
    "resume",
    "save",
    "unpack_profile",
]


provide_home()


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
