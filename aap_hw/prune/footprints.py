"""Peak memory as a cost that a policy can choose by, made of what ``compile.library`` counts."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from aap_hw.compile.front.mixed import MixedNetwork
from aap_hw.compile.front.network import Kernel, Network
from aap_hw.compile.keys.target import DeviceTarget
from aap_hw.compile.library.footprint import Value, constant_bytes, moments
from aap_hw.compile.library.mixed_footprint import Held, held, mixed_moments
from aap_hw.lut.mixed import Labels, costs_by_labels, mixed_costs
from aap_hw.lut.predicting import CostOfKernel, kernel_costs
from aap_hw.policy import KernelCost, PeakCost
from aap_hw.policy.problem import FloatArray

Candidates = Mapping[str, Sequence[int]]


def memory_cost(network: Network, candidates: Candidates, target: DeviceTarget) -> PeakCost:
    """Bytes that a network of one precision needs, by its groups' candidate widths."""
    choices = [Labels(name, tuple(widths)) for name, widths in candidates.items() if len(widths) > 1]
    always = kernel_costs(network, candidates, _constants(target))
    return PeakCost(always, _moments(map(held, moments(network, target)), candidates, choices))


def mixed_memory_cost(
    mixed: MixedNetwork, candidates: Candidates, choices: Sequence[Labels], target: DeviceTarget
) -> PeakCost:
    """Bytes that a network of mixed precisions needs, by the labels of its groups."""
    always = mixed_costs(mixed, candidates, choices, _constants(target))
    return PeakCost(always, _moments(mixed_moments(mixed, target), candidates, choices))


def _constants(target: DeviceTarget) -> CostOfKernel:
    def bytes_of(kernel: Kernel, widths: Mapping[str, int]) -> float:
        return constant_bytes(kernel.at(widths), target)

    return bytes_of


def _moments(
    every: Iterable[Sequence[Held]], candidates: Candidates, choices: Sequence[Labels]
) -> list[list[KernelCost]]:
    """What each moment costs, but for those that never decide."""
    needs = []
    for each in every:
        need = _Need()
        for part in each:
            by_widths = {at: _costs(part, values, candidates) for at, values in part.values.items()}
            need.add(costs_by_labels(part.domains, by_widths, choices))
        needs.append(need)
    kept: list[_Need] = []
    # The largest first: most of the others need less than one of them at every choice.
    for need in sorted(needs, key=lambda need: -need.largest):
        if not any(need.is_within(other) for other in kept):
            kept.append(need)
    return [need.costs for need in kept]


@dataclass
class _Need:
    """Bytes that one moment needs, by the labels of no, one or two choices."""

    by_choices: dict[tuple[str, ...], FloatArray] = field(default_factory=dict)

    def add(self, costs: Iterable[KernelCost]) -> None:
        """Count some more."""
        for each in costs:
            names = tuple(sorted(each.groups))
            cost = each.cost if names == each.groups else each.cost.T
            self.by_choices[names] = self.by_choices.get(names, 0.0) + cost

    def is_within(self, other: _Need) -> bool:
        """Whether the other never needs less."""
        more = 0.0
        for names in self.by_choices.keys() | other.by_choices.keys():
            more += float(np.max(self.by_choices.get(names, 0.0) - other.by_choices.get(names, 0.0)))
        return more <= 0

    @property
    def largest(self) -> float:
        """Bytes at the labels that need most."""
        return math.fsum(float(each.max()) for each in self.by_choices.values())

    @property
    def costs(self) -> list[KernelCost]:
        """The same for a policy."""
        return [KernelCost(names, each) for names, each in self.by_choices.items()]


def _costs(part: Held, values: Sequence[Value], candidates: Candidates) -> list[KernelCost]:
    """Bytes of some values of the same channels, by widths; how many costs, and of what, follows from the channels.

    Exact, as only values of one group are pitched, and the others are linear in all widths.
    """
    names = [name for name, _ in part.channels.terms]
    narrowest = {name: candidates[name][0] for name in names}

    def size(wider: Mapping[str, int]) -> int:
        return sum(value.bytes_at({**narrowest, **wider}) for value in values)

    fixed = size({})
    more = {
        name: np.array([size({name: width}) - fixed for width in candidates[name]], float)
        for name in names
        if len(candidates[name]) > 1
    }
    if not part.group or candidates[part.group][0] > 0:
        return [KernelCost((), np.array(fixed)), *(KernelCost((name,), each) for name, each in more.items())]
    if len(candidates[part.group]) == 1:  # it is gone
        return []
    stays = (np.array(candidates[part.group]) > 0).astype(float)
    costs = [KernelCost((part.group,), fixed * stays)]
    for name, each in more.items():
        alone = name == part.group
        costs.append(KernelCost((name,), each) if alone else KernelCost((part.group, name), np.outer(stays, each)))
    return costs
