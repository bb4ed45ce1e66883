"""Peak memory as a cost that a policy can choose widths by; what it is made of is in ``aap_hw.compile.footprint``."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from aap_hw.compile.footprint import Moment, constant_bytes, moments
from aap_hw.compile.network import Network
from aap_hw.compile.target import DeviceTarget
from aap_hw.lut.predicting import kernel_costs
from aap_hw.policy import KernelCost, PeakCost

Candidates = Mapping[str, Sequence[int]]


@dataclass
class _Need:
    """What one moment needs: bytes whatever is chosen, bytes a channel of some groups, and costs of pairs of groups.

    ``removable`` is a kernel that may be removed, whose output is not in the bytes, and the group that it goes with.
    """

    fixed: float = 0.0
    a_channel: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    removable: tuple[str, Moment] | None = None

    def is_within(self, other: _Need, most: float, candidates: Candidates) -> bool:
        """Whether the other never needs less, this one's removable part being at most ``most``."""
        more = self.fixed - other.fixed + most
        for name in self.a_channel.keys() | other.a_channel.keys():
            slope = self.a_channel.get(name, 0.0) - other.a_channel.get(name, 0.0)
            more += max(slope * candidates[name][0], slope * candidates[name][-1])
        return more <= 0


def memory_cost(network: Network, candidates: Candidates, target: DeviceTarget) -> PeakCost:
    """Bytes that a network needs, by its groups' candidate widths."""
    needs = [_need(moment, candidates) for moment in moments(network)]
    most = [0.0 if each.removable is None else _made(each.removable[1], candidates) for each in needs]
    kept: list[_Need] = []
    # The largest first: most of the others need less than one of them at every choice of widths.
    for i in sorted(range(len(needs)), key=lambda i: -_largest(needs[i], candidates)):
        if not any(needs[i].is_within(other, most[i], candidates) for other in kept):
            kept.append(needs[i])
    always = kernel_costs(network, candidates, lambda kernel, widths: constant_bytes(*kernel.at(widths), target))
    return PeakCost(always, [_costs(need, candidates) for need in kept])


def _need(moment: Moment, candidates: Candidates) -> _Need:
    need = _Need()
    values = list(moment.held)
    # A kernel goes with a group that it reads and nothing else; what it makes may be of a group that stays.
    read = [name for name, _ in moment.kernel.width_in.terms]
    if len(read) == 1 and not moment.kernel.width_in.constant and candidates[read[0]][0] == 0:
        if len(candidates[read[0]]) > 1 and moment.kernel.width_out != moment.kernel.width_in:
            need.removable = read[0], moment
        elif len(candidates[read[0]]) > 1:
            values.append(moment.made)
    else:
        values.append(moment.made)
    for value in values:
        need.fixed += value.constant
        for name, each in value.terms:
            if len(candidates[name]) > 1:
                need.a_channel[name] += each
            else:
                need.fixed += each * candidates[name][0]
    return need


def _made(moment: Moment, candidates: Candidates) -> float:
    return moment.made.at({name: candidates[name][-1] for name, _ in moment.made.terms})


def _largest(need: _Need, candidates: Candidates) -> float:
    return need.fixed + sum(each * candidates[name][-1] for name, each in need.a_channel.items())


def _costs(need: _Need, candidates: Candidates) -> list[KernelCost]:
    costs = [KernelCost((), np.array(need.fixed))]
    costs += [KernelCost((name,), each * np.array(candidates[name], float)) for name, each in need.a_channel.items()]
    if need.removable is not None:
        group, moment = need.removable
        stays = (np.array(candidates[group]) > 0).astype(float)
        costs.append(KernelCost((group,), moment.made.constant * stays))
        for name, each in moment.made.terms:
            if name == group:
                costs.append(KernelCost((name,), each * np.array(candidates[name], float)))
            elif len(candidates[name]) > 1:
                costs.append(KernelCost((group, name), np.outer(stays, each * np.array(candidates[name], float))))
            else:
                costs.append(KernelCost((group,), each * candidates[name][0] * stays))
    return costs
