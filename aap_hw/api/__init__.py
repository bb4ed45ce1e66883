"""What the command line can do, as functions: the same names, the same values, the same result.

``aap_hw.profile``, ``plan``, ``prune``, ``resume``, ``deploy``, ``bundle`` and ``report``; ``plan_curve`` is ``plan``
with several budgets, and ``deploy_model`` and ``bundle_model`` are ``deploy`` with ``--model`` instead of a run.
``pack_profile``, ``unpack_profile`` and ``estimate_profile`` are ``profile`` with ``--pack``, ``--unpack`` and
``--estimate``, in modules of their own that are loaded when they are needed. Each
takes texts as a person types them (``"60%"``, ``"20ms"``, ``"imagefolder:photos"``) or values, and raises
``aap_hw.UserError`` with one sentence for what a person can put right. What takes long tells how far it is through a
callback.
"""

from aap_hw.api.deploying import bundle, bundle_model, deploy, deploy_model
from aap_hw.api.planning import plan, plan_curve
from aap_hw.api.profiling import Profile, profile
from aap_hw.api.runs import prune, report, resume

__all__ = [
    "Profile",
    "bundle",
    "bundle_model",
    "deploy",
    "deploy_model",
    "plan",
    "plan_curve",
    "profile",
    "prune",
    "report",
    "resume",
]
