"""What decides how wide each channel group is: candidates, their value, their cost, and the choice.

Everything here takes and returns numbers. Nothing knows about torch, TVM or files; a latency is whatever the
caller's tables say it is, in whatever unit its budget has.
"""

from aap_hw.policy.allocation import Allocation, Infeasible, Undecided, allocate, least_amounts
from aap_hw.policy.budget import (
    FLOPS,
    LATENCY,
    MEMORY,
    PARAMETERS,
    RESOURCES,
    SCHEDULES,
    Budget,
    Resource,
    round_budgets,
)
from aap_hw.policy.candidates import best_channels, candidate_widths, kept_share
from aap_hw.policy.fitting import allocate_to_fit
from aap_hw.policy.problem import GroupChoice, KernelCost, PeakCost, Problem
from aap_hw.policy.threshold import allocate_at_threshold, allocate_by_threshold, lowest_threshold

__all__ = [
    "FLOPS",
    "LATENCY",
    "MEMORY",
    "PARAMETERS",
    "RESOURCES",
    "SCHEDULES",
    "Allocation",
    "Budget",
    "GroupChoice",
    "Infeasible",
    "KernelCost",
    "PeakCost",
    "Problem",
    "Resource",
    "Undecided",
    "allocate",
    "allocate_at_threshold",
    "allocate_by_threshold",
    "allocate_to_fit",
    "best_channels",
    "candidate_widths",
    "kept_share",
    "least_amounts",
    "lowest_threshold",
    "round_budgets",
]
